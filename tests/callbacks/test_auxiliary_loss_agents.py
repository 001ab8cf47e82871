"""Auxiliary losses on the learners of this package: captured, compiled, probed, in two processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_gfs.agents import DQN, PPO, PQN, Classifier
from lit_gfs.agents.learner import Learner
from lit_gfs.callbacks import (
    AuxiliaryLoss,
    ChurnPenalty,
    FeatureRegularization,
    IsotropicFeatures,
    L2Init,
    ParsevalRegularization,
)
from lit_gfs.datamodules import LabelShuffleDataModule, ReplayDataModule, RolloutDataModule
from lit_gfs.networks import PlainTrunk
from lit_gfs.utils import cuda_graphs
from support.auxiliary import FeatureNet, SmallFeatures, SmallWeights, fit
from support.fakes import Records
from support.training import MakeTrainer, weights

COMMON: dict[str, Any] = {"num_envs": 2, "total_steps": 96, "eval_every": 96, "eval_episodes": 1, "seed": 3}


def replay() -> ReplayDataModule:
    return ReplayDataModule("CartPole-v1", batch_size=8, learning_starts=16, steps_per_update=4, **COMMON)


def rollout() -> RolloutDataModule:
    return RolloutDataModule("CartPole-v1", rollout_steps=16, epochs=2, minibatches=2, **COMMON)


def labels() -> LabelShuffleDataModule:
    return LabelShuffleDataModule(samples=200, batch_size=64, shuffle_every=1, epochs=2, eval_every=1, seed=3)


def double(spec: Any, **options: Any) -> DQN:
    return DQN(spec, double=True, **options)


LEARNERS: Any = pytest.mark.parametrize(
    ("make", "data"),
    [
        pytest.param(double, replay, id="dqn"),
        pytest.param(PQN, rollout, id="pqn"),
        pytest.param(PPO, rollout, id="ppo"),
        pytest.param(Classifier, labels, id="classifier"),
    ],
)


class Centred(AuxiliaryLoss):
    """Features and what comes before them, both around 0."""

    def term(self, features: Tensor, pre_activations: Tensor) -> Tensor:
        return features.mean().square() + pre_activations.mean().square()


def terms() -> list[Callback]:
    return [SmallFeatures("features", 0.1), SmallWeights("weights", 0.01), Centred("centred", 0.1)]


def all_five() -> list[Callback]:
    return [
        IsotropicFeatures(),
        ChurnPenalty(coefficient=1.0, warmup=4),
        FeatureRegularization(),
        L2Init(),
        ParsevalRegularization(1e-5),
    ]


TERMS: Any = pytest.mark.parametrize("chosen", [terms, all_five], ids=["simple", "all five"])


def trained(
    make_trainer: MakeTrainer, make: Any, data: Any, callbacks: list[Callback], **options: Any
) -> tuple[Tensor, dict[int, dict[str, float]]]:
    torch.manual_seed(7)
    module: Learner = make(data.env_spec, trunk=lambda size: PlainTrunk(size, 2, 16), **options)
    logger = Records("loss/")
    make_trainer(logger=logger, log_every_n_steps=3, callbacks=callbacks).fit(module, data)
    rows = {
        step: {t: v for t, v in row.items() if t.startswith("loss/")} for step, row in logger.rows.items()
    }
    return weights(module), rows


def assert_alike(ours: Any, expected: Any) -> None:
    torch.testing.assert_close(ours[0], expected[0])
    assert ours[1].keys() == expected[1].keys()
    for step, values in expected[1].items():
        assert ours[1][step] == pytest.approx(values, rel=1e-4, abs=1e-6, nan_ok=True), step


@LEARNERS
@TERMS
def test_a_learner_records_the_terms_and_learns_by_them(
    make: Any, data: Callable[[], Any], chosen: Any, make_trainer: MakeTrainer
) -> None:
    ours, rows = trained(make_trainer, make, data(), chosen())
    without, _ = trained(make_trainer, make, data(), [])

    assert not torch.allclose(ours, without, atol=1e-4)
    for row in rows.values():
        assert {f"loss/{each.name}" for each in chosen()} <= row.keys()
    for each in chosen():
        assert any(row[f"loss/{each.name}"] > 0 for row in rows.values()), each.name


@LEARNERS
@pytest.mark.parametrize("chosen", [pytest.param(terms, marks=pytest.mark.slow), all_five])
def test_a_graph_captures_them(
    make: Any,
    data: Callable[[], Any],
    chosen: Any,
    make_trainer: MakeTrainer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = trained(make_trainer, make, data(), chosen(), cuda_graphs=False)
    monkeypatch.setattr(Learner, "graphed_devices", ("cpu", "cuda"))
    captured: list[bool] = []
    capture = cuda_graphs.Graphed._capture

    def noted(graphed: Any, *arguments: Any) -> Any:
        captured.append(graphed._train)
        return capture(graphed, *arguments)

    monkeypatch.setattr(cuda_graphs.Graphed, "_capture", noted)
    ours = trained(make_trainer, make, data(), chosen())

    assert captured.count(True) == 1
    assert_alike(ours, expected)


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Compile by a backend that needs no C++ compiler."""
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_(module, backend="aot_eager"))
    monkeypatch.setattr("lit_gfs.agents.learner.require_compiler", lambda device: None)
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("make", "data"),
    [
        pytest.param(double, replay, id="dqn"),  # the head is part of what is compiled
        pytest.param(PPO, rollout, id="ppo", marks=pytest.mark.slow),
    ],
)
def test_the_features_of_a_compiled_network_are_the_same(
    make: Any, data: Callable[[], Any], make_trainer: MakeTrainer
) -> None:
    expected = trained(make_trainer, make, data(), [*terms(), *all_five()])
    assert_alike(trained(make_trainer, make, data(), [*terms(), *all_five()], compile=True), expected)


@LEARNERS
def test_a_loss_that_is_asked_for_has_no_terms(
    make: Any, data: Callable[[], Any], make_trainer: MakeTrainer
) -> None:
    class Probe(Callback):
        def on_train_batch_end(
            self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int
        ) -> None:
            if batch is not None and trainer.global_step == 2:
                losses.append((pl_module.loss(batch), type(pl_module).training_step(pl_module, batch, 0)))

    losses: list[tuple[Tensor, Tensor]] = []
    trained(make_trainer, make, data(), [SmallWeights("weights", 100.0), Probe()])

    assert losses
    assert all(torch.equal(asked, own) for asked, own in losses)


class Ends(Callback):
    """Writes what each process ended with."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        torch.save(weights(pl_module), self.directory / f"{trainer.global_rank}.pt")


def test_two_processes_step_along_the_mean_of_their_gradients(tmp_path: Path) -> None:
    class OfRank(FeatureNet):
        """Learns from its first batch, shifted by the rank; one process is one rank after the other."""

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.batch = batch if batch_idx == 0 else self.batch
            rank = self.global_rank if self.trainer.world_size > 1 else batch_idx
            return super().training_step([self.batch[0] + rank, self.batch[1]], batch_idx)

    both = [SmallFeatures("features", 2.0), SmallWeights("weights", 0.1)]
    options: dict[str, Any] = {"use_distributed_sampler": False, "logger": False}
    fit(OfRank(), [*both, Ends(tmp_path)], 1, strategy="ddp_fork", devices=2, **options)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = OfRank()
    fit(alone, both, 1, accumulate_grad_batches=2, logger=False)

    assert torch.equal(first, second)
    torch.testing.assert_close(weights(alone).cpu(), first)


@pytest.mark.usefixtures("counting_envs")
def test_two_processes_of_an_agent_learn_alike(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    data = RolloutDataModule("Counting-v0", rollout_steps=8, epochs=2, minibatches=2, **COMMON)
    torch.manual_seed(0)
    callbacks = [*terms(), *all_five(), Ends(tmp_path)]
    make_trainer(strategy="ddp_fork", devices=2, callbacks=callbacks).fit(PPO(data.env_spec), data)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
