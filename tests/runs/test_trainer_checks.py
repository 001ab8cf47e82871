from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn

from lit_gfs.errors import UserError
from lit_gfs.runs.trainer_checks import (
    require_evaluation_between_epochs,
    require_precision,
    require_whole_passes,
)
from support.training import MakeTrainer

STAGES = [TrainerFn.FITTING, TrainerFn.VALIDATING, TrainerFn.TESTING]


def trainer_in(stage: TrainerFn, make_trainer: MakeTrainer, **arguments: Any) -> Trainer:
    trainer = make_trainer(**arguments)
    trainer.state.fn = stage
    return trainer


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_precision_with_weights_in_32_bits_is_taken(
    precision: str, stage: TrainerFn, make_trainer: MakeTrainer
) -> None:
    require_precision(trainer_in(stage, make_trainer, precision=precision))


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_another_precision_is_refused_in_every_stage(
    precision: str, stage: TrainerFn, make_trainer: MakeTrainer
) -> None:
    expected = f"trainer.precision is {precision}; expected 32-true, 16-mixed or bf16-mixed"
    with pytest.raises(UserError, match=expected):
        require_precision(trainer_in(stage, make_trainer, precision=precision))


LIMITS = [
    ({"limit_train_batches": 2}, "limit_train_batches is 2; expected none, as so it is"),
    ({"limit_train_batches": 1}, "limit_train_batches is 1; expected none"),
    ({"limit_train_batches": 0.5}, "limit_train_batches is 0.5; expected none"),
    ({"overfit_batches": 1}, "overfit_batches is 1; expected none, as so it is"),
    ({"overfit_batches": 1.0}, "overfit_batches is 1.0; expected none"),
]


@pytest.mark.parametrize(("arguments", "expected"), LIMITS)
def test_epochs_that_are_broken_off_are_refused_in_fit(
    arguments: dict[str, Any], expected: str, make_trainer: MakeTrainer
) -> None:
    with pytest.raises(UserError, match=expected):
        require_whole_passes(trainer_in(TrainerFn.FITTING, make_trainer, **arguments), "so it is")


@pytest.mark.parametrize("stage", STAGES[1:])
@pytest.mark.parametrize(("arguments", "_expected"), LIMITS)
def test_other_stages_do_not_look_at_training_batches(
    arguments: dict[str, Any], _expected: str, stage: TrainerFn, make_trainer: MakeTrainer
) -> None:
    require_whole_passes(trainer_in(stage, make_trainer, **arguments), "so it is")


@pytest.mark.parametrize("arguments", [{}, {"limit_train_batches": 1.0}, {"fast_dev_run": 2}])
def test_whole_epochs_and_a_development_run_are_taken(
    arguments: dict[str, Any], make_trainer: MakeTrainer
) -> None:
    trainer = trainer_in(TrainerFn.FITTING, make_trainer, **arguments)

    require_whole_passes(trainer, "so it is")
    require_evaluation_between_epochs(trainer)


@pytest.mark.parametrize(("interval", "told"), [(1, "1"), (2, "2"), (0.5, "0.5"), ("00:00:10:00", "a time")])
def test_another_time_of_evaluation_is_refused_in_fit_alone(
    interval: int | float | str, told: str, make_trainer: MakeTrainer
) -> None:
    trainer = trainer_in(TrainerFn.FITTING, make_trainer, val_check_interval=interval)

    with pytest.raises(UserError, match=f"val_check_interval is {told}; expected 1.0, as data.eval_every"):
        require_evaluation_between_epochs(trainer)
    trainer.state.fn = TrainerFn.VALIDATING
    require_evaluation_between_epochs(trainer)
