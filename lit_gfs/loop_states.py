"""What Lightning's loops say in a checkpoint about how far they are."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer


def count_last_batch(trainer: Trainer, loops: dict[str, Any]) -> None:
    """Have a checkpoint that is written at the end of an epoch's last batch resume with what is due next.

    Lightning begins the next epoch then: the evaluation, and the hooks for the end of the epoch, are left
    out. Here the batch counts as completed, and an evaluation that is due as begun; both are states that it
    resumes from as it should.

    Args:
        trainer: The Trainer that writes the checkpoint.
        loops: What the checkpoint says of its loops; changed in place.
    """
    if "fit_loop" not in loops or trainer.state.fn != "fit":
        return
    epoch_loop: Any = cast(Any, trainer).fit_loop.epoch_loop
    progress = epoch_loop.batch_progress
    if not progress.is_last_batch or progress.total.completed != progress.total.processed - 1:
        return
    saved = loops["fit_loop"]
    batches, evaluations = saved["epoch_loop.batch_progress"], saved["epoch_loop.val_loop.batch_progress"]
    for kind in ("total", "current"):
        # A batch that is None is never started: what was left of a rollout was skipped.
        batches[kind]["started"] = batches[kind]["ready"]
        batches[kind]["completed"] += 1
    if not cast(Any, trainer).enable_validation:
        # With evaluations Lightning counts it when it resumes.
        saved["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    elif epoch_loop._should_check_val_fx(cast(Any, trainer).fit_loop._data_fetcher):
        for kind in ("total", "current"):
            evaluations[kind].update(ready=1, started=1, processed=0, completed=0)


def forget_begun_evaluation(trainer: Trainer) -> None:
    """Have an evaluation that a resumed run begins with counted once, though it was said to be begun.

    To be called when training starts: the loops know by then what is due.
    """
    evaluation_loop = cast(Any, trainer).fit_loop.epoch_loop.val_loop
    if evaluation_loop.restarted_mid_evaluation:
        evaluation_loop.batch_progress.total.reset()
