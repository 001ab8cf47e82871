"""Announcements: of a change of the objective to callbacks, and of new weights to the module.

Between two steps, the objective can change: the target network is synchronized, a new rollout begins, or
labels are shuffled. Statistics of gradients then belong to another function. A LightningModule or a
datamodule reports the change with `announce_objective_shift`, on all ranks and before the first backward pass
under the new objective. A callback reacts with ``on_objective_shift(trainer, pl_module, reason)``."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer


def announce_objective_shift(trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
    """Call ``on_objective_shift`` of all callbacks that define it.

    Args:
        trainer: The Trainer with the callbacks.
        pl_module: The trained module.
        reason: The kind of change, such as ``target_sync``, ``rollout`` or ``label_shuffle``.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        react = getattr(callback, "on_objective_shift", None)
        if callable(react):
            react(trainer, pl_module, reason)


def announce_initialization(pl_module: LightningModule) -> None:
    """Call the module's ``on_weights_initialized``, if it has one: its weights were drawn by a callback."""
    after = getattr(pl_module, "on_weights_initialized", None)
    if callable(after):
        after()
