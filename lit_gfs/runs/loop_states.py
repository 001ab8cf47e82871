"""Progress of Lightning's loops in a checkpoint."""

from __future__ import annotations

from typing import Any, cast

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn


def complete_loop_states(trainer: Trainer, loops: dict[str, Any]) -> None:
    """Correct a checkpoint's loop states in two cases where Lightning would resume at the wrong place.

    Lightning never counts a batch of ``None``, as for the skipped rest of a rollout, as started. It then
    treats the checkpoint as one in the middle of a batch. From a checkpoint at the end of an epoch's last
    batch it begins the next epoch without the evaluation and the hooks at the end of the epoch. This function
    counts that batch as completed, and a due evaluation as begun; Lightning resumes correctly from both
    states.

    Args:
        trainer: The Trainer that writes the checkpoint.
        loops: The checkpoint's loop states; changed in place.
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
        # With evaluations Lightning counts the step when it resumes.
        saved["epoch_loop.state_dict"]["_batches_that_stepped"] += 1
    elif epoch_loop._should_check_val_fx(cast(Any, trainer).fit_loop._data_fetcher):
        for counts in (evaluations["total"], evaluations["current"]):
            counts.update(ready=1, started=1, processed=0, completed=0)


def note_written_checkpoints(trainer: Trainer) -> None:
    """Tell callbacks that checkpoint every n steps that the current step's checkpoint exists.

    A ModelCheckpoint does not save this. With accumulated gradients a step takes several batches, and a
    resumed run would write one more checkpoint at its next batch: a barrier that the uninterrupted run does
    not have.
    """
    for callback in cast(Any, trainer).checkpoint_callbacks:
        every = getattr(callback, "_every_n_train_steps", 0)
        if every and trainer.global_step % every == 0:
            callback._last_global_step_saved = trainer.global_step


def forget_begun_evaluation(trainer: Trainer) -> None:
    """Count an evaluation only once if a resumed run begins with it and the checkpoint marked it as begun.

    Call it when training starts: by then the loops know what is due.
    """
    evaluation_loop = cast(Any, trainer).fit_loop.epoch_loop.val_loop
    if evaluation_loop.restarted_mid_evaluation:
        evaluation_loop.batch_progress.total.reset()
