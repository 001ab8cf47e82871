from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks import LayerwiseLearningRates
from lit_gfs.errors import UserError
from lit_gfs.networks import PlainTrunk
from support.fakes import Records
from support.specs import discrete_spec
from support.training import MakeTrainer, regression_batches, replay_data, weights


class Regression(LightningModule):
    """A deep network under Adam, with a falling rate."""

    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 3)
        self.network = nn.Sequential(PlainTrunk(3, 4, 8), nn.Linear(8, 1))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), 0.01)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


HIDDEN = {f"network.0.layers.{index}.weight" for index in (3, 6, 9)}


def rates(model: LightningModule) -> dict[str, float]:
    (optimizer,) = model.trainer.optimizers
    by_parameter = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: by_parameter[p] for name, p in model.named_parameters()}


def test_hidden_matrices_learn_at_a_part_of_the_scheduled_rate(make_trainer: MakeTrainer) -> None:
    records, model, callback = Records(), Regression(), LayerwiseLearningRates()

    with pytest.warns(UserWarning, match=r"leaves the rates of unused\.weight as they were: forward does"):
        make_trainer(max_steps=3, logger=records, callbacks=[callback]).fit(model, regression_batches(4))

    for name, rate in rates(model).items():
        expected = 0.01 * 0.9**3 * (0.25 if name in HIDDEN else 1)
        assert rate == pytest.approx(expected), name
    assert {name for name, factor in callback.factors.items() if factor != 1} == HIDDEN
    written = {tag: value for tag, value in records.rows[0].items() if "layer_rates" in tag}
    assert written == {
        "intervention/layer_rates/scaled": 3,
        "intervention/layer_rates/smallest_factor": 0.25,
        "intervention/layer_rates/largest_factor": 1,
    }


@pytest.mark.filterwarnings("ignore:.*leaves the rates")
def test_a_resumed_run_ends_as_the_uninterrupted_one(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    def fit(max_epochs: int, checkpoint: Path | None = None) -> Regression:
        torch.manual_seed(0)
        model = Regression()
        saving = ModelCheckpoint(tmp_path, filename=f"{max_epochs}")
        make_trainer(max_epochs=max_epochs, callbacks=[LayerwiseLearningRates(), saving]).fit(
            model, regression_batches(4), ckpt_path=checkpoint
        )
        return model

    fit(1)
    whole, resumed = fit(3), fit(3, tmp_path / "1.ckpt")

    assert resumed.trainer.global_step == 12
    assert torch.equal(weights(resumed), weights(whole))
    assert rates(resumed) == rates(whole)


@pytest.mark.filterwarnings("ignore:.*leaves the rates")
def test_a_second_fit_does_not_scale_twice(make_trainer: MakeTrainer) -> None:
    model = Regression()
    trainer = make_trainer(max_epochs=1, callbacks=[LayerwiseLearningRates()])
    trainer.fit(model, regression_batches(2))
    trainer.fit_loop.max_epochs = 2
    optimizers = trainer.optimizers
    model.configure_optimizers = lambda: optimizers[0]

    trainer.fit(model, regression_batches(2))

    found = rates(model)
    assert {round(found[name] / found["network.0.layers.0.weight"], 6) for name in found} == {0.25, 1.0}


@pytest.mark.usefixtures("counting_envs")
def test_the_rate_that_is_reported_is_the_one_that_was_asked_for(make_trainer: MakeTrainer) -> None:
    source = replay_data(total_steps=32, eval_every=32, learning_starts=8, batch_size=4)
    agent = DQN(source.env_spec, trunk=lambda features: PlainTrunk(features, 3, 8))
    callback = LayerwiseLearningRates(rule="mup", base_width=4)

    make_trainer(callbacks=[callback]).fit(agent, source)

    assert agent.schedule_values()["schedule/learning_rate"] == pytest.approx(1e-3)
    halved = {name for name, factor in callback.factors.items() if factor == 0.5}
    assert halved == {
        "q_network.trunk.layers.3.weight",
        "q_network.trunk.layers.6.weight",
        "q_network.head.weight",
    }


@pytest.mark.parametrize("shared", [True, False])
def test_actor_and_critic_both_have_hidden_matrices(shared: bool, make_trainer: MakeTrainer) -> None:
    agent = PPO(discrete_spec(shape=(6,)), shared_network=shared, trunk=lambda size: PlainTrunk(size, 3, 8))
    callback, trainer = LayerwiseLearningRates(), make_trainer()
    trainer.strategy.connect(agent)
    agent.trainer = trainer
    trainer.strategy.optimizers = [torch.optim.Adam(agent.parameters())]

    callback.on_fit_start(trainer, agent)

    scaled = [name for name, factor in callback.factors.items() if factor != 1]
    assert len(scaled) == (2 if shared else 4)
    assert all("trunk" in name and ".0." not in name.split("trunk")[1] for name in scaled)


def test_mistakes_are_told_when_the_callback_is_built_or_fitting_starts(make_trainer: MakeTrainer) -> None:
    with pytest.raises(UserError, match="hidden_factor is -1"):
        LayerwiseLearningRates(hidden_factor=-1)
    model = Regression()
    model.example_input_array = None
    with pytest.raises(UserError, match="its example_input_array is None; expected an example"):
        make_trainer(callbacks=[LayerwiseLearningRates()]).fit(model, regression_batches(2))


@pytest.mark.filterwarnings("ignore:.*leaves the rates")
def test_a_rule_for_adam_warns_of_another_optimizer(make_trainer: MakeTrainer) -> None:
    model = Regression()
    model.configure_optimizers = lambda: torch.optim.SGD(model.parameters(), 0.01)

    with pytest.warns(UserWarning, match="rule mup, which is for Adam and its relatives, but .* is SGD"):
        make_trainer(max_steps=1, callbacks=[LayerwiseLearningRates("mup")]).fit(model, regression_batches(2))
