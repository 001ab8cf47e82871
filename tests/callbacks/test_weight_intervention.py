"""Callbacks that change weights act after each step that is taken, and after no other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_gfs.callbacks import EMAWeights, NaNGuard
from lit_gfs.callbacks.weight_intervention import SteppedLayers, WeightIntervention
from lit_gfs.errors import UserError
from lit_gfs.plasticity.taken_steps import undone_where
from support.intervened import Net, fit, make_net
from support.training import quiet_trainer, regression_batches, weights


class Halving(WeightIntervention):
    """Halves all weights after each step, and returns how many it has halved so far."""

    def __init__(self, name: str = "halving") -> None:
        super().__init__(name)
        self.halved = 0
        self.changes = 0

    def layers_changed(self, pl_module: LightningModule, part: SteppedLayers) -> None:
        self.changes += 1

    def intervene(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        torch._foreach_mul_(part.weights(), 0.5)
        self.halved += 1
        return {"halved": torch.tensor(float(self.halved)), "steps": torch.tensor(float(part.steps))}

    def saved(self) -> dict[str, Any]:
        return {"halved": self.halved}

    def restore(self, saved: dict[str, Any]) -> None:
        self.halved = saved["halved"]


class Watch(Callback):
    """Keeps the weights at the end of each batch."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
        self.seen.append(weights(pl_module))


def sgd(rate: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=rate)


def test_it_acts_once_after_each_step_on_trained_layers_alone() -> None:
    net = make_net(sgd(0.0))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    fit(net, [Halving()], 3)
    for name, parameter in net.named_parameters():
        factor = 1 if name.startswith("frozen") else 0.5**3
        assert torch.equal(parameter, before[name] * factor), name


def test_it_does_what_a_loop_by_hand_does() -> None:
    net, by_hand = make_net(), make_net()
    fit(net, [Halving()], 4)
    optimizer = by_hand.configure_optimizers()
    for index, batch in enumerate(regression_batches(4)):
        optimizer.zero_grad()
        by_hand.training_step(batch, index).backward()
        optimizer.step()
        with torch.no_grad():
            for parameter in by_hand.parameters():
                parameter.mul_(0.5 if parameter.requires_grad else 1.0)
    assert torch.equal(weights(net), weights(by_hand))


def test_accumulated_gradients_are_one_step() -> None:
    callback = Halving()
    fit(make_net(), [callback], 3, accumulate_grad_batches=4)
    assert callback.halved == 3


def test_means_over_the_steps_since_the_last_write_are_written() -> None:
    rows = fit(make_net(), [Halving()], 8)
    assert {step: row["intervention/halving/halved"] for step, row in rows.items()} == {5: 3.0, 8: 7.0}
    assert all(
        row["intervention/halving/steps"] == row["intervention/halving/halved"] for row in rows.values()
    )


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.filterwarnings("ignore:.*is skipped")
def test_a_step_that_the_guard_skips_changes_no_weight(value: float) -> None:
    net, callback, watch = make_net(), Halving(), Watch()
    net.poisoned[2] = value
    fit(net, [NaNGuard(), callback, watch], 4)
    assert torch.equal(watch.seen[1], watch.seen[2])
    assert not torch.equal(watch.seen[2], watch.seen[3])
    assert callback.halved == 3


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_loss_scaler_skips_changes_no_weight(fused: bool) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.01, fused=fused)

    net, callback, watch = make_net(optimizer), Halving(), Watch()
    net.poisoned[2] = math.inf
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=16.0))
    fit(net, [callback, watch], 4, plugins=[precision], accelerator="cpu")
    assert torch.equal(watch.seen[1], watch.seen[2])
    assert not torch.equal(watch.seen[2], watch.seen[3])
    assert callback.halved == 3


def test_a_batch_without_a_loss_changes_no_weight() -> None:
    class Missing(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) if batch_idx != 1 else None  # type: ignore

    torch.manual_seed(0)
    callback, watch = Halving(), Watch()
    fit(Missing(), [callback, watch], 3)
    assert torch.equal(watch.seen[0], watch.seen[1])
    assert callback.halved == 2


def test_the_device_undoes_what_its_flag_forbids() -> None:
    kept = [torch.randn(5), torch.randn(2, 3)]
    for flag, factor in ((0.0, 3.0), (1.0, 1.0)):
        changed = [each.clone() for each in kept]
        with undone_where(torch.tensor(flag), changed):
            torch._foreach_mul_(changed, 3.0)
        assert all(torch.equal(*pair) for pair in zip(changed, [factor * each for each in kept], strict=True))


class ByHand(Net):
    """Optimizes by hand with two optimizers, which take turns."""

    def __init__(self, use_pl_optimizer: bool = True) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.use_pl_optimizer = use_pl_optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
        optimizers: Any = self.optimizers(use_pl_optimizer=self.use_pl_optimizer)
        optimizer = optimizers[batch_idx % 2]
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, 0))
        optimizer.step()

    def configure_optimizers(self) -> Any:
        rest = [*self.shared.parameters(), *self.sometimes.parameters(), *self.last.parameters()]
        return [torch.optim.SGD(self.first.parameters(), lr=0.0), torch.optim.SGD(rest, lr=0.0)]


@pytest.mark.parametrize("use_pl_optimizer", [True, False])
def test_each_optimizer_changes_its_own_layers(use_pl_optimizer: bool) -> None:
    torch.manual_seed(0)
    net = ByHand(use_pl_optimizer)
    first, last = net.first.weight.detach().clone(), net.last.weight.detach().clone()
    fit(net, [Halving()], -1, max_epochs=1, limit_train_batches=5)
    assert torch.equal(net.first.weight, first * 0.5**3)
    assert torch.equal(net.last.weight, last * 0.5**2)


def test_averaged_weights_are_those_after_the_intervention() -> None:
    net, average = make_net(sgd(0.0)), EMAWeights(decay=0.5)
    before = net.first.weight.detach().clone()
    fit(net, [average, Halving()], 2)
    # The first average is the weights, halved once; the second is the mean of 1/2 and 1/4.
    assert average._average_model is not None
    torch.testing.assert_close(net.first.weight.detach(), before * 0.375)


def test_a_run_resumes_with_its_counts_and_sums(tmp_path: Path) -> None:
    checkpoints = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    whole, callback = make_net(), Halving()
    rows = fit(whole, [callback, checkpoints], 28, log_every_n_steps=7)
    resumed, again = make_net(), Halving()
    # At the end of an epoch, and between two writes.
    later = fit(resumed, [again], 28, log_every_n_steps=7, ckpt_path=tmp_path / "step=10.ckpt")
    assert torch.equal(weights(whole), weights(resumed))
    assert again.state_dict()["steps"] == callback.state_dict()["steps"] == [28]
    assert again.halved == 28
    assert later == {step: row for step, row in rows.items() if step > 10}


def test_the_same_trainer_fits_on() -> None:
    net, callback = make_net(), Halving()
    trainer = quiet_trainer(max_steps=2, callbacks=[callback])
    trainer.fit(net, regression_batches(4))
    trainer.fit_loop.epoch_loop.max_steps = 3
    trainer.fit(net, regression_batches(4))
    assert callback.halved == 3
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_a_layer_that_is_thawed_joins() -> None:
    class Thaws(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.frozen.requires_grad_(batch_idx >= 1)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.0)

    torch.manual_seed(0)
    net, callback = Thaws(), Halving()
    before = net.frozen.weight.detach().clone()
    fit(net, [callback], 3)
    assert torch.equal(net.frozen.weight, before * 0.5**2)
    assert callback.changes == 1


def test_an_interrupted_fit_leaves_no_hook() -> None:
    class Breaks(Net):
        def on_train_batch_end(self, *batch: Any) -> None:
            raise RuntimeError("broken off")

    net = Breaks()
    trainer = quiet_trainer(max_steps=2, callbacks=[Halving()])
    with pytest.raises(RuntimeError, match="broken off"):
        trainer.fit(net, regression_batches(2))
    assert not trainer.optimizers[0]._optimizer_step_post_hooks


def test_a_module_without_layers_is_named() -> None:
    class Bare(Net):
        def named_layers(self) -> dict[str, nn.Module]:
            return {}

    with pytest.raises(UserError, match="Halving found no layer to work on: Bare"):
        fit(Bare(), [Halving()], 1)


def test_a_strategy_that_shards_weights_is_refused() -> None:
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(MisconfigurationException, match="Halving needs whole weights on each rank"):
        Halving().setup(trainer, make_net(), "fit")


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(UserError, match="name is empty"):
        Halving("")
