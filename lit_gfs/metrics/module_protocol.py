"""Interface between callbacks and LightningModules: optional attributes of a module, and their defaults."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import Optimizer

from lit_gfs.metrics.overview import overview_of
from lit_gfs.networks.layers import named_layers


def layers_of(pl_module: LightningModule) -> dict[str, nn.Module]:
    """Return the module's layers by name: its ``named_layers()``, else all that own trainable parameters.

    A list of the module's own is complete: other submodules are not layers. If the module itself is a layer,
    its key is its class name.
    """
    own = getattr(pl_module, "named_layers", None)
    layers = own() if callable(own) else named_layers(pl_module)
    return {name or type(pl_module).__name__: layer for name, layer in layers.items()}


def trained_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """List the parameters of an optimizer that require gradients."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def x_axis(trainer: Trainer, pl_module: LightningModule) -> int:
    """Return the position of the run on the x axis: the module's ``env_steps``, else ``global_step``."""
    env_steps = getattr(pl_module, "env_steps", None)
    return trainer.global_step if env_steps is None else int(env_steps)


def unit_of(pl_module: LightningModule) -> str:
    """Return the unit of `x_axis` in words."""
    return "step" if getattr(pl_module, "env_steps", None) is None else "environment step"


def is_log_step(trainer: Trainer, written_at: int) -> bool:
    """Return whether a multiple of ``Trainer(log_every_n_steps)`` was reached since the step ``written_at``.

    A batch with several optimizers or several steps may skip the multiple itself.
    """
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(every) and trainer.global_step // every > written_at // every


def score_tag(pl_module: LightningModule) -> str:
    """Return the tag of the evaluation's score: the module's ``score``, else ``eval/episode_return``."""
    return getattr(pl_module, "score", "eval/episode_return")


def write_scalars(trainer: Trainer, pl_module: LightningModule, scalars: Mapping[str, float]) -> None:
    """Write scalars to all loggers, at the current position on the x axis, and the overview's copies of them.

    Callbacks with a method ``on_scalars(step, scalars)`` also get them.
    """
    step = x_axis(trainer, pl_module)
    written = {**scalars, **overview_of(scalars)}
    for logger in trainer.loggers:
        logger.log_metrics(dict(written), step=step)
    tell_listeners(trainer, step, scalars)


def tell_listeners(trainer: Trainer, step: int, scalars: Mapping[str, float]) -> None:
    """Give scalars to the callbacks with a method ``on_scalars(step, scalars)``."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if (listen := getattr(callback, "on_scalars", None)) is not None:
            listen(step, scalars)
