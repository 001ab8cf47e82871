"""Each rule against numbers that are computed by hand or in another way."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.plasticity.projection import NormProjection
from lit_gfs.plasticity.pull_to_init import PullToInit
from lit_gfs.plasticity.shrink_and_perturb import ShrinkAndPerturb
from lit_gfs.plasticity.spectral_limit import SpectralLimit
from lit_gfs.plasticity.static_sparsity import StaticSparsity, erdos_renyi_densities
from lit_gfs.plasticity.update_clipping import UpdateClipping
from lit_gfs.plasticity.update_normalization import UpdateNormalization
from lit_gfs.plasticity.update_rule import UpdateRule
from lit_gfs.plasticity.weight_clipping import WeightClipping
from lit_gfs.plasticity.weight_rule import WeightRule

RULES: list[Callable[[], WeightRule]] = [
    NormProjection,
    WeightClipping,
    lambda: PullToInit(0.5),
    lambda: ShrinkAndPerturb(0.9),
    lambda: UpdateClipping(0.1),
    UpdateNormalization,
    StaticSparsity,
    SpectralLimit,
]
FOR_MATRICES = (SpectralLimit, UpdateNormalization)
every_rule = pytest.mark.parametrize("make", RULES, ids=lambda make: type(make()).__name__)


def layer(*values: Tensor) -> dict[str, Tensor]:
    return dict(zip(("a.weight", "a.bias", "b.weight"), values, strict=False))


def random_layer(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return layer(*(torch.randn(shape, generator=generator) for shape in ((6, 4), (6,), (3, 6))))


def rates(weights: dict[str, Tensor], rate: float = 0.1) -> list[float]:
    return [rate] * len(weights)


# -- projection ------------------------------------------------------------------------------------------


def test_a_projected_weight_has_its_first_norm_and_its_own_direction() -> None:
    rule, weights = NormProjection(), layer(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0]))
    rule.meet(weights)
    weights["a.weight"].copy_(torch.tensor([[0.0, 20.0]]))
    weights["a.bias"].fill_(0.5)
    values = rule.apply(weights, rates(weights))
    torch.testing.assert_close(weights["a.weight"], torch.tensor([[0.0, 5.0]]))
    torch.testing.assert_close(weights["a.bias"], torch.tensor([1.0]))
    assert values["scale"].item() == pytest.approx((0.25 + 2) / 2)
    assert values["smallest_scale"].item() == pytest.approx(0.25)


def test_a_weight_that_starts_at_zero_is_not_projected() -> None:
    rule, weights = NormProjection(), layer(torch.zeros(1, 2), torch.ones(1))
    rule.meet(weights)
    weights["a.weight"].fill_(3.0)
    weights["a.bias"].fill_(0.0)
    rule.apply(weights, rates(weights))
    assert weights["a.weight"].tolist() == [[3.0, 3.0]]
    assert weights["a.bias"].tolist() == [0.0]


# -- clipping of weights ---------------------------------------------------------------------------------


def test_weights_and_biases_are_clipped_to_kappa_times_the_bound_of_their_layer() -> None:
    rule, weights = WeightClipping(kappa=2.0), layer(torch.tensor([[1.0, -1.0]]), torch.zeros(3))
    rule.meet(weights)
    limit = 2 * math.sqrt(3)  # the root mean square is 1
    weights["a.weight"].copy_(torch.tensor([[3.0, -9.0]]))
    weights["a.bias"].copy_(torch.tensor([9.0, 0.5, -3.5]))
    values = rule.apply(weights, rates(weights))
    torch.testing.assert_close(weights["a.weight"], torch.tensor([[3.0, -limit]]))
    torch.testing.assert_close(weights["a.bias"], torch.tensor([limit, 0.5, -limit]))
    assert values["clipped_tensors"].item() == 1.0
    assert values["excess"].item() == pytest.approx(9 / limit)


def test_the_bound_is_that_of_pytorchs_own_initialization() -> None:
    torch.manual_seed(0)
    linear, rule = nn.Linear(400, 300), WeightClipping()
    rule.meet({"a.weight": linear.weight.detach(), "a.bias": linear.bias.detach()})
    assert float(rule.kept["a.weight"]) == pytest.approx(400**-0.5, rel=0.01)
    assert torch.equal(rule.kept["a.weight"], rule.kept["a.bias"])


def test_a_matrix_of_zeros_has_pytorchs_bound() -> None:
    rule = WeightClipping()
    rule.meet(layer(torch.zeros(5, 16), torch.zeros(5)))
    assert float(rule.kept["a.weight"]) == float(rule.kept["a.bias"]) == 0.25


# -- pull towards the start ------------------------------------------------------------------------------


def test_the_pull_removes_a_share_of_the_distance_by_the_rate_of_each_weight() -> None:
    rule, weights = PullToInit(0.5), layer(torch.tensor([[1.0, 2.0]]), torch.tensor([4.0]))
    rule.meet(weights)
    weights["a.weight"].add_(1.0)
    weights["a.bias"].add_(8.0)
    values = rule.apply(weights, [0.1, 0.4])
    torch.testing.assert_close(weights["a.weight"], torch.tensor([[1.95, 2.95]]))
    torch.testing.assert_close(weights["a.bias"], torch.tensor([10.4]))
    assert values["share"].item() == pytest.approx(0.125)


def test_rates_may_be_tensors() -> None:
    found = []
    for rate in (0.1, torch.tensor(0.1)):
        for rule in (PullToInit(0.5), UpdateClipping(0.3)):
            weights = random_layer()
            rule.meet(weights)
            torch._foreach_mul_(list(weights.values()), 2.0)
            rule.apply(weights, [rate, 0.2, 0.3])
            found.append(weights)
    for number, tensor in zip(found[:2], found[2:], strict=True):
        for name in number:
            torch.testing.assert_close(number[name], tensor[name])


# -- shrink and perturb ----------------------------------------------------------------------------------


def test_without_noise_weights_only_shrink() -> None:
    rule, weights = ShrinkAndPerturb(0.5, 0.0), random_layer()
    before = {name: each.clone() for name, each in weights.items()}
    rule.meet(weights)
    rule.apply(weights, rates(weights))
    assert all(torch.equal(weights[name], 0.5 * before[name]) for name in weights)


def test_the_default_noise_keeps_the_first_size() -> None:
    torch.manual_seed(0)
    rule, weights = ShrinkAndPerturb(0.6), layer(0.02 * torch.randn(200, 200), torch.zeros(200))
    rule.meet(weights)
    assert rule.noise == pytest.approx(0.8)
    for _ in range(20):
        values = rule.apply(weights, rates(weights))
    assert float(weights["a.weight"].std()) == pytest.approx(0.02, rel=0.02)
    assert not weights["a.bias"].any()
    assert values["relative_size"].item() == pytest.approx(1.0, rel=0.02)


def test_the_noise_follows_from_the_seed_and_the_number_of_draws() -> None:
    def noise(rule: ShrinkAndPerturb) -> Tensor:
        weights = layer(torch.ones(4, 4))
        rule.meet(weights)
        rule.apply(weights, rates(weights))
        return weights["a.weight"]

    rule, same, other = ShrinkAndPerturb(0.5), ShrinkAndPerturb(0.5), ShrinkAndPerturb(0.5, seed=1)
    first, second = noise(rule), noise(rule)
    torch.manual_seed(3)
    assert torch.equal(first, noise(same))
    assert not torch.equal(first, second)
    assert not torch.equal(first, noise(other))
    other.load_state_dict(same.state_dict())
    assert torch.equal(second, noise(other))


# -- clipping of updates ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "factor"),
    [
        # An update of (3, -4) has the root mean square sqrt(12.5) and the maximum 4; the rate is 0.1.
        ({"threshold": 10.0}, 1 / math.sqrt(12.5)),
        ({"threshold": 10.0, "measure": "max"}, 0.25),
        ({"threshold": 40.0, "measure": "max"}, 1.0),
        # The weight (1, 1) has the root mean square 1.
        ({"threshold": 2.0, "relative_to": "weight"}, 2 / math.sqrt(12.5)),
        ({"threshold": 2.0, "relative_to": "weight", "measure": "max"}, 0.5),
    ],
)
def test_a_large_update_is_shortened(options: dict[str, Any], factor: float) -> None:
    rule, weights = UpdateClipping(**options), layer(torch.ones(1, 2), torch.ones(2))
    rule.meet(weights)
    weights["a.weight"].fill_(1.0)
    rule.remember(weights)
    weights["a.weight"].add_(torch.tensor([[3.0, -4.0]]))
    values = rule.apply(weights, rates(weights))
    torch.testing.assert_close(weights["a.weight"], torch.tensor([[1 + 3 * factor, 1 - 4 * factor]]))
    assert weights["a.bias"].tolist() == [1.0, 1.0]
    assert values["scale"].item() == pytest.approx((factor + 1) / 2)
    assert values["clipped_tensors"].item() == (0.5 if factor < 1 else 0.0)


def test_a_small_update_is_left_exactly() -> None:
    rule, weights = UpdateClipping(), random_layer()
    rule.meet(weights)
    rule.remember(weights)
    torch._foreach_mul_(list(weights.values()), 1.01)
    moved = {name: each.clone() for name, each in weights.items()}
    rule.apply(weights, rates(weights))
    assert all(torch.equal(moved[name], weights[name]) for name in weights)


def test_a_rate_of_zero_allows_no_update() -> None:
    rule, weights = UpdateClipping(), random_layer()
    before = {name: each.clone() for name, each in weights.items()}
    rule.meet(weights)
    rule.remember(weights)
    weights["a.weight"].add_(1.0)
    rule.apply(weights, rates(weights, 0.0))
    assert all(weights[name].isfinite().all() for name in weights)
    torch.testing.assert_close(weights["a.weight"], before["a.weight"])


# -- static sparsity -------------------------------------------------------------------------------------


def test_densities_by_hand() -> None:
    # sum(shape) / prod(shape) is 0.2 for 10 x 10 and 0.12 for 10 x 50; the factor f solves
    # f (0.2 * 100 + 0.12 * 500) = 0.2 * 600, so f = 1.5.
    shapes = {"narrow": (10, 10), "wide": (10, 50)}
    assert erdos_renyi_densities(shapes, 0.8) == pytest.approx({"narrow": 0.3, "wide": 0.18})


def test_a_density_above_one_is_one_and_others_make_up_for_it() -> None:
    shapes = {"head": (2, 4), "wide": (100, 100), "kernel": (8, 4, 3, 3)}
    densities = erdos_renyi_densities(shapes, 0.9)
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    assert densities["head"] == 1.0
    assert sum(densities[name] * sizes[name] for name in shapes) == pytest.approx(0.1 * sum(sizes.values()))
    assert densities["kernel"] / densities["wide"] == pytest.approx((18 / 288) / (200 / 10_000))


def test_masks_have_their_number_of_zeros_and_stay() -> None:
    rule, weights = StaticSparsity(0.8), layer(torch.ones(10, 10), torch.ones(10, 50))
    rule.meet(weights)
    assert rule.kept["a.weight"].sum() == 30
    assert rule.kept["a.bias"].sum() == 90
    assert rule.zeros() == pytest.approx(0.8)
    for _ in range(2):
        rule.apply(weights, rates(weights))
        assert all(torch.equal(weights[name], rule.kept[name] * weights[name].max()) for name in weights)
        torch._foreach_add_(list(weights.values()), 1.0)


def test_masks_follow_from_seed_and_name() -> None:
    masks = []
    for seed, names in ((0, ["a", "b"]), (0, ["b", "a"]), (1, ["a", "b"])):
        rule = StaticSparsity(0.5, seed)
        rule.meet({f"{name}.weight": torch.ones(8, 8) for name in names})
        masks.append(rule.kept["a.weight"])
    assert torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(rule.kept["a.weight"], rule.kept["b.weight"])


def test_masks_of_a_checkpoint_stay_under_another_seed() -> None:
    rule, other, weights = StaticSparsity(0.5), StaticSparsity(0.5, seed=1), layer(torch.ones(8, 8))
    rule.meet(weights)
    other.meet(weights)
    saved = rule.state_dict()
    assert saved["kept"]["a.weight"].dtype == torch.bool
    other.load_state_dict(saved)
    assert torch.equal(other.kept["a.weight"], rule.kept["a.weight"])


# -- spectral limit --------------------------------------------------------------------------------------


def test_a_matrix_is_scaled_to_the_limit_and_one_below_it_is_not() -> None:
    large, small = torch.diag(torch.tensor([5.0, 1.0])), torch.diag(torch.tensor([0.5, 0.1]))
    rule, weights = SpectralLimit(2.0), {"a.weight": large, "b.weight": small}
    rule.meet(weights)
    values = rule.apply(weights, rates(weights))
    torch.testing.assert_close(weights["a.weight"], torch.diag(torch.tensor([2.0, 0.4])))
    torch.testing.assert_close(weights["b.weight"], torch.diag(torch.tensor([0.5, 0.1])))
    assert values["limited_layers"].item() == 0.5
    assert values["singular_value"].item() == pytest.approx((5.0 + 0.5) / 2)


def test_the_estimate_follows_a_matrix_that_drifts() -> None:
    torch.manual_seed(0)
    rule, weights = (
        SpectralLimit(1.5),
        {"a.weight": torch.randn(40, 30) / 6, "b.weight": torch.randn(8, 4, 3, 3)},
    )
    rule.meet(weights)
    for _ in range(50):
        for weight in weights.values():
            weight.add_(0.01 * torch.randn(weight.shape))
        rule.apply(weights, rates(weights))
    for weight in weights.values():
        assert 1.4 < torch.linalg.matrix_norm(weight.flatten(1), 2) < 1.53


def test_a_matrix_of_zeros_stays() -> None:
    rule, weights = SpectralLimit(), layer(torch.zeros(3, 2))
    rule.meet(weights)
    rule.apply(weights, rates(weights))
    assert not weights["a.weight"].any()
    weights["a.weight"].fill_(4.0)
    for _ in range(3):
        rule.apply(weights, rates(weights))
    assert torch.linalg.matrix_norm(weights["a.weight"], 2) == pytest.approx(1.0, rel=1e-4)


# -- all -------------------------------------------------------------------------------------------------


@every_rule
def test_a_rule_goes_on_from_its_state(make: Callable[[], WeightRule]) -> None:
    def steps(rule: WeightRule, weights: dict[str, Tensor], count: int) -> None:
        for index in range(count):
            if isinstance(rule, UpdateRule):
                rule.remember(weights)
            generator = torch.Generator().manual_seed(index)
            for weight in weights.values():
                weight.add_(torch.randn(weight.shape, generator=generator))
            rule.apply(weights, rates(weights))

    def start() -> tuple[WeightRule, dict[str, Tensor]]:
        weights = random_layer()
        rule = make()
        if isinstance(rule, FOR_MATRICES):
            weights.pop("a.bias")
        rule.meet(weights)
        return rule, weights

    rule, weights = start()
    steps(rule, weights, 3)
    state = rule.state_dict()
    later = {name: each.clone() for name, each in weights.items()}
    steps(rule, weights, 3)
    other = make()
    other.meet(later)
    other.load_state_dict(state)
    steps(other, later, 3)
    assert all(torch.equal(weights[name], later[name]) for name in weights)


@every_rule
def test_changes_are_in_place(make: Callable[[], WeightRule]) -> None:
    rule, weights = make(), random_layer()
    if isinstance(rule, FOR_MATRICES):
        weights.pop("a.bias")
    rule.meet(weights)
    addresses = [each.data_ptr() for each in weights.values()]
    before = {name: each.clone() for name, each in weights.items()}
    torch._foreach_mul_(list(weights.values()), 3.0)
    rule.apply(weights, rates(weights))
    assert addresses == [each.data_ptr() for each in weights.values()]
    assert not any(torch.equal(weights[name], 3.0 * before[name]) for name in weights)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightClipping(0.0), "kappa is 0.0"),
        (lambda: PullToInit(-1.0), "strength is -1.0"),
        (lambda: ShrinkAndPerturb(1.5), "shrink is 1.5"),
        (lambda: ShrinkAndPerturb(0.5, -1.0), "noise is -1.0"),
        (lambda: UpdateClipping(0.0), "threshold is 0.0"),
        (
            lambda: UpdateClipping(measure="rsm"),
            "measure is 'rsm'; expected one of 'rms'",
        ),  # type: ignore
        (lambda: UpdateClipping(relative_to="weights"), "relative_to is 'weights'"),  # type: ignore
        (lambda: StaticSparsity(1.0), "sparsity is 1.0"),
        (lambda: SpectralLimit(0.0), "limit is 0.0"),
        (lambda: SpectralLimit(1.0, 0), "iterations is 0"),
    ],
)
def test_options_are_checked(make: Callable[[], WeightRule], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
