"""Representations of modules that are no agents, and what the monitor refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lit_gfs.callbacks.representation import RepresentationMonitor
from lit_gfs.errors import UserError
from support.fakes import Records
from support.representation import (
    CHURN,
    DORMANT,
    NotFirst,
    assert_no_hooks,
    dormancy,
    fit,
    layers_in,
    observations,
    ranks,
)
from support.training import MakeTrainer


class Classifier(LightningModule):
    """No agent: convolutions, a branch of its own learning, and a frozen copy that must not be watched."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 6)),
            nn.Conv1d(1, 5, 3),
            nn.LeakyReLU(0.01, inplace=True),
            nn.Flatten(),
            nn.Linear(20, 12, bias=False),
            nn.LayerNorm(12),
            nn.ReLU(inplace=True),
            nn.Linear(12, 6),
        )
        self.target = copy.deepcopy(self.net).requires_grad_(False)
        self.inputs: list[Tensor] = []
        self.networks: list[nn.Module] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (x,) = batch
        self.inputs.append(x)
        self.networks.append(copy.deepcopy(self.net))
        loss = (self.net(x) - self.target(x) + x).square().mean()
        with torch.no_grad():
            self.net(x + 100)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_any_module_is_watched_in_its_own_forward_pass(accumulate: int, make_trainer: MakeTrainer) -> None:
    module = Classifier()
    with torch.no_grad():
        module.net[1].weight[2], module.net[1].bias[2] = 0.0, 0.0
    rows = fit(
        module,
        RepresentationMonitor(every_n_steps=2, per_layer=True),
        make_trainer,
        steps=5,
        accumulate_grad_batches=accumulate,
    )
    assert sorted(rows) == [1, 3, 5]
    for step, row in rows.items():
        net, x = module.networks[step * accumulate - 1], module.inputs[step * accumulate - 1]
        conv, features = net[:3](x), net[:7](x)
        assert sorted(layers_in(row)) == ["net.1", "net.4"]
        assert row[DORMANT + "net.1"] == pytest.approx(dormancy(conv).mean())
        assert row[DORMANT + "net.4"] == pytest.approx(dormancy(features).mean())
        assert row["representation/srank"] == ranks(features)[0]
        assert row["representation/effective_rank"] == pytest.approx(ranks(features)[1], rel=1e-3)
        assert not any(tag in row for tag in CHURN)
    assert rows[1][DORMANT + "net.1"] == pytest.approx(0.2)


def test_a_training_batch_counts_with_256_states(make_trainer: MakeTrainer) -> None:
    module, records = Classifier(), Records("representation/srank")
    trainer = make_trainer(max_epochs=1, callbacks=[RepresentationMonitor()], logger=records)
    trainer.fit(module, observations(1, size=400))
    features = module.networks[0][:7](module.inputs[0][:256])
    assert records.rows[1]["representation/effective_rank"] == pytest.approx(ranks(features)[1], rel=1e-3)


def test_any_module_trains_bit_identically(make_trainer: MakeTrainer) -> None:
    ends = []
    for monitor in (None, RepresentationMonitor(every_n_steps=1, per_layer=True)):
        torch.manual_seed(0)
        module = Classifier()
        fit(module, monitor, make_trainer)
        ends.append(module.state_dict())
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_layers_that_the_backward_pass_runs_again_are_not_seen_twice(make_trainer: MakeTrainer) -> None:
    class Checkpointing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            hidden = checkpoint(self.net[:4], batch[0], use_reentrant=False)
            return self.net[4:](hidden).square().mean()

    module = Checkpointing()
    net = copy.deepcopy(module.net)
    row = fit(module, RepresentationMonitor(), make_trainer)[1]
    (x,) = next(iter(observations(4)))
    assert row["representation/effective_rank"] == pytest.approx(ranks(net[:7](x))[1], rel=1e-3)


def test_manual_optimization_without_the_trainers_backward(make_trainer: MakeTrainer) -> None:
    class Manual(Classifier):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.optimizers()
            optimizer.zero_grad()  # type: ignore[union-attr]
            super().training_step(batch, batch_idx).backward()
            optimizer.step()  # type: ignore[union-attr]

    rows = fit(Manual(), RepresentationMonitor(every_n_steps=3, per_layer=True), make_trainer)
    assert sorted(rows) == [1, 4]


def test_an_optimizer_that_computes_its_gradients_several_times(make_trainer: MakeTrainer) -> None:
    class Repeating(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.net.parameters(), lr=0.1, max_iter=4)

    module = Repeating()
    rows = fit(module, RepresentationMonitor(every_n_steps=2, per_layer=True), make_trainer, steps=3)
    assert sorted(rows) == [1, 3]
    assert len(module.networks) > 3
    assert rows[1]["representation/effective_rank"] == pytest.approx(
        ranks(module.networks[0][:7](module.inputs[0]))[1], rel=1e-3
    )


def test_a_crash_leaves_no_hooks(make_trainer: MakeTrainer) -> None:
    class Crashing(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise RuntimeError("diverged")

    module = Crashing()
    with pytest.raises(RuntimeError, match="diverged"):
        fit(module, RepresentationMonitor(), make_trainer)
    assert_no_hooks(module)


def test_a_second_trainer_begins_anew(make_trainer: MakeTrainer) -> None:
    monitor = RepresentationMonitor(every_n_steps=3, per_layer=True)
    assert sorted(fit(Classifier(), monitor, make_trainer, steps=5)) == [1, 4]
    assert sorted(fit(Classifier(), monitor, make_trainer, steps=5)) == [1, 4]


def test_other_ranks_measure_nothing(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not fit(Classifier(), RepresentationMonitor(), make_trainer, callbacks=[NotFirst(monkeypatch)])


class Bare(Classifier):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(*layers)
        self.target = nn.Identity()


def test_a_module_without_layers_or_activations_is_refused(make_trainer: MakeTrainer) -> None:
    with pytest.raises(
        UserError, match=r"Bare has no activation module: expected at least one, such as nn\.ReLU"
    ):
        fit(Bare(nn.Linear(6, 6)), RepresentationMonitor(), make_trainer)
    with pytest.raises(UserError, match="Bare has no trainable layer: expected at least one"):
        fit(Bare(nn.LayerNorm(6), nn.ReLU()), RepresentationMonitor(), make_trainer)


@pytest.mark.parametrize(
    ("argument", "value", "expected"),
    [("every_n_steps", 0, "at least 1"), ("tau", -0.1, "between 0 and 1"), ("tau", 2.0, "between 0 and 1")],
)
def test_arguments_are_checked(argument: str, value: float, expected: str) -> None:
    with pytest.raises(UserError, match=f"{argument} is {value}; expected a number {expected}"):
        RepresentationMonitor(**{argument: value})  # type: ignore[arg-type]
