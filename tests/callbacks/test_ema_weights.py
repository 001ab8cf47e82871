"""The average of the weights: its values, what is evaluated and saved, and what is not averaged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor, nn

from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks import EMAWeights
from lit_gfs.errors import UserError
from support.fakes import Records
from support.training import MakeTrainer, regression_batches, replay_data, rollout_data, weights

Batch = tuple[Tensor, Tensor]


class Regression(LightningModule):
    """A module with a buffer that counts batches, and a frozen copy of its layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 1)
        self.frozen = copy.deepcopy(self.layer).requires_grad_(False)
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))
        self.factory = (value for value in ())  # cannot be copied
        self.history: list[Tensor] = []
        """The weights after each step."""
        self.validated: list[Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.batches += 1
        return (self.layer(batch[0]) - batch[1]).square().mean()

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.history.append(weights(self.layer))
        self.frozen.load_state_dict(self.layer.state_dict())

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(weights(self.layer))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def average(history: list[Tensor], decay: float) -> Tensor:
    value = history[0]
    for each in history[1:]:
        value = decay * value + (1 - decay) * each
    return value


def test_validation_and_the_end_of_fitting_see_the_average_and_training_does_not(
    make_trainer: MakeTrainer,
) -> None:
    module, plain = Regression(), Regression()
    batches = regression_batches(4)

    make_trainer(max_epochs=3, callbacks=[EMAWeights(decay=0.8)]).fit(module, batches, regression_batches(1))
    make_trainer(max_epochs=3).fit(plain, batches, regression_batches(1))

    assert all(map(torch.equal, module.history, plain.history))
    for epoch, seen in enumerate(module.validated, start=1):
        torch.testing.assert_close(seen, average(module.history[: 4 * epoch], 0.8))
    torch.testing.assert_close(weights(module.layer), average(module.history, 0.8))
    assert not torch.allclose(weights(module.layer), module.history[-1])


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_weights_of_any_precision_are_averaged(precision: Any, make_trainer: MakeTrainer) -> None:
    module = Regression()
    trainer = make_trainer(max_epochs=2, callbacks=[EMAWeights(decay=0.8)], precision=precision)
    trainer.fit(module, regression_batches(4), regression_batches(1))
    assert weights(module.layer).dtype == module.history[-1].dtype != torch.float32
    torch.testing.assert_close(weights(module.layer), average(module.history, 0.8))


def test_weights_that_hooks_compute_are_refused_in_one_line(make_trainer: MakeTrainer) -> None:
    module = Regression()
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(module.layer)
    with pytest.raises(UserError, match="EMAWeights cannot copy Regression: Only Tensors"):
        make_trainer(max_epochs=1, callbacks=[EMAWeights()]).fit(module, regression_batches(1))


def test_buffers_and_frozen_parameters_are_not_averaged(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    module = Regression()
    trainer = make_trainer(max_epochs=2, callbacks=[EMAWeights(decay=0.8)])
    trainer.fit(module, regression_batches(4))

    trainer.save_checkpoint(tmp_path / "end.ckpt")

    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    for state in (saved["state_dict"], saved["current_model_state"]):
        assert state["batches"] == 8
        assert torch.equal(torch.cat([state["frozen.weight"][0], state["frozen.bias"]]), module.history[-1])


def test_a_checkpoint_holds_the_average_and_after_the_end_too_the_weights_that_are_trained(
    make_trainer: MakeTrainer, tmp_path: Path
) -> None:
    module = Regression()
    trainer = make_trainer(max_epochs=2, callbacks=[EMAWeights(decay=0.8)])
    trainer.fit(module, regression_batches(4))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    longer = Regression()

    make_trainer(max_epochs=4, callbacks=[EMAWeights(decay=0.8)]).fit(
        longer, regression_batches(4), ckpt_path=tmp_path / "end.ckpt", weights_only=True
    )

    whole = Regression()
    make_trainer(max_epochs=4, callbacks=[EMAWeights(decay=0.8)]).fit(whole, regression_batches(4))
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["state_dict"]
    layer = torch.cat([saved["layer.weight"][0], saved["layer.bias"]])
    torch.testing.assert_close(layer, average(whole.history[:8], 0.8))
    assert torch.equal(weights(longer), weights(whole))


def test_before_the_first_update_the_average_is_the_weights(make_trainer: MakeTrainer) -> None:
    module = Regression()

    make_trainer(max_epochs=2, callbacks=[EMAWeights(decay=0.8, update_starting_at_step=6)]).fit(
        module, regression_batches(4), regression_batches(1)
    )

    assert torch.equal(module.validated[0], module.history[3])
    torch.testing.assert_close(module.validated[1], average(module.history[6:], 0.8))


@pytest.mark.parametrize("stop", [SIGTERMException, RuntimeError])
def test_an_evaluation_that_breaks_off_gives_the_weights_back(
    make_trainer: MakeTrainer, tmp_path: Path, stop: type[BaseException]
) -> None:
    class Stops(Regression):
        def validation_step(self, batch: Batch, batch_idx: int) -> None:
            raise stop

    class Saves(Callback):
        def on_exception(self, trainer: Any, *arguments: Any) -> None:
            trainer.save_checkpoint(tmp_path / "broken.ckpt")

    module = Stops()
    trainer = make_trainer(max_epochs=1, callbacks=[Saves(), EMAWeights(decay=0.8)])
    with pytest.raises(stop):
        trainer.fit(module, regression_batches(4), regression_batches(1))

    saved = torch.load(tmp_path / "broken.ckpt", weights_only=True)
    current, averaged = (
        torch.cat([saved[name]["layer.weight"][0], saved[name]["layer.bias"]])
        for name in ("current_model_state", "state_dict")
    )
    assert torch.equal(current, module.history[-1])
    torch.testing.assert_close(averaged, average(module.history, 0.8))
    assert torch.equal(weights(module.layer), module.history[-1])


class Watched(DQN):
    """Notes which weights were evaluated under which name."""

    def _report_evaluation(self, played: Any, prefix: str = "eval") -> None:
        self.__dict__.setdefault("evaluated", []).append((prefix, weights(self.q_network)))
        super()._report_evaluation(played, prefix)


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("kind", [EMAWeights, EMAWeightAveraging])
def test_agents_evaluate_the_average_and_apart_from_it_the_weights(
    make_trainer: MakeTrainer, kind: Any
) -> None:
    class Follow(Callback):
        def __init__(self) -> None:
            self.history: list[Tensor] = []

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
            if trainer.global_step > len(self.history):
                self.history.append(weights(pl_module.q_network))

    data, follow, records = replay_data(total_steps=80, eval_every=40), Follow(), Records("eval")
    agent = Watched(data.env_spec)

    make_trainer(callbacks=[kind(decay=0.9), follow], logger=records).fit(agent, data)

    (first, averaged), (second, current) = agent.__dict__["evaluated"][-2:]
    assert (first, second) == ("eval", "eval_current")
    torch.testing.assert_close(averaged, average(follow.history, 0.9))
    assert torch.equal(current, follow.history[-1])
    tags = set(records.rows[80])
    assert {"eval/episode_return", "eval_current/episode_return"} <= tags
    # The same episodes: these environments do not react to actions.
    assert records.rows[80]["eval/episode_return"] == records.rows[80]["eval_current/episode_return"]


@pytest.mark.usefixtures("counting_envs")
def test_the_average_normalizes_observations_as_the_policy_does(make_trainer: MakeTrainer) -> None:
    seen: list[tuple[Tensor, ...]] = []

    class Normalizing(PPO):
        def _report_evaluation(self, played: Any, prefix: str = "eval") -> None:
            norm = self.actor_critic.observation_norm
            assert norm is not None
            seen.append(tuple(buffer.clone() for buffer in norm.buffers()))
            super()._report_evaluation(played, prefix)

    data = rollout_data()
    agent = Normalizing(data.env_spec, normalize_observation=True)
    make_trainer(callbacks=[EMAWeights(decay=0.99, update_every_n_steps=3)]).fit(agent, data)

    assert len(seen) == 4
    for averaged, current in (seen[:2], seen[2:]):
        assert current[0] > 0
        assert all(map(torch.equal, averaged, current))


def test_lightnings_options_are_taken_over() -> None:
    theirs = EMAWeightAveraging(decay=0.97, update_every_n_steps=3, update_starting_at_step=7)

    ours = EMAWeights.like(theirs)

    assert ours.decay == pytest.approx(0.97)
    assert (ours.update_every_n_steps, ours.update_starting_at_step) == (3, 7)


@pytest.mark.parametrize("options", [{"decay": 1.5}, {"update_every_n_steps": 0}])
def test_bad_arguments_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=f"{name} is .*; expected"):
        EMAWeights(**options)
