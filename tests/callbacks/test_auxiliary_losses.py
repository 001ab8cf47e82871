"""What each of the auxiliary losses does, on a module that knows nothing of reinforcement learning."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lit_gfs.callbacks import (
    AuxiliaryLoss,
    ChurnPenalty,
    FeatureRegularization,
    IsotropicFeatures,
    L2Init,
    ParsevalRegularization,
    PathSensitiveInit,
)
from lit_gfs.errors import UserError
from lit_gfs.functional.auxiliary_losses import isotropy_penalty, parseval_penalty, unit_directions
from lit_gfs.steps.objective_shift import announce_objective_shift
from lit_gfs.utils.seeding import derive_seed
from support.accelerator import ACCELERATOR
from support.auxiliary import FeatureNet, fit
from support.training import regression_batches, weights

LOSSES: dict[str, Callable[[], AuxiliaryLoss]] = {
    "isotropic_features": lambda: IsotropicFeatures(coefficient=0.1),
    "churn_penalty": lambda: ChurnPenalty(coefficient=20.0, warmup=4),
    "feature_regularization": lambda: FeatureRegularization(coefficient=3.0),
    "l2_init": lambda: L2Init(coefficient=0.5),
    "parseval": lambda: ParsevalRegularization(coefficient=1e-4),
}
each_loss = pytest.mark.parametrize("make", list(LOSSES.values()), ids=list(LOSSES))
on_cpu = pytest.mark.skipif(ACCELERATOR != "cpu", reason="the numbers of another device's generators differ")


class Shift(Callback):
    """Announces that the objective changes before the fifth step."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 4:
            announce_objective_shift(trainer, pl_module, "here")


Term = Callable[[FeatureNet, list[Tensor], int], Tensor]


def train_by_hand(module: FeatureNet, term: Term, steps: int) -> list[float]:
    """Train with nothing but PyTorch; ``term`` gets module, batch and step. Return the terms' values."""
    optimizer: Any = module.configure_optimizers()
    values = []
    for step, batch in zip(range(steps), regression_batches(10), strict=False):
        optimizer.zero_grad()
        added = term(module, batch, step)
        (FeatureNet.training_step(module, batch, step) + added).backward()
        optimizer.step()
        values.append(float(added.detach()))
    return values


@on_cpu
def test_directions_are_drawn_for_each_batch() -> None:
    seed = derive_seed("isotropic_features", 0)

    def term(module: FeatureNet, batch: list[Tensor], step: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed + step + 1)  # batches count from 1
        directions = unit_directions(torch.randn(6, 5, generator=generator))
        return 0.3 * isotropy_penalty(module.trunk(batch[0]), directions, 9)

    module, other = FeatureNet(), FeatureNet()
    rows = fit(module, [IsotropicFeatures(0.3, slices=5, points=9)], 8)
    values = train_by_hand(other, term, 8)

    torch.testing.assert_close(weights(module), weights(other))
    assert rows[5]["loss/isotropic_features"] == pytest.approx(sum(values[:5]) / 5 / 0.3, rel=1e-5)


def test_directions_disturb_no_other_draws() -> None:
    class Draws(Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            drawn.append(torch.rand(1))

    drawn: list[Tensor] = []
    for callbacks in ([], [IsotropicFeatures()]):
        torch.manual_seed(3)
        fit(FeatureNet(), [*callbacks, Draws()], 4)
    assert drawn[:4] == drawn[4:]


def test_features_become_isotropic() -> None:
    def distance(*callbacks: Callback) -> float:
        module = FeatureNet(lambda p: torch.optim.Adam(p, lr=0.01))
        fit(module, list(callbacks), 200)
        x = torch.cat([batch[0] for batch in regression_batches(10)]).to(module.device)
        return float(isotropy_penalty(module.trunk(x).detach(), torch.eye(6, device=module.device)))

    assert distance(IsotropicFeatures(1.0)) < distance() / 3


def churn_by_hand(
    module: FeatureNet, weight: Callable[[list[tuple[float, float]]], float], steps: int
) -> None:
    """Train with a churn penalty whose weight is a function of the losses and terms so far."""
    previous, reference = copy.deepcopy(module), None
    optimizer: Any = module.configure_optimizers()
    sizes: list[tuple[float, float]] = []
    for step, batch in zip(range(steps), regression_batches(10), strict=False):
        states = batch[0] if reference is None else reference
        with torch.no_grad():
            before = previous(states)
        loss, term = FeatureNet.training_step(module, batch, step), (module(states) - before).square().mean()
        optimizer.zero_grad()
        (loss + weight(sizes) * term).backward()
        sizes.append((float(loss.detach().abs()), float(term.detach())))
        previous.load_state_dict(module.state_dict())
        optimizer.step()
        reference = batch[0]


def test_churn_is_between_the_parameters_around_the_last_step_on_the_batch_before() -> None:
    module, other, untouched = FeatureNet(), FeatureNet(), FeatureNet()
    fit(module, [ChurnPenalty(relative_scale=None, coefficient=20.0)], 8)
    churn_by_hand(other, lambda sizes: 20.0, 8)
    fit(untouched, [], 8)

    torch.testing.assert_close(weights(module), weights(other))
    assert not torch.allclose(weights(module), weights(untouched), atol=1e-4)


def test_after_the_warm_up_churn_has_a_share_of_the_loss() -> None:
    def weight(sizes: list[tuple[float, float]]) -> float:
        if len(sizes) < 3:
            return 20.0
        loss, term = (sum(column) / len(sizes) for column in zip(*sizes, strict=True))
        return 0.01 * loss / (term + 1e-8)

    module, other = FeatureNet(), FeatureNet()
    fit(module, [ChurnPenalty(relative_scale=0.01, coefficient=20.0, warmup=3)], 8)
    churn_by_hand(other, weight, 8)

    torch.testing.assert_close(weights(module), weights(other), rtol=1e-4, atol=1e-5)


def test_a_batch_of_another_size_and_one_without_a_loss_leave_churn_alone() -> None:
    class Uneven(FeatureNet):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            part = [each[:3] for each in batch] if batch_idx == 2 else batch
            return None if batch_idx == 4 else super().training_step(part, batch_idx)

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            self.count = getattr(self, "count", 0) + 1
            return [each[:5] for each in batch] if self.count % 2 == 0 else batch

    module, churn = Uneven(), ChurnPenalty(warmup=2)
    rows = fit(module, [churn], 8)
    assert weights(module).isfinite().all()
    assert rows[8]["loss/churn_penalty"] > 0
    assert churn.state_dict()["sizes"].isfinite().all()


def test_features_stay_near_those_of_the_last_shift() -> None:
    earlier: list[FeatureNet] = []

    def term(module: FeatureNet, batch: list[Tensor], step: int) -> Tensor:
        if step in (0, 4):
            earlier.append(copy.deepcopy(module))
        with torch.no_grad():
            before = earlier[-1].trunk[:3](batch[0])
        return 3.0 * (module.trunk[:3](batch[0]) - before).square().mean()

    module, other = FeatureNet(), FeatureNet()
    rows = fit(module, [FeatureRegularization(3.0), Shift()], 9, log_every_n_steps=3)
    values = train_by_hand(other, term, 9)

    torch.testing.assert_close(weights(module), weights(other))
    assert values[0] == values[4] == 0
    assert rows[9]["loss/feature_regularization"] == pytest.approx(sum(values[6:]) / 3 / 3.0, rel=1e-4)


@pytest.mark.parametrize("first", [True, False])
def test_initial_parameters_are_those_after_initialization(first: bool) -> None:
    class Origin(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 0:
                origin.append(weights(pl_module))

    origin: list[Tensor] = []
    pull, init = L2Init(0.5), PathSensitiveInit(mirrored=False)
    module = FeatureNet()
    before = weights(module)
    rows = fit(module, [*([pull, init] if first else [init, pull]), Origin()], 1, log_every_n_steps=1)

    assert not torch.equal(before, origin[0].cpu())
    assert rows[1]["loss/l2_init"] == 0
    saved = torch.cat([value.flatten() for value in pull.state_dict()["initial"].values()])
    assert torch.equal(saved, origin[0])


def test_parameters_are_pulled_to_where_they_began() -> None:
    origin: list[Tensor] = []

    def term(module: FeatureNet, batch: list[Tensor], step: int) -> Tensor:
        flat = nn.utils.parameters_to_vector(module.parameters())
        if step == 0:
            origin.append(flat.detach().clone())
        return 0.5 * (flat - origin[0]).square().sum()

    module, other = FeatureNet(), FeatureNet()
    fit(module, [L2Init(0.5)], 8)
    train_by_hand(other, term, 8)
    torch.testing.assert_close(weights(module), weights(other))


@pytest.mark.parametrize(
    ("options", "chosen"),
    [
        ({}, ["trunk.0", "trunk.2"]),
        ({"first": False}, ["trunk.2"]),
        ({"last": True}, ["trunk.0", "trunk.2", "policy_head"]),
        ({"first": False, "last": True}, ["trunk.2", "policy_head"]),
    ],
)
def test_parseval_takes_the_matrices_by_their_positions(options: dict[str, bool], chosen: list[str]) -> None:
    def term(module: FeatureNet, batch: list[Tensor], step: int) -> Tensor:
        layers: Any = [module.get_submodule(name) for name in chosen]
        return 1e-3 * parseval_penalty([layer.weight for layer in layers], 1.5)

    module, other = FeatureNet(), FeatureNet()
    fit(module, [ParsevalRegularization(1e-3, 1.5, **options)], 6)
    train_by_hand(other, term, 6)
    torch.testing.assert_close(weights(module), weights(other))


def test_parseval_takes_a_parametrized_weight_as_it_is_computed() -> None:
    module = FeatureNet(lambda p: torch.optim.SGD(p, lr=0.0))
    weight_norm(module.trunk[2])
    rows = fit(module, [ParsevalRegularization(first=False)], 1, log_every_n_steps=1)
    expected = float(parseval_penalty([module.trunk[2].weight.detach()]))
    assert rows[1]["loss/parseval"] == pytest.approx(expected, rel=1e-5)


def test_parseval_keeps_matrices_orthogonal() -> None:
    module = FeatureNet(lambda p: torch.optim.Adam(p, lr=0.01))
    fit(module, [ParsevalRegularization(1.0)], 300)
    values = torch.linalg.svdvals(module.trunk[2].weight.detach())
    torch.testing.assert_close(values, torch.full_like(values, 2**0.5), rtol=0.05, atol=0)


class Gradients(Callback):
    """Compares the gradients of each step with those of the loss and the terms one by one."""

    def __init__(self, losses: list[AuxiliaryLoss]) -> None:
        self.losses = losses
        self.compared = 0

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch = batch

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        features = pl_module.trunk(self.batch[0])
        inputs = {
            "module": pl_module,
            "batch": self.batch,
            "features": features,
            "pre_activations": pl_module.trunk[:3](self.batch[0]),
        }
        parameters, expected = list(pl_module.parameters()), []
        own = FeatureNet.training_step(pl_module, self.batch, 0)
        expected.append(torch.autograd.grad(own, parameters))
        for loss in self.losses:
            asked = loss.term.__code__.co_varnames[1 : loss.term.__code__.co_argcount]
            if isinstance(loss, IsotropicFeatures):
                inputs["features"] = pl_module.trunk(self.batch[0])
            added = loss.weighted(loss.term(**{name: inputs[name] for name in asked}), own.detach())
            gradients = torch.autograd.grad(added, parameters, allow_unused=True)
            expected.append(
                [torch.zeros_like(p) if g is None else g for g, p in zip(gradients, parameters, strict=True)]
            )
        for parameter, *parts in zip(parameters, *expected, strict=True):
            torch.testing.assert_close(parameter.grad, torch.stack(parts).sum(0), rtol=1e-4, atol=1e-6)
        self.compared += 1


@pytest.mark.parametrize("pair", list(combinations(LOSSES, 2)), ids="+".join)
def test_the_gradient_of_a_pair_is_the_sum(pair: tuple[str, str]) -> None:
    losses = [LOSSES[name]() for name in pair]
    gradients = Gradients(losses)
    rows = fit(FeatureNet(), [gradients, Shift(), *losses], 8)
    assert gradients.compared == 8
    assert set(rows[5]) == {f"loss/{name}" for name in pair}


@each_loss
@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_a_resumed_run_repeats_the_uninterrupted_one(
    make: Callable[[], AuxiliaryLoss], options: dict[str, Any], tmp_path: Path
) -> None:
    whole, resumed = FeatureNet(), FeatureNet()
    keep = ModelCheckpoint(tmp_path, filename="at_{step}", every_n_train_steps=10, save_top_k=-1)
    first, second = make(), make()
    rows = fit(whole, [first, Shift(), keep], 25, log_every_n_steps=4, **options)

    path = tmp_path / "at_step=10.ckpt"  # at the end of an epoch, between two points
    again = fit(resumed, [second, Shift()], 25, ckpt_path=path, log_every_n_steps=4, **options)

    assert torch.equal(weights(whole), weights(resumed))
    assert again == {step: row for step, row in rows.items() if step > 10}
    assert str(first.state_dict()) == str(second.state_dict())


@each_loss
def test_frozen_parameters_stay(make: Callable[[], AuxiliaryLoss]) -> None:
    module = FeatureNet()
    module.trunk[0].requires_grad_(False)
    before = module.trunk[0].weight.detach().clone()
    fit(module, [make(), Shift()], 8)
    assert torch.equal(before, module.trunk[0].weight.cpu())


class Random(FeatureNet):
    """Has layers that behave otherwise in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk.insert(1, nn.BatchNorm1d(8))
        self.trunk.insert(4, nn.Dropout(0.5))


@pytest.mark.parametrize("make", [LOSSES["churn_penalty"], LOSSES["feature_regularization"]])
def test_further_passes_leave_no_trace(make: Callable[[], AuxiliaryLoss]) -> None:
    def buffers(*callbacks: Callback) -> list[Tensor]:
        torch.manual_seed(1)
        module = Random()
        module.make_optimizer = lambda p: torch.optim.SGD(p, lr=0.0)
        fit(module, [*callbacks, Shift()], 8)
        assert all(each.training for each in module.modules())
        return [*module.buffers(), torch.rand(3)]

    for ours, expected in zip(buffers(make()), buffers(), strict=True):
        assert torch.equal(ours, expected)


class Bare(FeatureNet):
    policy_features = None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        return self.policy_head(self.trunk(x))


class Unseen(FeatureNet):
    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        return {"x": batch[0].to(device), "y": batch[1].to(device)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step([batch["x"], batch["y"]], batch_idx)


class Doubled(FeatureNet):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        return super().training_step([torch.cat([each, each]) for each in batch], batch_idx)


class Inputless(FeatureNet):
    def __init__(self) -> None:
        super().__init__()
        self.example_input_array = None


@pytest.mark.parametrize(
    ("module", "callback", "message"),
    [
        (Bare, ChurnPenalty, "ChurnPenalty runs the network of Bare again, which has no policy_features"),
        (Bare, FeatureRegularization, "FeatureRegularization runs the network of Bare again"),
        (Unseen, ChurnPenalty, "ChurnPenalty found no observations in a batch of type dict"),
        (
            Unseen,
            FeatureRegularization,
            "FeatureRegularization found no observations in a batch of type dict",
        ),
        (Doubled, FeatureRegularization, r"features of shape \(16, 6\) in training_step with \(8, 6\)"),
        (Inputless, ParsevalRegularization, "Inputless's forward, but its example_input_array is None"),
    ],
)
def test_a_module_that_lacks_something_is_told_so_in_one_line(
    module: Any, callback: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        fit(module(), [callback()], 2)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: IsotropicFeatures(slices=0), "slices is 0; expected a number at least 1"),
        (lambda: IsotropicFeatures(points=1), "points is 1; expected a number at least 2"),
        (lambda: ChurnPenalty(relative_scale=-1), "relative_scale is -1"),
        (lambda: ChurnPenalty(warmup=-1), "warmup is -1"),
        (lambda: ParsevalRegularization(scale=-1), "scale is -1"),
        (lambda: L2Init(coefficient=-1), "coefficient is -1"),
    ],
)
def test_arguments_are_checked(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
