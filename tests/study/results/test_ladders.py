"""Scales that differ in one measure are found, and the largest one without loss on each."""

from __future__ import annotations

from typing import Any

import pytest

from lit_gfs.study.planning.plan import Study
from lit_gfs.study.results.ladders import Ladder, find_ladders, largest_without_loss
from support.synthetic_study import study


def plan(*sizes: tuple[int | None, int | None], init_args: bool = False) -> Study:
    place = "model.trunk.init_args" if init_args else "model.trunk"
    scales = {}
    for depth, width in sizes:
        measures = {"depth": depth, "width": width}
        options = {f"{place}.{name}": size for name, size in measures.items() if size is not None}
        scales[f"{depth}x{width}"] = {"options": options}
    return study(
        factors={
            "task": {"acrobot": {"floor": 0, "reference": 1}},
            "scale": scales,
            "recipe": {"baseline": {}, "gfs": {}},
            "seed": [0],
        },
        compare={"baseline": "baseline", "base_scale": next(iter(scales))},
        skip=[],
    )


def found(known: Study) -> list[Ladder]:
    return find_ladders(known, list(known.factors["scale"]))


@pytest.mark.parametrize("init_args", [False, True])
def test_depth_and_width_are_ladders_of_their_own(init_args: bool) -> None:
    sizes = [(3, 32), (4, 64), (8, 64), (16, 64), (4, 128), (4, 256)]

    assert found(plan(*sizes, init_args=init_args)) == [
        Ladder("depth", "width 64", ["4x64", "8x64", "16x64"], [4, 8, 16]),
        Ladder("width", "depth 4", ["4x64", "4x128", "4x256"], [64, 128, 256]),
    ]


def test_depth_alone_is_enough() -> None:
    sizes = [(4, None), (8, None), (16, None)]

    assert found(plan(*sizes)) == [Ladder("depth", "", ["4xNone", "8xNone", "16xNone"], [4, 8, 16])]


def test_scales_that_share_nothing_are_one_ladder_in_their_order() -> None:
    assert found(plan((3, 32), (6, 64), (2, 16))) == [Ladder("scale", "", ["3x32", "6x64", "2x16"], [])]


def test_two_scales_are_no_ladder() -> None:
    assert found(plan((3, 32), (12, 96))) == []
    assert found(plan((3, 32), (12, 32))) == []


def row(scale: str, recipe: str, value: float | None, low: float | None = None) -> dict[str, Any]:
    interval = None if low is None else [low, 2.0]
    return {
        "stratum": "acrobot",
        "scale": scale,
        "recipe": recipe,
        "ratio": {"value": value, "interval": interval},
    }


def test_the_last_scale_counts_even_if_one_before_it_loses() -> None:
    known = plan((4, 8), (8, 8), (16, 8), (32, 8))
    rows = [
        row("4x8", "baseline", None),  # the small baseline itself
        row("32x8", "gfs", 0.9, 0.8),
        row("16x8", "gfs", 1.0, 0.9),
        row("8x8", "gfs", 0.99, 0.96),
        row("4x8", "gfs", 1.1, 1.0),
        row("8x8", "baseline", 0.999),
        row("64x8", "gfs", 2.0, 2.0),  # not on this ladder
    ]

    assert largest_without_loss(known.compare, *found(known), rows) == [
        {"stratum": "acrobot", "recipe": "baseline", "by_estimate": "4x8", "by_interval": "4x8"},
        {"stratum": "acrobot", "recipe": "gfs", "by_estimate": "16x8", "by_interval": "8x8"},
    ]


def test_a_recipe_that_always_loses_has_none() -> None:
    known = plan((4, 8), (8, 8), (16, 8))

    (entry,) = largest_without_loss(known.compare, *found(known), [row("8x8", "gfs", 0.5, 0.4)])

    assert (entry["by_estimate"], entry["by_interval"]) == (None, None)
