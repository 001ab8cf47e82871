"""Interface between callbacks and LightningModules: optional attributes of a module, and their defaults.

A callback that reads features needs ``policy_head``, the layer that reads them. One that runs the network
again also needs ``policy_features(observation)``, which maps observations ``(batch, *shape)`` to the input of
that layer. A module that asks its own ``training_step`` for a loss outside training sets ``is_probed``
meanwhile. A module whose policy learns in some optimizer steps alone, such as TD3, says so by
``policy_is_due``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from lit_gfs.errors import UserError
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


def trains_policy(pl_module: LightningModule) -> bool:
    """Return whether the policy learns in this optimizer step; always, without ``policy_is_due``."""
    return getattr(pl_module, "policy_is_due", True)


def trained_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """List the parameters of an optimizer that require gradients."""
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def optimized_parameters(trainer: Trainer, pl_module: LightningModule) -> dict[str, nn.Parameter]:
    """Return the module's parameters that an optimizer holds, by their names, also those that are frozen."""
    held = {
        id(p) for optimizer in trainer.optimizers for group in optimizer.param_groups for p in group["params"]
    }
    return {name: p for name, p in pl_module.named_parameters() if id(p) in held}


def policy_head(pl_module: LightningModule, asked_by: str) -> nn.Module:
    """Return the module's ``policy_head``.

    Args:
        pl_module: The module.
        asked_by: The callback that needs it, for the message.

    Raises:
        UserError: If the module has none.
    """
    head = getattr(pl_module, "policy_head", None)
    if not isinstance(head, nn.Module):
        raise UserError(
            f"{asked_by} reads the features of {type(pl_module).__name__}, which has no policy_head; "
            "expected this attribute: the layer that reads the features"
        )
    return head


def require_policy_features(pl_module: LightningModule, asked_by: str) -> None:
    """Check that the module's network can be run again, up to its ``policy_head`` and with it.

    Raises:
        UserError: If ``policy_head`` or ``policy_features`` is missing.
    """
    policy_head(pl_module, asked_by)
    if not callable(getattr(pl_module, "policy_features", None)):
        raise UserError(
            f"{asked_by} runs the network of {type(pl_module).__name__} again, which has no policy_features; "
            "expected this method: it maps observations to the input of policy_head"
        )


def policy_features(pl_module: LightningModule, observations: Tensor) -> Tensor:
    """Map observations ``(batch, *shape)`` to the input of the module's ``policy_head``."""
    return cast(Any, pl_module).policy_features(observations)


def observations_of(batch: Any, asked_by: str) -> Tensor:
    """Return the observations of a batch, ``(batch, *shape)``: its ``observation``, or its first tensor.

    Args:
        batch: A tensor, a tuple or list that begins with one, or a mapping with ``observation``.
        asked_by: The callback that needs them, for the message.

    Raises:
        UserError: If the batch is anything else.
    """
    found = batch
    if isinstance(batch, Mapping | TensorDictBase):
        found = batch["observation"] if "observation" in batch.keys() else None  # noqa: SIM118 - a tensordict
    elif isinstance(batch, tuple | list) and batch:
        found = batch[0]
    if not isinstance(found, Tensor):
        raise UserError(
            f"{asked_by} found no observations in a batch of type {type(batch).__name__}; expected a tensor, "
            "a tuple that begins with one, or a mapping with 'observation'"
        )
    return found


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


def example_input(pl_module: LightningModule, owner: str) -> Any:
    """Return the module's ``example_input_array``.

    Args:
        pl_module: The module.
        owner: The callback that runs the module's forward, for the message.

    Raises:
        UserError: If it is ``None``, or the module has no forward.
    """
    if getattr(pl_module.forward, "__func__", None) is LightningModule.forward:
        raise UserError(
            f"{owner} runs {type(pl_module).__name__}'s forward, but it has none; expected a method forward "
            "that takes example_input_array"
        )
    example = pl_module.example_input_array
    if example is None:
        raise UserError(
            f"{owner} runs {type(pl_module).__name__}'s forward, but its example_input_array is None; "
            "expected an example of what forward takes, such as torch.zeros(1, 8)"
        )
    return example


def example_of(trainer: Trainer, pl_module: LightningModule, owner: str) -> Any:
    """Return the module's ``example_input_array``, in its precision and on its device.

    Raises:
        UserError: If it is ``None``; the message begins with the owner's name.
    """
    converted = trainer.precision_plugin.convert_input(example_input(pl_module, owner))
    return tree_map(lambda leaf: leaf.to(pl_module.device) if isinstance(leaf, Tensor) else leaf, converted)
