"""Reduces Lightning's overhead around every hook of every callback.

A training step with a small network takes half a millisecond; around it Lightning calls some fifty hooks, and
most of them do nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

from lightning.pytorch import Callback, LightningModule
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


def drop_empty_hooks(callbacks: Iterable[Callback]) -> None:
    """Make Lightning skip hooks of a training step that a callback only inherits from `Callback`.

    Lightning calls only callable hooks, so these are set to ``None``.
    """
    for callback in callbacks:
        for hook in _BATCH_HOOKS:
            if hook not in vars(callback) and getattr(type(callback), hook) is getattr(Callback, hook):
                setattr(callback, hook, None)


class LeanModule(LightningModule):
    """A LightningModule that notes the name of the current hook without PyTorch's bookkeeping.

    Lightning sets that name twice around every hook, some sixty times a training step. PyTorch's modules look
    at every attribute that is set, in case it is a parameter, a buffer or a module. A string is none of them.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)
