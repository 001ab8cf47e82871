"""What every layer-wise scaling promises, tried on one that halves."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from lit_gfs.gradients import (
    GradientNormalizer,
    LayerwiseScaling,
    PercentileClipper,
    TemporalClipper,
    ZScoreClipper,
)
from lit_gfs.gradients.layerwise import scale_gradients_


class Counting(LayerwiseScaling):
    """Scales by one half, one third, ... of what it has seen of a layer."""

    def factors(self, norms: Tensor, usable: Tensor, weight_norms: Tensor | None = None) -> Tensor:
        self.state["seen"] += usable
        self.state["steps"] += 1
        return 1 / (self.state["seen"] + 1)

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        return {"seen": torch.zeros_like(norms), "steps": norms.new_zeros(())}


def gradients(**norms: float) -> dict[str, list[Tensor | None]]:
    """Make gradients of known norm in two parameters each, 3-4-5 triangles."""
    return {
        name: [torch.tensor([[0.6 * norm]]), torch.tensor([0.8 * norm, 0.0])] for name, norm in norms.items()
    }


def test_each_layer_is_scaled_by_its_own_factor_and_keeps_its_direction() -> None:
    torch.manual_seed(0)
    before = {"a": [torch.randn(5, 3), torch.randn(5)], "b": [torch.randn(2, 5)]}
    after = {name: [g.clone() for g in layer] for name, layer in before.items()}

    scale_gradients_(after, torch.tensor([0.37, 1.0]))

    flat = torch.cat([g.flatten() for g in before["a"]])
    scaled = torch.cat([g.flatten() for g in after["a"]])
    torch.testing.assert_close(scaled, 0.37 * flat)
    assert torch.cosine_similarity(flat, scaled, dim=0) == pytest.approx(1.0, abs=1e-6)
    assert torch.equal(after["b"][0], before["b"][0])


def test_norms_and_factors_are_reported() -> None:
    done = Counting().apply(gradients(a=10.0, b=1e-3))

    torch.testing.assert_close(done.norms, torch.tensor([10.0, 1e-3]))
    torch.testing.assert_close(done.scales, torch.tensor([0.5, 0.5]))
    assert done.norms.isfinite().all()


def test_a_layer_without_gradient_or_with_a_zero_one_rests() -> None:
    scaling = Counting()
    scaling.apply(gradients(a=1.0, b=1.0, c=1.0))

    done = scaling.apply({**gradients(a=1.0, b=0.0), "c": [None, None]})

    torch.testing.assert_close(done.scales, torch.tensor([1 / 3, 1.0, 1.0]))
    assert scaling.state["seen"].tolist() == [2, 1, 1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("scaling", [ZScoreClipper, PercentileClipper, GradientNormalizer])
def test_a_gradient_that_is_not_finite_moves_nothing(value: float, scaling: type[LayerwiseScaling]) -> None:
    algorithm = scaling()
    for step in range(40):
        algorithm.apply(gradients(a=1.0 + step % 3, b=2.0))
    before = algorithm.state_dict()
    bad = gradients(a=50.0, b=2.0)
    bad["b"][0] = torch.tensor([[value]])

    done = algorithm.apply(bad)

    assert done.norms.isfinite().tolist() == [True, False]
    torch.testing.assert_close(bad["a"], gradients(a=50.0)["a"])
    for key, state in algorithm.state_dict()["state"].items():
        assert torch.equal(state.nan_to_num(-1), before["state"][key].nan_to_num(-1)), key


def test_layers_come_and_go_by_name() -> None:
    scaling = Counting()
    for _ in range(3):
        scaling.apply(gradients(a=1.0, b=1.0))

    done = scaling.apply(gradients(new=1.0, b=1.0))

    torch.testing.assert_close(done.scales, torch.tensor([1 / 2, 1 / 5]))
    assert scaling.state["steps"] == 4


@pytest.mark.parametrize(
    "make",
    [
        lambda: ZScoreClipper(warmup=5),
        lambda: PercentileClipper(window=8, warmup=5),
        GradientNormalizer,
        lambda: GradientNormalizer(reference="instant"),
    ],
)
def test_state_continues_bit_for_bit(make, tmp_path) -> None:
    torch.manual_seed(0)
    norms = (1 + torch.rand(60, 2)).tolist()
    whole, first, second = make(), make(), make()
    scales = [whole.apply(gradients(a=a, b=b)).scales for a, b in norms]
    for a, b in norms[:23]:
        first.apply(gradients(a=a, b=b))
    torch.save(first.state_dict(), tmp_path / "state.pt")

    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    for (a, b), expected in zip(norms[23:], scales[23:], strict=True):
        assert torch.equal(second.apply(gradients(a=a, b=b)).scales, expected)
    for key, state in whole.state_dict()["state"].items():
        assert torch.equal(state.nan_to_num(-1), second.state[key].nan_to_num(-1)), key


def test_half_precision_gradients() -> None:
    layer = [torch.full((100,), 300.0, dtype=torch.bfloat16)]

    done = Counting().apply({"a": layer})

    assert done.norms.item() == pytest.approx(3000, rel=1e-2)
    assert layer[0].dtype == torch.bfloat16
    assert torch.equal(layer[0], torch.full((100,), 150.0, dtype=torch.bfloat16))


def test_without_any_gradient_nothing_happens() -> None:
    done = Counting().apply({"a": [None], "b": [None]})

    assert done.scales.tolist() == [1, 1]
    assert done.norms.tolist() == [0, 0]


@pytest.mark.parametrize(
    "make", [ZScoreClipper, PercentileClipper, GradientNormalizer, lambda: GradientNormalizer(0.5, "instant")]
)
def test_nothing_is_read_from_the_device(make) -> None:
    """A meta tensor has no values: reading one, as a host synchronization does, raises."""
    algorithm = make()
    gradients = {
        "a": [torch.ones(3, 3, device="meta"), torch.ones(3, device="meta")],
        "b": [torch.ones(2, device="meta"), None],
        "none": [None],
    }

    for _ in range(3):
        done = algorithm.apply(gradients)
        if isinstance(algorithm, TemporalClipper):
            algorithm.reopen()

    assert done.scales.shape == (3,)
    assert done.scales.device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):
        done.scales.tolist()


def test_state_follows_the_name_when_layers_change_places() -> None:
    scaling = Counting()
    for layers in ({"a": 1.0}, {"a": 1.0, "b": 1.0}, {"b": 1.0, "a": 1.0}):
        done = scaling.apply(gradients(**layers))
    torch.testing.assert_close(done.scales, torch.tensor([1 / 3, 1 / 4]))


def test_saved_state_stands_still() -> None:
    scaling, other = Counting(), Counting()
    scaling.apply(gradients(a=1.0))
    saved = scaling.state_dict()
    other.load_state_dict(saved)
    scaling.apply(gradients(a=1.0))
    other.apply(gradients(a=1.0))
    assert saved["state"]["seen"].tolist() == [1]


def test_state_moves_to_the_gradients_device() -> None:
    clipper = ZScoreClipper()
    clipper.apply({"a": [torch.ones(2)]})
    clipper.apply({"a": [torch.ones(2, device="meta")]})
    assert all(state.device.type == "meta" for state in clipper.state.values())


@pytest.mark.parametrize("make", [ZScoreClipper, PercentileClipper, GradientNormalizer])
def test_statistics_are_as_precise_as_the_gradients(make) -> None:
    algorithm = make()
    for step in range(60):
        algorithm.apply(
            {"a": [torch.full((3,), 1e25 * (1 + step % 2), dtype=torch.float64)], "b": [torch.ones(3)]}
        )
    assert all(v.isfinite().any() for v in algorithm.state.values())
    assert all(v.dtype in (torch.float64, torch.int64) for v in algorithm.state.values())


@pytest.mark.parametrize("reference", ["instant", "weight"])
def test_a_loop_of_ones_own_scales_the_gradients_of_a_module(reference: Literal["instant", "weight"]) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    frozen = nn.Linear(2, 2).requires_grad_(False)
    network(torch.randn(5, 3)).square().sum().backward()
    before = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]

    done = GradientNormalizer(1.0, reference).scale_(nn.Sequential(network, frozen))

    after = [parameter.grad for parameter in network.parameters()]
    for old, new, scale in zip(before, after, done.scales.repeat_interleave(2), strict=True):
        assert torch.allclose(new, old * scale)
    reached = torch.stack([torch.cat([g.flatten() for g in after[i : i + 2]]).norm() for i in (0, 2)])
    layers = (network[0], network[2])
    own = torch.stack([nn.utils.parameters_to_vector(each.parameters()).norm() for each in layers])
    mean = done.norms.log().mean().exp().expand(2)
    assert torch.allclose(reached, own if reference == "weight" else mean)
    assert (done.scales - 1).abs().min() > 0.01
