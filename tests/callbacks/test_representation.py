"""Representations of agents, ours and of one's own."""

from __future__ import annotations

import copy
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks.representation import RepresentationMonitor
from lit_gfs.networks import DenseTrunk, MultiSkipTrunk, PlainTrunk, ResidualTrunk
from support.accelerator import ACCELERATOR
from support.fakes import Records
from support.representation import (
    CHURN,
    DORMANT,
    NotFirst,
    assert_no_hooks,
    dormancy,
    fit,
    layers_in,
    ranks,
)
from support.training import MakeTrainer, replay_data, rollout_data

# -- our agents ----------------------------------------------------------------------------------------------


replay = partial(replay_data, total_steps=80, eval_episodes=1, seed=1)  # with which few steps turn actions
rollouts = partial(rollout_data, eval_every=1000, eval_episodes=1, seed=0)


def fast(parameters: Any) -> torch.optim.Optimizer:
    """Steps that are large enough to turn actions."""
    return torch.optim.Adam(parameters, lr=0.03)


def build(name: str, data: Any, **arguments: Any) -> DQN | PPO:
    torch.manual_seed(0)
    agents = {"dqn": DQN, "ppo": PPO}
    return agents[name](data.env_spec, optimizer=fast, **arguments)


DATA = {"dqn": replay, "ppo": rollouts}


class Witness(Callback):
    """Copies the policy before and after every optimizer step, and its probe batch."""

    def __init__(self) -> None:
        self.before: list[tuple[Tensor, nn.Module]] = []
        self.after: dict[int, nn.Module] = {}

    @staticmethod
    def network(pl_module: Any) -> nn.Module:
        owner = pl_module.q_network if isinstance(pl_module, DQN) else pl_module.actor_critic.policy_network
        return copy.deepcopy(nn.ModuleDict({"trunk": owner.trunk, "head": pl_module.policy_head}))

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.before.append((pl_module.probe_batch().clone(), self.network(pl_module)))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.after.setdefault(trainer.global_step, self.network(pl_module))


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_an_agent_is_measured_before_the_step_and_its_churn_over_the_step(
    name: str, make_trainer: MakeTrainer
) -> None:
    data, records, witness = DATA[name](), Records("representation/srank"), Witness()
    agent = build(name, data)
    by_step: dict[int, int] = {}  # the step of each row, as rows stand at environment steps

    class Clock(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            for at in records.rows.keys() - by_step.keys():
                by_step[at] = trainer.global_step

    monitor = RepresentationMonitor(every_n_steps=5, per_layer=True, tau=0.5)
    make_trainer(callbacks=[witness, monitor, Clock()], logger=records).fit(agent, data)

    steps = sorted(by_step.values())
    assert steps == list(range(1, len(witness.before) + 1, 5))
    assert len(steps) > 2
    # What changed at all, so that the comparison is not one of zeros.
    moved = dict.fromkeys(CHURN, 0.0)
    for at, row in records.rows.items():
        probe, before = witness.before[by_step[at] - 1]
        after = witness.after[by_step[at]]
        hidden = before["trunk"].layers[:3](probe)
        features = before["trunk"](probe)
        units = [dormancy(hidden, 0.5), dormancy(features, 0.5)]
        assert layers_in(row) == ["trunk.layer_01", "trunk.layer_02"]
        for layer, dormant in zip(layers_in(row), units, strict=True):
            assert row[DORMANT + layer] == pytest.approx(dormant.mean())
        assert row["representation/dormant_share"] == pytest.approx(np.concatenate(units).mean())
        expected_srank, expected_rank = ranks(features)
        assert row["representation/srank"] == expected_srank
        assert row["representation/effective_rank"] == pytest.approx(expected_rank, rel=1e-3)
        expected_norm = features.square().sum(1).sqrt().mean().item()
        assert row["representation/feature_norm"] == pytest.approx(expected_norm, rel=1e-4)
        moves = {
            "policy/churn": after["head"](after["trunk"](probe)),
            "policy/churn_representation": before["head"](after["trunk"](probe)),
            "policy/churn_head": after["head"](features),
        }
        for tag, outputs in moves.items():
            changed = (outputs.argmax(1) != before["head"](features).argmax(1)).float().mean().item()
            assert row[tag] == pytest.approx(changed)
            moved[tag] += changed
    assert all(moved.values()), moved
    assert_no_hooks(agent)


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize(
    ("name", "options"),
    # With a bound on the divergence, PPO's loader hands out None for the rest of a rollout.
    [("dqn", {}), ("ppo", {}), ("ppo", {"target_kl": 0.001, "normalize_observation": True})],
)
def test_training_is_bit_identical_with_and_without_the_monitor(
    name: str, options: dict[str, Any], make_trainer: MakeTrainer
) -> None:
    def run(callbacks: list[Callback]) -> tuple[dict[str, Tensor], Tensor, int]:
        data = DATA[name]()
        agent = build(name, data, **options)
        trainer = make_trainer(callbacks=callbacks, logger=Records("representation/srank"))
        trainer.fit(agent, data)
        return agent.state_dict(), torch.get_rng_state(), trainer.global_step

    weights, generator, steps = run([])
    watched_weights, watched_generator, watched_steps = run(
        [RepresentationMonitor(every_n_steps=1, per_layer=True)]
    )

    assert steps == watched_steps
    assert weights.keys() == watched_weights.keys()
    assert all(torch.equal(weights[key], watched_weights[key]) for key in weights)
    assert torch.equal(generator, watched_generator)


@pytest.mark.usefixtures("counting_envs")
def test_batches_that_are_skipped_are_not_measured(make_trainer: MakeTrainer) -> None:
    data, records = rollouts(minibatches=4), Records("representation/srank")
    agent = build("ppo", data, target_kl=1e-4)
    trainer = make_trainer(callbacks=[RepresentationMonitor(every_n_steps=1, per_layer=True)], logger=records)
    trainer.fit(agent, data)
    batches = trainer.fit_loop.epoch_loop.batch_progress.total.completed
    assert 0 < trainer.global_step < batches
    assert len(records.calls) == trainer.global_step


TRUNKS = {
    PlainTrunk: ["layer_01", "layer_02", "layer_03", "layer_04"],
    ResidualTrunk: ["branch_01.first", "branch_01.second", "output_01"],
    MultiSkipTrunk: ["input_01", "branch_01.layer_01", "branch_01.layer_02", "output_01"],
    DenseTrunk: ["layer_01", "layer_02", "layer_03", "layer_04"],
}


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("trunk", TRUNKS)
def test_activations_are_named_after_the_weight_layer_before_them(
    trunk: Any, norm: str, make_trainer: MakeTrainer
) -> None:
    data, records = replay(total_steps=24), Records("representation/srank")
    agent = build("dqn", data, trunk=lambda inputs: trunk(inputs, depth=4, width=8, norm=norm))
    make_trainer(callbacks=[RepresentationMonitor(per_layer=True)], logger=records).fit(agent, data)
    (row,) = records.rows.values()
    assert layers_in(row) == [f"trunk.{layer}" for layer in TRUNKS[trunk]]


@pytest.mark.usefixtures("counting_envs")
def test_the_schedule_goes_on_after_a_resume(make_trainer: MakeTrainer, tmp_path: Any) -> None:
    def run(steps: int, ckpt_path: Any = None, every: int = 4) -> list[int]:
        noted: list[int] = []

        class Monitor(RepresentationMonitor):
            state_key = "RepresentationMonitor"

            def _measure(self, trainer: Trainer, features: Tensor) -> None:
                noted.append(trainer.global_step)
                super()._measure(trainer, features)

        data = replay(total_steps=400)
        trainer = make_trainer(callbacks=[Monitor(every_n_steps=every, per_layer=True)], max_steps=steps)
        trainer.fit(build("dqn", data), data, ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / f"{steps}.ckpt")
        return noted

    assert run(6) == [0, 4]
    assert run(8) == [0, 4]
    assert run(17, tmp_path / "6.ckpt") == [8, 12, 16]
    assert run(17, tmp_path / "8.ckpt") == [8, 12, 16]
    assert run(17, tmp_path / "6.ckpt", every=3) == [6, 9, 12, 15]


# -- a policy of one's own -----------------------------------------------------------------------------------


class Imitator(LightningModule):
    """A user's own agent, with everything in it that a careless extra pass would disturb."""

    def __init__(self, discrete: bool = False, conv: bool = False, probe_from: int = 0) -> None:
        super().__init__()
        self.env_spec = SimpleNamespace(is_discrete=discrete)
        inputs = [nn.Unflatten(1, (1, 6, 1)), nn.Conv2d(1, 6, 1), nn.ReLU(), nn.Flatten()] if conv else []
        self.body = nn.Sequential(
            *inputs,
            spectral_norm(nn.Linear(36 if conv else 6, 16)),
            nn.BatchNorm1d(16),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.policy_head = nn.Linear(16, 3)
        self.critic = nn.Linear(6, 1)
        self.probe_from = probe_from
        self.observations = torch.randn(20, 6, generator=torch.Generator().manual_seed(2))
        self.seen: list[tuple[Tensor, Tensor]] = []

    def probe_batch(self) -> Tensor | None:
        return self.observations if self.trainer.global_step >= self.probe_from else None

    def policy_features(self, observation: Tensor) -> Tensor:
        return self.body(observation) + 0.01 * torch.rand(1, device=self.device)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        return (self.policy_head(self.policy_features(x)) - x[:, :3]).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([*self.body.parameters(), *self.policy_head.parameters()], lr=0.5)


@pytest.mark.parametrize("conv", [False, True])
def test_noise_dropout_and_batch_statistics_are_not_disturbed(conv: bool, make_trainer: MakeTrainer) -> None:
    ends = []
    for monitor in (None, RepresentationMonitor(every_n_steps=1, per_layer=True)):
        torch.manual_seed(0)
        module = Imitator(conv=conv)
        module.critic.eval()  # by choice: nobody may switch it back
        rows = fit(module, monitor, make_trainer)
        assert len(rows) == (0 if monitor is None else 4)
        assert [child for child in module.modules() if not child.training] == [module.critic]
        ends.append((module.state_dict(), torch.get_rng_state()))
    (weights, generator), (watched_weights, watched_generator) = ends
    assert all(torch.equal(weights[key], watched_weights[key]) for key in weights)
    assert torch.equal(generator, watched_generator)


class Grown(Imitator):
    """Without noise, to be computed by hand."""

    def policy_features(self, observation: Tensor) -> Tensor:
        return self.body(observation)


class Outputs(Callback):
    """Keeps copies of the policy around every step."""

    def __init__(self) -> None:
        self.pairs: list[list[nn.Module]] = []

    def copy(self, module: Any) -> nn.Module:
        return copy.deepcopy(nn.ModuleDict({"body": module.body, "head": module.policy_head})).eval()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.pairs.append([self.copy(pl_module)])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.pairs and len(self.pairs[-1]) == 1:
            self.pairs[-1].append(self.copy(pl_module))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_continuous_actions_churn_by_the_change_of_their_mean(
    accumulate: int, make_trainer: MakeTrainer
) -> None:
    module, outputs = Grown(), Outputs()
    rows = fit(
        module,
        RepresentationMonitor(every_n_steps=2, per_layer=True),
        make_trainer,
        callbacks=[outputs],
        accumulate_grad_batches=accumulate,
    )
    assert sorted(rows) == [1, 3]
    for step, row in rows.items():
        before, after = outputs.pairs[step - 1]
        old, new = before["body"](module.observations), after["body"](module.observations)
        base = before["head"](old)
        for tag, moved in (
            ("policy/churn", after["head"](new)),
            ("policy/churn_representation", before["head"](new)),
            ("policy/churn_head", after["head"](old)),
        ):
            assert row[tag] == pytest.approx((moved - base).abs().mean().item(), rel=1e-4)
            assert row[tag] > 0
        assert layers_in(row) == ["body.0"]
        assert row[DORMANT + "body.0"] == pytest.approx(dormancy(old).mean())


def test_the_first_measurement_waits_for_a_probe_batch(make_trainer: MakeTrainer) -> None:
    rows = fit(
        Imitator(probe_from=3), RepresentationMonitor(every_n_steps=4, per_layer=True), make_trainer, steps=10
    )
    assert sorted(rows) == [4, 5, 9]


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true", "64-true"])
def test_other_precisions(precision: str, make_trainer: MakeTrainer) -> None:
    class Plain(Grown):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 16), nn.Tanh())
            self.dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

        def policy_features(self, observation: Tensor) -> Tensor:
            features = super().policy_features(observation)
            self.dtypes[self.training].add(features.dtype)
            return features

    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        options = {"plugins": MixedPrecision("16-mixed", ACCELERATOR, torch.amp.GradScaler(ACCELERATOR))}
    torch.manual_seed(0)
    module = Plain()
    start = copy.deepcopy(module.body)(module.observations)
    rows = fit(module, RepresentationMonitor(), make_trainer, **options)
    assert rows[1]["representation/feature_norm"] == pytest.approx(
        start.square().sum(1).sqrt().mean().item(), rel=0.02
    )
    assert all(math.isfinite(value) for value in rows[1].values())
    assert all(rows[1][tag] > 0 for tag in CHURN)
    assert module.dtypes[True] == module.dtypes[False]  # in training as in the probe's passes


class TwoOptimizers(Grown):
    """The critic steps first, and the policy only every other batch."""

    automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.critic.parameters(), lr=0.1), super().configure_optimizers()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        critic, actor = self.optimizers()  # type: ignore[misc]
        self.manual_backward(self.critic(batch[0]).square().mean())
        critic.step()
        critic.zero_grad()
        if batch_idx % 2:
            self.manual_backward(super().training_step(batch, batch_idx))
            actor.step()
            actor.zero_grad()


def test_churn_is_that_of_the_optimizer_which_moves_the_policy(make_trainer: MakeTrainer) -> None:
    # global_step counts both: the policy steps at 2, 5, 8, 11.
    rows = fit(TwoOptimizers(), RepresentationMonitor(every_n_steps=4, per_layer=True), make_trainer, steps=8)
    assert sorted(rows) == [3, 6, 9]
    assert all(row[tag] > 0 for row in rows.values() for tag in CHURN)


def test_the_other_optimizers_steps_do_not_move_the_schedule(make_trainer: MakeTrainer) -> None:
    class CriticLast(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            critic, actor = self.optimizers()  # type: ignore[misc]
            for optimizer, loss in (
                (actor, Grown.training_step(self, batch, 0)),
                (critic, self.critic(batch[0]).mean()),
            ):
                self.manual_backward(loss)
                optimizer.step()
                optimizer.zero_grad()

    # The policy moves when global_step is 0, 2, 4 ...; the critic's step from 3 on is in the next period.
    rows = fit(
        CriticLast(probe_from=2),
        RepresentationMonitor(every_n_steps=3, per_layer=True),
        make_trainer,
        steps=8,
    )
    assert sorted(rows) == [4, 6, 8, 12, 14]


def test_a_network_that_is_not_finite_is_reported_and_training_goes_on(make_trainer: MakeTrainer) -> None:
    module = Grown(discrete=True)
    with torch.no_grad():
        module.policy_head.weight[0, 0] = module.body[0].bias[3] = math.nan
    rows = fit(module, RepresentationMonitor(every_n_steps=3, per_layer=True), make_trainer)
    assert sorted(rows) == [1, 4]
    assert all(math.isnan(value) for value in rows[1].values())


def test_other_ranks_measure_nothing(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fit(Imitator(), RepresentationMonitor(), make_trainer, callbacks=[NotFirst(monkeypatch)])
