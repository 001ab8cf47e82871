from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks.path_init import PathSensitiveInit
from lit_gfs.errors import UserError
from lit_gfs.networks import DenseTrunk, ImpalaCNN, MultiSkipTrunk, NatureCNN, PlainTrunk, ResidualTrunk
from support.fakes import Records
from support.specs import continuous_spec, discrete_spec
from support.training import MakeTrainer, replay_data, weights


class Regression(LightningModule):
    """A residual network that learns nothing: its learning rate is 0 unless told otherwise."""

    def __init__(self, learning_rate: float = 0.0) -> None:
        super().__init__()
        self.example_input_array = torch.zeros(1, 8)
        self.network = nn.Sequential(ResidualTrunk(8, 8, 8), nn.Linear(8, 1))
        self.learning_rate = learning_rate
        self.drawn: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.drawn = torch.rand(())
        return self(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        return None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), self.learning_rate)


def data(count: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(torch.ones(count, 8)), batch_size=1)


def is_orthogonal(weight: Tensor) -> bool:
    product = (weight @ weight.T).detach()
    return torch.allclose(product, product[0, 0] * torch.eye(len(weight)), rtol=1e-3, atol=1e-5)


def test_a_fresh_run_is_initialized_and_reported(make_trainer: MakeTrainer) -> None:
    records = Records()
    model, callback = Regression(), PathSensitiveInit()

    make_trainer(max_epochs=1, logger=records, callbacks=[callback]).fit(model, data())

    branch = model.network[0].branches[0].first.weight
    assert is_orthogonal(branch)
    scale = callback.report.branch_scales["network.0.branches.0.first"]
    assert float(torch.linalg.svdvals(branch.detach())[0]) == pytest.approx(scale * 2**0.5, rel=1e-4)
    written = {tag.removeprefix("intervention/path_init/"): value for tag, value in records.rows[0].items()}
    assert written["branch_scale"] == pytest.approx(scale)
    assert written["optional_layers"] == 6
    assert written["layers"] == 9
    assert written["mirrored_layers"] == 0
    assert written["first_biases"] == written["zero_branches"] == 0


def test_it_leaves_a_resumed_run_alone(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    model = Regression(learning_rate=0.1)
    make_trainer(
        max_epochs=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(tmp_path, filename="saved")]
    ).fit(model, data())
    resumed, callback = Regression(), PathSensitiveInit()

    make_trainer(max_epochs=2, callbacks=[callback]).fit(resumed, data(), ckpt_path=tmp_path / "saved.ckpt")

    assert callback.report is None
    assert resumed.trainer.global_step == 8
    model_after = Regression(learning_rate=0.1)
    make_trainer(max_epochs=2).fit(model_after, data(), ckpt_path=tmp_path / "saved.ckpt")
    assert torch.equal(weights(resumed), weights(model_after))


def test_it_leaves_a_trainer_alone_that_fits_on(make_trainer: MakeTrainer) -> None:
    model = Regression(learning_rate=0.01)
    trainer = make_trainer(max_epochs=1, callbacks=[PathSensitiveInit()])
    trainer.fit(model, data())
    before = weights(model)
    model.learning_rate = 0.0

    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, data())

    assert trainer.global_step == 8
    assert torch.equal(weights(model), before)


def test_it_leaves_validation_alone(make_trainer: MakeTrainer) -> None:
    model = Regression()
    before = weights(model)

    make_trainer(callbacks=[PathSensitiveInit()]).validate(model, data(), verbose=False)

    assert torch.equal(weights(model), before)


def test_the_seed_decides_and_later_draws_are_those_of_a_run_without_it(make_trainer: MakeTrainer) -> None:
    drawn, found = [], []
    for seed, callbacks in (
        (0, []),
        (0, [PathSensitiveInit()]),
        (0, [PathSensitiveInit()]),
        (1, [PathSensitiveInit()]),
    ):
        model = Regression()
        torch.manual_seed(seed)
        make_trainer(max_steps=1, callbacks=callbacks).fit(model, data())
        drawn.append(float(model.drawn))
        found.append(weights(model))

    assert drawn[0] == drawn[1] == drawn[2] != drawn[3]
    assert torch.equal(found[1], found[2])
    assert not torch.equal(found[1], found[3])


@pytest.mark.usefixtures("counting_envs")
def test_a_target_network_starts_equal_to_the_online_one(make_trainer: MakeTrainer) -> None:
    class Compare(Callback):
        equal: bool | None = None

        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            self.equal = torch.equal(weights(pl_module.q_network), weights(pl_module.target_network))

    source = replay_data(total_steps=32, eval_every=32, learning_starts=8, batch_size=4)
    agent, compare, init = DQN(source.env_spec), Compare(), PathSensitiveInit(mirrored=True)
    before = weights(agent.q_network)

    make_trainer(callbacks=[init, compare]).fit(agent, source)

    assert compare.equal
    assert init.report.mirrored == ["q_network.trunk.layers.0", "q_network.trunk.layers.3"]
    assert not torch.allclose(weights(agent.q_network), before, atol=0.05)


def test_first_biases_are_drawn_and_counted(make_trainer: MakeTrainer) -> None:
    records = Records()
    model, callback = Regression(), PathSensitiveInit(mirrored=True, first_bias=0.5)
    model.network = nn.Sequential(PlainTrunk(8, 3, 8), nn.Linear(8, 1))

    make_trainer(max_epochs=1, logger=records, callbacks=[callback]).fit(model, data())

    assert records.rows[0]["intervention/path_init/first_biases"] == 1
    assert 0 < float(model.network[0].layers[0].bias.detach().abs().max()) <= 0.5
    assert not model.network[0].layers[3].bias.any()


def test_zero_branches_are_set_and_counted(make_trainer: MakeTrainer) -> None:
    records = Records()
    model, callback = Regression(), PathSensitiveInit(branches="zero")

    make_trainer(max_epochs=1, logger=records, callbacks=[callback]).fit(model, data())

    assert records.rows[0]["intervention/path_init/zero_branches"] == 3
    assert not any(branch.second.weight.any() for branch in model.network[0].branches)


TRUNKS = {
    "plain": partial(PlainTrunk, depth=5, width=16),
    "residual": partial(ResidualTrunk, depth=8, width=16, norm="layer"),
    "multi-skip": partial(MultiSkipTrunk, depth=8, width=16),
    "dense": partial(DenseTrunk, depth=4, width=16),
}


CASES = [(agent, None) for agent in ("dqn", "ppo", "shared ppo", "continuous ppo")]
CASES += [("shared ppo", encoder) for encoder in (NatureCNN, ImpalaCNN)]


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize(("agent", "encoder"), CASES)
def test_every_agent_with_every_network(
    agent: str, encoder: Any, trunk: str, make_trainer: MakeTrainer
) -> None:
    shape = (6,) if encoder is None else (2, 36, 36)
    arguments: dict[str, Any] = {"encoder": encoder, "trunk": TRUNKS[trunk]}
    if agent == "dqn":
        module: LightningModule = DQN(discrete_spec(shape=shape), **arguments)
        module.on_weights_initialized = lambda: None  # there is no datamodule that counts steps
    else:
        dtype = "float32" if encoder is None else "uint8"
        continuous = agent.startswith("continuous")
        spec = continuous_spec(shape=shape) if continuous else discrete_spec(shape=shape, dtype=dtype)
        module = PPO(spec, shared_network=agent.startswith("shared"), **arguments)
    callback, trainer = PathSensitiveInit(), make_trainer()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}

    callback.on_fit_start(trainer, module)

    assert callback.report is not None
    for name, share in callback.report.shares.items():
        assert 0 < share <= 1, name
        on_branch = "branch" in name
        assert (share < 1) == on_branch, name
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    changed = {
        name for name, parameter in module.named_parameters() if not torch.equal(parameter, before[name])
    }
    assert changed == {f"{name}.weight" for name in callback.report.shares}
    assert changed <= trained
    output = module(torch.rand(4, *shape))
    outputs = (output,) if isinstance(output, Tensor) else output
    assert all(value.isfinite().all() and value.abs().max() < 20 for value in outputs)


def test_ranks_start_alike(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    class Report(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            torch.save(weights(pl_module), tmp_path / f"{trainer.global_rank}.pt")

    class Scatter(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            torch.manual_seed(trainer.global_rank)

    callbacks = [Scatter(), PathSensitiveInit(), Report()]
    make_trainer(strategy="ddp_fork", devices=2, max_steps=1, callbacks=callbacks).fit(Regression(), data())

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)


def test_a_module_without_an_example_input_is_told_so(make_trainer: MakeTrainer) -> None:
    model = Regression()
    model.example_input_array = None

    with pytest.raises(UserError, match="its example_input_array is None; expected an example"):
        make_trainer(callbacks=[PathSensitiveInit()]).fit(model, data())
