"""Refuses Trainer options that would break a datamodule's counting or precision.

Call the checks from ``setup``, in every stage; those that concern only training do nothing in other stages.
"""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_gfs.errors import UserError

PRECISIONS = ("32-true", "16-mixed", "bf16-mixed")
"""Precisions that keep weights and observations in 32 bits."""


def require_precision(trainer: Trainer) -> None:
    """Check the precision, in ``fit``, ``validate`` and ``test`` alike.

    Raises:
        UserError: If it is not in `PRECISIONS`.
    """
    if trainer.precision not in PRECISIONS:
        *others, last = PRECISIONS
        raise UserError(f"trainer.precision is {trainer.precision}; expected {', '.join(others)} or {last}")


def require_evaluation_between_epochs(trainer: Trainer) -> None:
    """Check, in ``fit``, that only the datamodule decides when to evaluate.

    Raises:
        UserError: If ``val_check_interval`` is set.
    """
    # Lightning's Trainer lacks the attribute if the interval is a time.
    interval = getattr(trainer, "val_check_interval", "a time")
    if trainer.state.fn == TrainerFn.FITTING and not _is_whole(interval):
        raise UserError(
            f"trainer.val_check_interval is {interval}; expected 1.0, as data.eval_every says "
            "when to evaluate"
        )


def require_whole_passes(trainer: Trainer, because: str) -> None:
    """Check, in ``fit``, that every epoch takes all batches; ``fast_dev_run`` may end one early.

    Args:
        trainer: The Trainer.
        because: The reason, as in ``expected none, as <because>``.

    Raises:
        UserError: If ``overfit_batches`` or ``limit_train_batches`` is set.
    """
    options = cast(Any, trainer)
    if trainer.state.fn != TrainerFn.FITTING or options.fast_dev_run:
        return
    # Lightning also writes a given overfit_batches into limit_train_batches.
    name = "overfit_batches" if options.overfit_batches else "limit_train_batches"
    if options.overfit_batches or not _is_whole(options.limit_train_batches):
        raise UserError(f"trainer.{name} is {getattr(options, name)}; expected none, as {because}")


def _is_whole(share: object) -> bool:
    """Return whether a share means a whole epoch: for Lightning, 1.0 does, but 1 means one batch."""
    return isinstance(share, float) and share == 1.0
