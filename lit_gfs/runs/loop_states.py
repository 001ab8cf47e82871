"""What Lightning's loops say in a checkpoint about how far they are."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn


def complete_loop_states(trainer: Trainer, loops: dict[str, Any]) -> None:
    """Have a checkpoint resume with what is due next, also in two cases that Lightning leaves out.

    A batch that is None, as for the rest of a rollout that is skipped, is never counted as started; Lightning
    then takes the checkpoint for one in the middle of a batch. And from a checkpoint at the end of an epoch's
    last batch it begins the next epoch, without the evaluation and the hooks for the end of the epoch. Here
    that batch counts as completed, and an evaluation that is due as begun; both are states that Lightning
    resumes from as it should.

    Args:
        trainer: The Trainer that writes the checkpoint.
        loops: What the checkpoint says of its loops; changed in place.
    """
    if "fit_loop" not in loops or trainer.state.fn != TrainerFn.FITTING:
        return
    saved, epoch_loop = loops["fit_loop"], cast(Any, trainer).fit_loop.epoch_loop
    batches, evaluations = saved["epoch_loop.batch_progress"], saved["epoch_loop.val_loop.batch_progress"]
    if batches["total"]["processed"] == batches["total"]["ready"]:
        for counts in (batches["total"], batches["current"]):
            counts["started"] = counts["ready"]
    if not batches["is_last_batch"] or batches["total"]["completed"] != batches["total"]["processed"] - 1:
        return
    for counts in (batches["total"], batches["current"]):
        counts["completed"] += 1
    if not cast(Any, trainer).enable_validation:
        # With evaluations Lightning counts it when it resumes.
        saved["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    elif epoch_loop._should_check_val_fx(cast(Any, trainer).fit_loop._data_fetcher):
        for counts in (evaluations["total"], evaluations["current"]):
            counts.update(ready=1, started=1, processed=0, completed=0)


def note_written_checkpoints(trainer: Trainer) -> None:
    """Have what writes a checkpoint every so many steps know that the present step's was written.

    No ModelCheckpoint keeps that. While gradients are accumulated a step takes several batches, and a resumed
    run would write one more at its next batch: a barrier that the run that goes on does not have.
    """
    for callback in cast(Any, trainer).checkpoint_callbacks:
        every = getattr(callback, "_every_n_train_steps", 0)
        if every and trainer.global_step % every == 0:
            callback._last_global_step_saved = trainer.global_step


def forget_begun_evaluation(trainer: Trainer) -> None:
    """Have an evaluation that a resumed run begins with counted once, though it was said to be begun.

    To be called when training starts: the loops know by then what is due.
    """
    evaluation_loop = cast(Any, trainer).fit_loop.epoch_loop.val_loop
    if evaluation_loop.restarted_mid_evaluation:
        evaluation_loop.batch_progress.total.reset()
