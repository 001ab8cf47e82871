"""Clipping against hand-made histories of norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from lit_gfs.errors import UserError
from lit_gfs.gradients import PercentileClipper, TemporalClipper, ZScoreClipper

HISTORY = [1.0, 1.2, 0.8, 1.1, 0.9] * 5  # mean 1, variance 0.02


def norms_after(clipper: TemporalClipper, norms: Iterable[float]) -> list[float]:
    """Feed gradients of given norms through a clipper; return their norms afterwards."""
    kept = []
    for norm in norms:
        gradient = torch.tensor([0.6, 0.8]) * norm
        clipper.apply({"layer": [gradient]})
        kept.append(float(gradient.norm()))
    return kept


def test_nothing_is_clipped_during_warmup() -> None:
    norms = [1.0] * 10 + [1e6] + [1.0] * 10

    assert norms_after(ZScoreClipper(warmup=25), norms) == pytest.approx(norms)


def test_a_spike_is_shortened_to_the_reciprocal_of_its_z_score() -> None:
    clipper = ZScoreClipper(z_threshold=2.5, warmup=25)
    norms_after(clipper, HISTORY)
    deviation = math.sqrt(0.02)
    z = (3.0 - 1.0) / deviation

    (kept,) = norms_after(clipper, [3.0])

    assert kept == pytest.approx(1.0 + 2.5**2 / z * deviation, rel=1e-5)


@pytest.mark.parametrize("z", [2.4, 2.6])
def test_the_threshold_is_where_it_says(z: float) -> None:
    clipper = ZScoreClipper(z_threshold=2.5, warmup=25)
    norms_after(clipper, HISTORY)
    norm = 1.0 + z * math.sqrt(0.02)

    (kept,) = norms_after(clipper, [norm])

    assert (kept < norm - 1e-4) == (z > 2.5)


def test_statistics_are_plain_averages_that_become_exponential_ones() -> None:
    generator = np.random.default_rng(0)
    norms = (1 + 0.1 * generator.random(60)).tolist()
    clipper = ZScoreClipper(z_threshold=100, decay=0.9, warmup=3)
    norms_after(clipper, norms)

    # By hand: weight 1/n up to the tenth norm, 0.1 from then on.
    mean = variance = 0.0
    for n, norm in enumerate(norms, start=1):
        weight = max(1 / n, 0.1)
        variance = (1 - weight) * (variance + weight * (norm - mean) ** 2)
        mean += weight * (norm - mean)

    assert float(clipper.state["mean"]) == pytest.approx(mean, rel=1e-5)
    assert float(clipper.state["variance"]) == pytest.approx(variance, rel=1e-3)


def test_plain_averages_equal_numpys() -> None:
    clipper = ZScoreClipper(warmup=25)
    norms_after(clipper, HISTORY)

    assert float(clipper.state["mean"]) == pytest.approx(np.mean(HISTORY), rel=1e-6)
    assert float(clipper.state["variance"]) == pytest.approx(np.var(HISTORY), rel=1e-4)


def test_a_spike_enters_the_statistics_as_the_threshold() -> None:
    clipper = ZScoreClipper(z_threshold=2.5, decay=0.97, warmup=25)
    norms_after(clipper, HISTORY)
    deviation = math.sqrt(0.02)

    norms_after(clipper, [1e6])

    weight = max(1 / 26, 0.03)
    assert float(clipper.state["mean"]) == pytest.approx(1 + weight * 2.5 * deviation, rel=1e-5)


@pytest.mark.parametrize("factor", [2.0, 10.0, 100.0])
def test_a_lasting_rise_is_learned_even_when_nobody_announces_it(factor: float) -> None:
    clipper = ZScoreClipper()
    norms_after(clipper, HISTORY)
    risen = [factor * norm for norm in HISTORY]

    for _ in range(6):
        kept = norms_after(clipper, risen)

    assert kept == pytest.approx(risen, rel=1e-4)


def test_a_layer_that_was_always_steady_may_change_a_little() -> None:
    clipper = ZScoreClipper(z_threshold=2.5, warmup=5)
    norms_after(clipper, [1.0] * 50)

    assert norms_after(clipper, [1.02]) == pytest.approx([1.02])
    assert norms_after(clipper, [1.2])[0] < 1.01


def test_layers_have_histories_of_their_own() -> None:
    clipper = ZScoreClipper(warmup=25)
    for norm in HISTORY:
        clipper.apply({"small": [torch.tensor([norm])], "large": [torch.tensor([100 * norm])]})

    done = clipper.apply({"small": [torch.tensor([100.0])], "large": [torch.tensor([100.0])]})

    assert done.scales[0] < 0.02
    assert done.scales[1] == 1


CLIPPERS: list[Callable[..., TemporalClipper]] = [ZScoreClipper, PercentileClipper]


@pytest.mark.parametrize("make", CLIPPERS)
@pytest.mark.parametrize("announced", [True, False])
def test_a_jump_is_legitimate_right_after_the_objective_changed_and_a_spike_otherwise(
    make: Callable[..., TemporalClipper], announced: bool
) -> None:
    clipper = make()
    norms_after(clipper, HISTORY * 4)
    if announced:
        clipper.reopen()
    jump = [20 * norm for norm in HISTORY]

    kept = norms_after(clipper, jump[:12])

    if announced:
        # A new scale: nothing of it is lost but the odd norm above the percentile.
        assert kept[:3] == pytest.approx(jump[:3])
        assert sum(kept) > 0.97 * sum(jump[:12])
    else:
        assert max(kept[:3]) < 2


@pytest.mark.parametrize("make", CLIPPERS)
def test_a_spike_some_steps_after_the_objective_changed_is_clipped(
    make: Callable[..., TemporalClipper],
) -> None:
    clipper = make(shift_grace=3)
    norms_after(clipper, HISTORY * 4)
    clipper.reopen()
    norms_after(clipper, HISTORY[:10])

    assert norms_after(clipper, [50.0])[0] < 2


@pytest.mark.parametrize("make", CLIPPERS)
def test_shifts_are_ignored_without_grace(make: Callable[..., TemporalClipper]) -> None:
    clipper, other = make(shift_grace=0), make(shift_grace=0)
    for each in (clipper, other):
        norms_after(each, HISTORY)
    clipper.reopen()

    assert norms_after(clipper, [9.0, 1.0, 2.0]) == norms_after(other, [9.0, 1.0, 2.0])


@pytest.mark.parametrize("make", CLIPPERS)
def test_reopening_does_not_shorten_the_warmup(make: Callable[..., TemporalClipper]) -> None:
    clipper = make(warmup=25)
    norms_after(clipper, HISTORY[:10])
    clipper.reopen()
    norms_after(clipper, HISTORY[:5])

    assert norms_after(clipper, [70.0]) == pytest.approx([70.0])


def test_the_percentile_of_the_window_is_the_limit() -> None:
    clipper = PercentileClipper(percentile=90, window=20, warmup=5)
    norms = list(range(1, 41))
    norms_after(clipper, norms)

    (kept,) = norms_after(clipper, [1_000.0])

    assert kept == pytest.approx(np.percentile(norms[-20:], 90), rel=1e-6)
    # As it was before clipping, it is part of the history from now on.
    assert norms_after(clipper, [1_000.0])[0] == pytest.approx(
        np.percentile([*norms[-19:], 1_000.0], 90), rel=1e-6
    )


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (ZScoreClipper, {"decay": 1.5}, "decay is 1.5; expected a number between 0 and 1"),
        (ZScoreClipper, {"z_threshold": -1.0}, "z_threshold is -1.0"),
        (ZScoreClipper, {"warmup": 0}, "warmup is 0"),
        (PercentileClipper, {"percentile": 101.0}, "percentile is 101.0; .* between 0 and 100"),
        (PercentileClipper, {"window": 0}, "window is 0"),
        (PercentileClipper, {"shift_grace": -1}, "shift_grace is -1"),
    ],
)
def test_arguments_are_checked(make, arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        make(**arguments)


def norm_after_history(clipper: TemporalClipper, count: int) -> float:
    """Feed so many usual norms and then one of 1,000; return what is left of it."""
    norms_after(clipper, HISTORY[:count])
    return norms_after(clipper, [1000.0])[0]


@pytest.mark.parametrize("make", CLIPPERS)
def test_exactly_the_warmup_and_the_grace_are_watched(make) -> None:
    for watched, clipped in ((24, False), (25, True)):
        assert (norm_after_history(make(warmup=25), watched) < 900) == clipped
    for seen, clipped in ((2, False), (3, True)):
        clipper = make(shift_grace=3)
        norms_after(clipper, HISTORY * 4)
        clipper.reopen()
        assert (norm_after_history(clipper, seen) < 900) == clipped


@pytest.mark.parametrize("make", CLIPPERS)
def test_a_layer_is_watched_for_its_own_first_gradients(make) -> None:
    clipper = make(warmup=5)
    for _ in range(20):
        clipper.apply({"early": [torch.ones(1)], "late": [None]})
    clipper.apply({"early": [torch.ones(1)], "late": [torch.ones(1)]})
    assert clipper.apply({"early": [torch.ones(1)], "late": [torch.full((1,), 50.0)]}).scales.tolist() == [
        1,
        1,
    ]


def test_reopening_early_does_not_pretend_to_a_memory() -> None:
    clipper, other = ZScoreClipper(), ZScoreClipper()
    for each in (clipper, other):
        norms_after(each, [1.0, 3.0])
    clipper.reopen()
    for each in (clipper, other):
        norms_after(each, [5.0])
    assert torch.equal(clipper.state["mean"], other.state["mean"])


def test_a_history_of_another_length_is_dropped() -> None:
    saved, clipper = PercentileClipper(window=100), PercentileClipper(window=10)
    norms_after(saved, [100.0] * 200)
    clipper.load_state_dict(saved.state_dict())
    norms_after(clipper, HISTORY)
    assert norms_after(clipper, [90.0])[0] < 2
