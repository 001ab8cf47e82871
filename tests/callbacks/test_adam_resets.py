"""The state of Adam is reset at shifts of the objective, after so many steps, and not otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks import AdamResets, LayerResets
from lit_gfs.errors import UserError
from lit_gfs.steps.objective_shift import announce_objective_shift
from support.intervened import fit
from support.probed import Chain, sgd
from support.training import MakeTrainer, replay_data, rollout_data, weights


class Shift(Callback):
    """Announces a shift before some batches, and keeps the step count and the first moment after each."""

    def __init__(self, *batches: int) -> None:
        self.batches = batches
        self.counts: list[int] = []
        self.moments: list[torch.Tensor] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx in self.batches:
            announce_objective_shift(trainer, pl_module, "labels")

    def on_train_batch_end(self, trainer: Any, pl_module: Chain, *batch: Any) -> None:
        state = trainer.optimizers[0].state[pl_module.head.weight]
        self.counts.append(int(state["step"]))
        self.moments.append(state["exp_avg"].clone())


def test_the_count_starts_again_at_a_shift() -> None:
    shift, callback = Shift(3), AdamResets()
    rows = fit(Chain(), [callback, shift], 5)
    assert shift.counts == [1, 2, 3, 1, 2]
    assert rows[5]["intervention/adam_resets/resets"] == 1


def test_the_moments_go_too_if_they_are_to() -> None:
    """The first moment is then a tenth of the gradient, without nine tenths of the one before."""
    found = {}
    for mode in ("step", "moments"):
        shift = Shift(3)
        fit(Chain(), [AdamResets(mode=mode), shift], 4)  # type: ignore[arg-type]
        found[mode] = shift.moments
    torch.testing.assert_close(found["step"][3] - 0.9 * found["step"][2], found["moments"][3])


def test_it_can_act_every_so_many_steps_and_ignore_shifts() -> None:
    shift, callback = Shift(0, 1, 2, 3, 4), AdamResets(on_shift=False, every_n_steps=2)
    fit(Chain(), [callback, shift], 5)
    assert shift.counts == [1, 0, 1, 0, 1]
    assert callback.resets == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.RAdam(p, 1e-3),
        lambda p: torch.optim.NAdam(p, 1e-3),
        lambda p: torch.optim.AdamW(p, 1e-3, fused=True),
        lambda p: torch.optim.Adam(p, 1e-3, foreach=True, amsgrad=True),
    ],
    ids=["RAdam", "NAdam", "fused AdamW", "foreach Adam"],
)
def test_relatives_of_adam(make: Any) -> None:
    shift = Shift(2)
    module = Chain(make)
    fit(module, [AdamResets(), shift], 4)
    assert shift.counts == [1, 2, 1, 2]
    assert weights(module).isfinite().all()


def test_without_a_shift_nothing_changes() -> None:
    with_it, without = Chain(), Chain()
    fit(with_it, [AdamResets()], 4)
    fit(without, [], 4)
    assert torch.equal(weights(with_it), weights(without))


def test_a_layer_reset_is_a_shift() -> None:
    callback = AdamResets()
    fit(Chain(), [LayerResets(every=2), callback], 4)
    assert callback.resets == 2


@pytest.mark.usefixtures("counting_envs")
def test_agents_announce_their_shifts(make_trainer: MakeTrainer) -> None:
    source = replay_data(total_steps=60, eval_every=60)
    callback = AdamResets()
    make_trainer(callbacks=[callback]).fit(DQN(source.env_spec, target_sync_every=20), source)
    assert callback.resets == 3  # at 20, 40 and 60 steps
    rollouts = rollout_data(eval_every=64)
    make_trainer(callbacks=[callback]).fit(PPO(rollouts.env_spec), rollouts)
    assert callback.resets == 4  # 64 steps in rollouts of 16


@pytest.mark.parametrize("every", [None, 4])
def test_a_resumed_run_repeats_the_uninterrupted_one(every: int | None, tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    whole, resumed = Chain(), Chain()
    first, second = (AdamResets(mode="moments", every_n_steps=every) for _ in range(2))
    rows = fit(whole, [first, Shift(3), keep], 30, log_every_n_steps=7)
    later = fit(resumed, [second, Shift(3)], 30, log_every_n_steps=7, ckpt_path=tmp_path / "step=10.ckpt")
    assert torch.equal(weights(whole), weights(resumed))
    assert later == {step: row for step, row in rows.items() if step > 10}
    assert first.resets == second.resets > 2


def test_other_optimizers_and_pointless_arguments_are_refused() -> None:
    with pytest.raises(
        UserError, match="AdamResets resets the state of Adam, but the optimizer is SGD; expected"
    ):
        fit(Chain(sgd(0.1)), [AdamResets()], 1)
    with pytest.raises(UserError, match="nothing would be reset; expected one of them"):
        AdamResets(on_shift=False)
    with pytest.raises(UserError, match="mode is 'all'; expected one of 'step', 'moments'"):
        AdamResets(mode="all")  # type: ignore[arg-type]
    with pytest.raises(
        UserError, match=r"mode is 'steps'; expected one of 'step', 'moments'; did you mean 'step'"
    ):
        AdamResets(mode="steps")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="every_n_steps is 0"):
        AdamResets(every_n_steps=0)
