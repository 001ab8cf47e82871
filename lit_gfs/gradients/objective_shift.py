"""Announcing that the objective itself has changed, to whoever keeps statistics about gradients.

A target network that is synchronized, a new rollout, shuffled labels: from one step to the next, gradients
are those of another function. A LightningModule or a datamodule says so by `announce_objective_shift`; a
callback that cares has a method ``on_objective_shift(trainer, pl_module, reason)``. Announce it on all ranks,
before the first backward pass under the new objective."""

from __future__ import annotations

from lightning.pytorch import LightningModule, Trainer


def announce_objective_shift(trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
    """Call ``on_objective_shift`` of all callbacks that have it.

    Args:
        trainer: The Trainer whose callbacks are told.
        pl_module: The module that is trained.
        reason: What changed, such as ``target_sync``, ``rollout`` or ``label_shuffle``.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        react = getattr(callback, "on_objective_shift", None)
        if callable(react):
            react(trainer, pl_module, reason)
