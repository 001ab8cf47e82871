from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lit_gfs.errors import UserError
from lit_gfs.gradients import GradientNormalizer

NORMS = {"first": 4.0, "second": 1.0, "third": 0.25, "fourth": 16.0}  # geometric mean 2


def apply(normalizer: GradientNormalizer, norms: dict[str, float], **weights: float) -> dict[str, float]:
    """Return the norms of gradients after normalization."""
    gradients: dict[str, list[Tensor | None]] = {
        name: [torch.tensor([0.6 * norm]), torch.tensor([0.8 * norm])] for name, norm in norms.items()
    }
    parameters = {name: [torch.tensor([weights.get(name, 1.0)])] for name in norms}
    normalizer.apply(gradients, parameters)
    return {
        name: float(torch.cat([g for g in layer if g is not None]).norm())
        for name, layer in gradients.items()
    }


@pytest.mark.parametrize("reference", ["running", "instant", "unit", "weight"])
def test_strength_0_leaves_gradients_untouched(reference) -> None:
    torch.manual_seed(0)
    gradients = {"a": [torch.randn(4, 4)], "b": [1e-6 * torch.randn(4)]}
    before = {name: [g.clone() for g in layer] for name, layer in gradients.items()}

    GradientNormalizer(strength=0.0, reference=reference).apply(gradients, before)

    for name, layer in gradients.items():
        assert torch.equal(layer[0], before[name][0])


@pytest.mark.parametrize(("reference", "norm"), [("running", 2.0), ("instant", 2.0), ("unit", 1.0)])
def test_strength_1_equalizes_the_layers(reference, norm) -> None:
    normalized = apply(GradientNormalizer(strength=1.0, reference=reference), NORMS)

    assert list(normalized.values()) == pytest.approx([norm] * 4, rel=1e-5)


@pytest.mark.parametrize("strength", [0.25, 0.5])
def test_between_them_norms_meet_on_a_logarithmic_scale(strength: float) -> None:
    normalized = apply(GradientNormalizer(strength=strength, reference="instant"), NORMS)

    for name, norm in NORMS.items():
        assert normalized[name] == pytest.approx(norm ** (1 - strength) * 2**strength, rel=1e-5)


def test_the_instant_reference_keeps_the_geometric_mean() -> None:
    normalized = apply(GradientNormalizer(strength=0.7, reference="instant"), NORMS)

    assert math.prod(normalized.values()) == pytest.approx(2**4, rel=1e-4)


def test_the_running_reference_remembers() -> None:
    normalizer = GradientNormalizer(strength=1.0, reference="running", decay=0.9)
    for _ in range(20):
        apply(normalizer, {"a": 1.0, "b": 1.0})

    normalized = apply(normalizer, {"a": 100.0, "b": 100.0})

    assert normalized["a"] == pytest.approx(100**0.1, rel=1e-4)  # a tenth of the way, in logarithms


def test_the_running_reference_has_no_bias_at_first() -> None:
    normalizer = GradientNormalizer(strength=1.0, reference="running", decay=0.99)
    apply(normalizer, {"a": 1e-4, "b": 1e-4})

    normalized = apply(normalizer, {"a": 1e-2, "b": 1e-2})

    assert normalized["a"] == pytest.approx(1e-3, rel=1e-4)


def test_the_weight_reference_brings_gradients_to_the_size_of_parameters() -> None:
    normalizer = GradientNormalizer(strength=1.0, reference="weight")

    normalized = apply(normalizer, {"a": 5.0, "b": 0.1, "zero": 7.0}, a=3.0, b=0.5, zero=0.0)

    assert list(normalized.values()) == pytest.approx([3.0, 0.5, 7.0], rel=1e-5)


def test_layers_without_gradient_are_no_part_of_the_reference() -> None:
    normalized = apply(GradientNormalizer(strength=1.0, reference="instant"), {**NORMS, "dead": 0.0})

    assert normalized["dead"] == 0
    assert normalized["first"] == pytest.approx(2.0, rel=1e-5)


def test_a_step_without_any_gradient_leaves_the_reference() -> None:
    normalizer = GradientNormalizer(strength=1.0)
    apply(normalizer, {"a": 3.0, "b": 3.0})
    apply(normalizer, {"a": 0.0, "b": 0.0})

    assert apply(normalizer, {"a": 3.0, "b": 3.0})["a"] == pytest.approx(3.0, rel=1e-5)


def test_a_factor_is_at_most_1e8() -> None:
    gradient = torch.tensor([1e-12])
    GradientNormalizer(strength=1.0, reference="unit").apply({"a": [gradient]})
    assert float(gradient) == pytest.approx(1e-4, rel=1e-3, abs=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": 1.1}, "strength is 1.1; expected a number between 0 and 1"),
        ({"decay": -0.1}, "decay is -0.1"),
        (
            {"reference": "runing"},
            "reference is 'runing'; expected one of 'running', .*did you mean 'running'",
        ),
    ],
)
def test_arguments_are_checked(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        GradientNormalizer(**arguments)
