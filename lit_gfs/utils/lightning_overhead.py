"""Reduces Lightning's overhead around every hook of every callback.

A training step with a small network takes half a millisecond; around it Lightning calls some fifty hooks, and
most of them do nothing.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.profilers import PassThroughProfiler
from typing_extensions import override

_NOTHING = nullcontext()

_BATCH_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)


class Untimed(PassThroughProfiler):
    """Lightning's default profiler, without the generator that it enters around every hook."""

    @override
    def profile(self, action_name: str) -> Any:
        return _NOTHING


def drop_empty_hooks(owners: Iterable[Callback | LightningModule]) -> None:
    """Make Lightning skip hooks of a training step that do nothing.

    They are the ones that a callback or a module only inherits from Lightning, and the end of a batch for a
    `ModelCheckpoint` that saves after evaluations or epochs alone. Lightning calls only callable hooks, so
    these are set to ``None``.
    """
    for owner in owners:
        base = Callback if isinstance(owner, Callback) else LightningModule
        for hook in _BATCH_HOOKS:
            own = getattr(type(owner), hook)
            if hook not in vars(owner) and (own is getattr(base, hook) or _is_idle(owner, own)):
                setattr(owner, hook, None)


def _is_idle(owner: Callback | LightningModule, hook: Any) -> bool:
    """Return whether a hook is the end of a batch for a `ModelCheckpoint` that never saves there."""
    return (
        isinstance(owner, ModelCheckpoint)
        and hook is ModelCheckpoint.on_train_batch_end
        and owner._every_n_train_steps < 1
        and owner._train_time_interval is None
    )


class LeanModule(LightningModule):
    """A LightningModule for which Lightning looks up less in each training step.

    - Lightning sets the name of the current hook twice around every hook, some sixty times a training step.
      PyTorch's modules look at every attribute that is set, in case it is a parameter, a buffer or a
      module. A string is none of them.
    - Hooks that do nothing are skipped.
    - Lightning reads the signature of ``training_step`` before every call. It is made once for each class.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if (step := vars(cls).get("training_step")) is not None and inspect.isfunction(step):
            step.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        drop_empty_hooks([self])

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)


def remember_batch_hooks(trainer: Trainer) -> None:
    """Find out once in a fit whether module or datamodule has the hooks that move a batch to its device."""
    selector: Any = trainer._data_connector._datahook_selector
    selector.get_instance = functools.cache(selector.get_instance)
