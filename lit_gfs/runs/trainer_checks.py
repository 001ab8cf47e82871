"""Refuses Trainer options under which a datamodule's own counting, or its precision, would not hold.

Call them from ``setup``, in every stage: what only training depends on is looked at only there.
"""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_gfs.errors import UserError

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Those that keep weights and observations in 32 bits."""


def require_precision(trainer: Trainer) -> None:
    """Check the precision, in ``fit``, ``validate`` and ``test`` alike.

    Raises:
        UserError: If it is none of `PRECISIONS`.
    """
    if trainer.precision not in PRECISIONS:
        *others, last = PRECISIONS
        raise UserError(f"trainer.precision is {trainer.precision}; expected {', '.join(others)} or {last}")


def require_evaluation_between_epochs(trainer: Trainer) -> None:
    """Check, in ``fit``, that nothing but the datamodule says when to evaluate.

    Raises:
        UserError: If ``val_check_interval`` is set.
    """
    # Lightning's Trainer does not have the attribute where it was given a time.
    interval = getattr(trainer, "val_check_interval", "a time")
    if trainer.state.fn == TrainerFn.FITTING and not _is_whole(interval):
        raise UserError(
            f"trainer.val_check_interval is {interval}; expected 1.0, as data.eval_every says "
            "when to evaluate"
        )


def require_whole_passes(trainer: Trainer, because: str) -> None:
    """Check, in ``fit``, that every epoch takes all batches; ``fast_dev_run`` may break one off.

    Args:
        trainer: The Trainer that is about to fit; in other stages nothing is checked.
        because: What depends on it, as in ``expected none, as <because>``.

    Raises:
        UserError: If ``overfit_batches`` or ``limit_train_batches`` is set.
    """
    options = cast(Any, trainer)
    if trainer.state.fn != TrainerFn.FITTING or options.fast_dev_run:
        return
    # Where overfit_batches is given, Lightning puts its value into limit_train_batches too.
    name = "overfit_batches" if options.overfit_batches else "limit_train_batches"
    if options.overfit_batches or not _is_whole(options.limit_train_batches):
        raise UserError(f"trainer.{name} is {getattr(options, name)}; expected none, as {because}")


def _is_whole(share: object) -> bool:
    """Return whether it is all of an epoch: Lightning takes 1.0 for that, but 1 for one batch."""
    return isinstance(share, float) and share == 1.0
