from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_gfs.errors import UserError
from lit_gfs.gradients import SpectralNormalizer
from lit_gfs.networks import is_hidden_matrix

Gradients = dict[str, list[Tensor | None]]


def gradients_of(**shapes: tuple[int, ...]) -> Gradients:
    generator = torch.Generator().manual_seed(0)
    return {name: [torch.randn(shape, generator=generator), torch.randn(3)] for name, shape in shapes.items()}


def copies(gradients: Gradients) -> Gradients:
    return {name: [None if g is None else g.clone() for g in layer] for name, layer in gradients.items()}


def matrix(gradients: Gradients, name: str) -> Tensor:
    gradient = gradients[name][0]
    assert gradient is not None
    return gradient


def singular_values(gradient: Tensor) -> Tensor:
    return torch.linalg.svdvals(gradient.flatten(1))


@pytest.mark.parametrize("shape", [(16, 16), (40, 36), (33, 64), (32, 128), (32, 32, 3, 3), (40, 4, 3, 3, 3)])
def test_hidden_matrices_and_convolutions_get_a_flat_spectrum(shape: tuple[int, ...]) -> None:
    gradients = gradients_of(hidden=shape)

    SpectralNormalizer(steps=7).apply(gradients)

    values = singular_values(matrix(gradients, "hidden"))
    torch.testing.assert_close(values, torch.ones_like(values), atol=1e-3, rtol=0)


@pytest.mark.parametrize("shape", [(96, 6), (3, 96), (32, 3, 3, 3), (40, 161), (161, 40), (1, 1), (96,), ()])
def test_layers_that_are_not_hidden_keep_their_gradients(shape: tuple[int, ...]) -> None:
    gradients = gradients_of(edge=shape)
    before = copies(gradients)

    SpectralNormalizer().apply(gradients)

    assert torch.equal(matrix(gradients, "edge"), matrix(before, "edge"))
    assert not is_hidden_matrix(matrix(gradients, "edge"))


def test_layers_of_one_shape_do_not_mix() -> None:
    together = gradients_of(a=(8, 8), b=(8, 8), c=(40, 32))
    apart = copies(together)

    SpectralNormalizer().apply(together)
    for name, layer in apart.items():
        SpectralNormalizer().apply({name: layer})

    for name in together:
        torch.testing.assert_close(matrix(together, name), matrix(apart, name))


def test_blocks_are_orthogonalized_by_themselves() -> None:
    gradients = gradients_of(hidden=(24, 24))

    SpectralNormalizer(block=8, steps=8).apply(gradients)

    blocks = matrix(gradients, "hidden").unflatten(0, (3, 8))
    torch.testing.assert_close(blocks @ blocks.mT, torch.eye(8).expand(3, 8, 8), atol=1e-3, rtol=0)
    assert singular_values(matrix(gradients, "hidden")).max() > 1.1


def test_blocks_that_are_higher_than_wide_have_even_columns() -> None:
    for options in ({}, {"lift": 1e3}, {"momentum": 0.5}):
        gradients = gradients_of(a=(96, 40))

        SpectralNormalizer(block=48, steps=8, **options).apply(gradients)

        values = torch.linalg.svdvals(matrix(gradients, "a").unflatten(0, (2, 48)))
        torch.testing.assert_close(values, torch.ones_like(values), atol=0.05, rtol=0)


@pytest.mark.parametrize(("block", "size"), [(100, 24), (24, 24), (23, 12), (7, 6), (5, 4), (1, 1)])
def test_blocks_are_equal_and_at_most_as_large_as_asked_for(block: int, size: int) -> None:
    gradients = gradients_of(hidden=(24, 24))

    SpectralNormalizer(block=block, steps=8).apply(gradients)

    blocks = matrix(gradients, "hidden").unflatten(0, (-1, size))
    torch.testing.assert_close(
        blocks @ blocks.mT, torch.eye(size).expand_as(blocks @ blocks.mT), atol=1e-3, rtol=0
    )


def test_a_strength_below_1_mixes() -> None:
    gradients, full = gradients_of(hidden=(8, 8)), gradients_of(hidden=(8, 8))
    before = copies(gradients)

    SpectralNormalizer(strength=0.25).apply(gradients)
    SpectralNormalizer().apply(full)

    expected = 0.75 * matrix(before, "hidden") + 0.25 * matrix(full, "hidden")
    torch.testing.assert_close(matrix(gradients, "hidden"), expected)


@pytest.mark.parametrize("reference", ["spectral", "spectral_norm"])
def test_strength_0_changes_nothing(reference) -> None:
    gradients = gradients_of(hidden=(8, 8))
    before = copies(gradients)

    SpectralNormalizer(0.0, reference).apply(gradients)

    assert torch.equal(matrix(gradients, "hidden"), matrix(before, "hidden"))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_spectral_norm_scales_and_keeps_directions(strength: float) -> None:
    gradients = gradients_of(hidden=(32, 8, 2, 2))
    before = copies(gradients)

    SpectralNormalizer(strength, "spectral_norm").apply(gradients)

    largest = singular_values(matrix(before, "hidden"))[0]
    assert float(singular_values(matrix(gradients, "hidden"))[0]) == pytest.approx(
        float(largest) ** (1 - strength), rel=0.15
    )
    ratios = matrix(gradients, "hidden") / matrix(before, "hidden")
    torch.testing.assert_close(ratios, torch.full_like(ratios, float(ratios.mean())))


def test_a_lift_leaves_weak_directions_weak() -> None:
    gradients = gradients_of(hidden=(24, 24))
    left, _, right = torch.linalg.svd(matrix(gradients, "hidden"))
    spectrum = torch.logspace(0, -4, 24)
    matrix(gradients, "hidden").copy_(5 * left @ torch.diag(spectrum) @ right)
    apart = copies(gradients)

    SpectralNormalizer(lift=3.5).apply(gradients)
    SpectralNormalizer(lift=3.5, block=12).apply(apart)

    values = singular_values(matrix(gradients, "hidden"))
    assert values[0] > 0.9
    assert float(values[-1]) == pytest.approx(3.5e-4 / float(spectrum.norm()), rel=1e-3)
    # Each block has a norm of its own.
    for block in matrix(apart, "hidden").unflatten(0, (2, 12)):
        assert 0.9 < torch.linalg.svdvals(block)[0] <= 1


def normalized_together(normalizer: SpectralNormalizer, *gradients: Tensor) -> Tensor:
    """Give a normalizer the gradients of a matrix one by one, and return what it makes of the last."""
    last = torch.zeros(())
    for each in gradients:
        last = each.clone()
        normalizer.apply({"hidden": [last]})
    return last


@pytest.mark.parametrize("reference", ["spectral", "spectral_norm"])
def test_momentum_evens_out_the_spectrum_of_the_running_mean(reference) -> None:
    first, second, third = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0))
    mean = 0.9 * (0.9 * 0.1 * first + 0.1 * second) + 0.1 * third

    found = normalized_together(SpectralNormalizer(reference=reference, momentum=0.9), first, second, third)

    torch.testing.assert_close(found, normalized_together(SpectralNormalizer(reference=reference), mean))


def test_momentum_follows_what_noisy_gradients_agree_on() -> None:
    generator = torch.Generator().manual_seed(0)
    signal = torch.outer(*torch.randn(2, 32, generator=generator)) / 32
    noisy = [signal + torch.randn(32, 32, generator=generator) for _ in range(200)]

    alone, averaged = (normalized_together(SpectralNormalizer(momentum=each), *noisy) for each in (0, 0.99))

    def agreement(gradient: Tensor) -> float:
        return float((gradient * signal).sum() / gradient.norm() / signal.norm())

    assert agreement(averaged) > 3 * abs(agreement(alone))


def test_running_means_survive_a_checkpoint_and_a_layer_that_is_away() -> None:
    steps = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, stopped = SpectralNormalizer(momentum=0.9), SpectralNormalizer(momentum=0.9)

    def take(normalizer: SpectralNormalizer, step: int) -> Tensor:
        # The layer `b` has a gradient in every second step, as an actor has in TD3.
        a, b = steps[step].clone()
        normalizer.apply({"a": [a], "b": [b if step % 2 == 0 else None]})
        return torch.stack([a, b])

    for step in range(2):
        take(whole, step)
        take(stopped, step)
    resumed = SpectralNormalizer(momentum=0.9)
    resumed.load_state_dict(stopped.state_dict())

    for step in (2, 3):
        assert torch.equal(take(resumed, step), take(whole, step))
    mean = 0.9 * 0.1 * steps[0, 1] + 0.1 * steps[2, 1]
    torch.testing.assert_close(whole.means["b.0"], mean)


def test_a_layer_that_grew_begins_a_new_running_mean() -> None:
    small, large = torch.randn(8, 8), torch.randn(16, 16)
    normalizer = SpectralNormalizer(momentum=0.9)
    normalizer.apply({"hidden": [small.clone()]})

    normalizer.apply({"hidden": [large.clone()]})

    torch.testing.assert_close(normalizer.means["hidden.0"], 0.1 * large)


def used(momentum: float = 0.9, seed: int = 0) -> SpectralNormalizer:
    normalizer = SpectralNormalizer(momentum=momentum)
    normalizer.apply({"a": [torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))]})
    return normalizer


def test_a_used_normalizer_goes_on_with_the_means_that_it_loads() -> None:
    saver, loader = used(seed=0), used(seed=5)
    loader.load_state_dict(saver.state_dict())
    gradient = torch.randn(8, 8, generator=torch.Generator().manual_seed(9))
    one, other = gradient.clone(), gradient.clone()

    saver.apply({"a": [one]})
    loader.apply({"a": [other]})

    assert torch.equal(one, other)


def test_without_momentum_no_mean_is_loaded() -> None:
    normalizer = SpectralNormalizer()

    normalizer.load_state_dict(used().state_dict())

    assert normalizer.state_dict()["means"] == {}


def test_a_saved_mean_does_not_change_with_later_steps() -> None:
    normalizer = used()
    state = normalizer.state_dict()
    before = state["means"]["a.0"].clone()

    normalizer.apply({"a": [torch.randn(8, 8)]})

    assert torch.equal(state["means"]["a.0"], before)


def test_a_matrix_that_turned_begins_a_new_running_mean() -> None:
    normalizer = SpectralNormalizer(momentum=0.9)
    normalizer.apply({"a": [torch.randn(32, 64)]})
    gradient = torch.randn(64, 32)

    normalizer.apply({"a": [gradient.clone()]})

    torch.testing.assert_close(normalizer.means["a.0"], 0.1 * gradient)


def test_the_factor_on_a_vanishing_gradient_is_limited() -> None:
    gradient = 1e-10 * torch.eye(8)

    SpectralNormalizer(reference="spectral_norm").apply({"a": [gradient]})

    assert gradient.max().item() == pytest.approx(1e-2, rel=1e-3)


def test_a_gradient_that_is_zero_or_not_finite_leaves_the_running_mean() -> None:
    first, second = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = normalized_together(SpectralNormalizer(momentum=0.9), first, second)

    normalizer = SpectralNormalizer(momentum=0.9)
    zero, spoiled = torch.zeros(8, 8), torch.full((8, 8), torch.nan)
    for each in (first, zero, spoiled):
        after = each.clone()
        normalizer.apply({"hidden": [after]})
        if each is not first:
            assert torch.equal(after.nan_to_num(7), each.nan_to_num(7))

    assert torch.equal(normalized_together(normalizer, second), expected)


@pytest.mark.parametrize("reference", ["spectral", "spectral_norm"])
def test_zero_gradients_and_missing_ones_stay(reference) -> None:
    gradients: Gradients = {"zero": [torch.zeros(8, 8)], "none": [None], "other": [torch.eye(8) * 3]}

    done = SpectralNormalizer(reference=reference).apply(gradients)

    assert torch.equal(matrix(gradients, "zero"), torch.zeros(8, 8))
    assert gradients["none"] == [None]
    assert done.scales[:2].tolist() == [1.0, 1.0]
    assert float(done.scales[2]) == pytest.approx(1 / 3, rel=0.13)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1])
def test_nothing_changes_if_a_gradient_is_not_finite(value: float, place: int) -> None:
    gradients = gradients_of(first=(8, 8), second=(8, 8))
    spoiled = gradients["second"][place]
    assert spoiled is not None
    spoiled.view(-1)[0] = value
    before = copies(gradients)

    done = SpectralNormalizer().apply(gradients)

    assert torch.equal(matrix(gradients, "first"), matrix(before, "first"))
    assert done.scales.tolist() == [1.0, 1.0]


def test_factors_are_the_ratios_of_the_norms() -> None:
    gradients = gradients_of(hidden=(8, 8), edge=(8, 3))
    before = copies(gradients)

    done = SpectralNormalizer().apply(gradients)

    def norm(layers: Gradients) -> Tensor:
        return torch.cat([g.flatten() for g in layers["hidden"] if g is not None]).norm()

    assert float(done.scales[0]) == pytest.approx(float(norm(gradients) / norm(before)), rel=1e-5)
    assert float(done.scales[1]) == 1.0
    assert float(done.norms[0]) == pytest.approx(float(norm(before)), rel=1e-5)


def test_gradients_of_several_dtypes_work_together() -> None:
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 8, 8, generator=generator).unbind()
    gradients: Gradients = {"a": [a.double()], "b": [b]}

    SpectralNormalizer(steps=7).apply(gradients)

    for name, dtype in (("a", torch.float64), ("b", torch.float32)):
        assert matrix(gradients, name).dtype == dtype
        assert float(singular_values(matrix(gradients, name)).min()) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 1.5}, "strength"),
        ({"momentum": 1.0}, "momentum is 1.0; expected a number between 0 and 0.9999"),
        ({"block": 0}, "block"),
        ({"lift": 0.5}, "lift is 0.5; expected a number between 1 and"),
        ({"lift": 1e7}, "lift is 10000000.0; expected a number between 1 and"),
        ({"steps": 0}, "steps"),
        ({"reference": "unit"}, "reference is 'unit'; expected"),
        (
            {"reference": "spectral_norm", "block": 48},
            "block is 48, but it has no effect with reference 'spectral_norm'",
        ),
        ({"reference": "spectral_norm", "lift": 3.5}, "lift is 3.5, but it has no effect"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SpectralNormalizer(**options)  # type: ignore[arg-type]
