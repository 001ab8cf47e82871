"""What is read from a run's events, and how it becomes rows of the tables."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from lit_gfs.errors import UserError
from lit_gfs.study.planning.plan import Score, Study, read_study
from lit_gfs.study.results.collect import (
    Result,
    bin_gradient_norms,
    make_table,
    read_events,
    read_result,
    write_result,
)
from lit_gfs.study.results.table import FAILED, FINISHED, MISSING, Curve, GradientNorms
from support.study_fits import TAG, write_events

NORM = "gradient_flow/norm/"
APPLIED = "gradient_flow/norm_applied/"


def study() -> Study:
    return read_study(
        yaml.safe_load(
            """
            name: example
            score: {final_share: 0.5}
            factors:
              task: {cart: {floor: 10, reference: 110}, pong: {}}
              scale: {base: {}}
              recipe: {baseline: {}}
              seed: [4, 5]
            compare: {baseline: baseline, base_scale: base}
            """
        )
    )


def test_curves_have_steps_and_seconds_since_the_fit_began(tmp_path: Path) -> None:
    write_events(tmp_path, {TAG: [(10, 1.0), (30, 2.5)], "loss": [(40, 0.0)]}, started_at=1_000.0)

    events = read_events(tmp_path, Score(), started_at=998.5)

    assert events.curves == {TAG: Curve([10, 30], [1.5, 2.5], [1.0, 2.5])}
    assert events.steps == 40
    assert events.gradient_norms is None


def test_gradient_norms_keep_the_order_of_the_network(tmp_path: Path) -> None:
    norms = {
        NORM + "trunk.1": [(1, 2.0), (2, 8.0)],
        NORM + "head": [(1, 1.0), (2, 1.0)],
        APPLIED + "trunk.1": [(1, 1.0), (2, 2.0)],
        APPLIED + "head": [(1, 0.5), (2, 0.25)],
    }
    write_events(tmp_path, {TAG: [(10, 1.0)], **norms})

    assert read_events(tmp_path, Score(), 0.0).gradient_norms == GradientNorms(
        ["trunk.1", "head"], [1, 2], [[2.0, 8.0], [1.0, 1.0]], [[1.0, 2.0], [0.5, 0.25]]
    )


def test_a_score_that_was_never_logged_is_told_with_the_nearest(tmp_path: Path) -> None:
    write_events(tmp_path, {"eval/episode_returns": [(10, 1.0)]})

    with pytest.raises(
        UserError, match="'eval/episode_return' was never logged; did you mean 'eval/episode_returns'"
    ):
        read_events(tmp_path, Score(), 0.0)


def test_long_runs_are_averaged_geometrically() -> None:
    generator = np.random.default_rng(0)
    raw = np.exp(generator.normal(size=(2, 100)))
    steps = [10 * index for index in range(100)]
    by_step = {name: dict(zip(steps, row.tolist(), strict=True)) for name, row in zip("ab", raw, strict=True)}

    norms = bin_gradient_norms(["a", "b"], by_step, {"a": by_step["a"]}, max_bins=40)

    assert norms.steps == steps[::3]  # 34 stretches of three measurements
    expected = [[np.exp(np.log(row[start : start + 3]).mean()) for start in range(0, 100, 3)] for row in raw]
    np.testing.assert_allclose(norms.raw, expected, rtol=1e-4)
    np.testing.assert_allclose(norms.applied[0], expected[0], rtol=1e-4)
    assert all(math.isnan(norm) for norm in norms.applied[1])


def test_norms_that_are_zero_or_not_finite_are_left_out_of_a_mean() -> None:
    raw = {"a": {0: 0.0, 1: 4.0, 2: 0.0, 3: 0.0, 4: math.inf, 5: 0.0}}

    norms = bin_gradient_norms(["a"], raw, raw, max_bins=3)

    assert norms.raw[0][:2] == [4.0, 0.0]
    assert math.isnan(norms.raw[0][2])


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    norms = GradientNorms(["a"], [1], [[0.5]], [[0.25]])
    result = Result(
        "c", ["--a=1"], ["fit"], FINISHED, "", None, 9, 8, 1.5, {TAG: Curve([1], [0.5], [2.0])}, norms
    )

    write_result(tmp_path, result)

    assert read_result(tmp_path) == result
    (tmp_path / "result.json").write_text("{")
    assert read_result(tmp_path) is None
    assert read_result(tmp_path / "nowhere") is None


def test_rows_are_judged_by_the_study() -> None:
    plan = study()
    cart, pong, other, *_ = (cell.name for cell in plan.cells())
    norms = GradientNorms(["a"], [1], [[0.5]], [[0.25]])
    curve = Curve([1, 2, 3, 4], [0.0, 1.0, 2.0, 3.0], [10.0, 20.0, 50.0, 70.0])
    results = {
        cart: Result(cart, [], [], FINISHED, "", None, 4, 8, 1.5, {TAG: curve}, norms),
        pong: Result(pong, [], [], FINISHED, "", "ALE/Pong-v5", 4, 8, 1.5, {TAG: Curve([4], [3.0], [14.6])}),
        other: Result(other, [], [], FAILED, "killed", gradient_norms=norms),
    }

    table = make_table(plan, results)

    rows = {run.cell: run for run in table.runs}
    assert [run.cell for run in table.runs] == [cell.name for cell in plan.cells()]
    assert rows[cart].final_score == 60.0  # the mean over the last half
    assert rows[cart].normalized_score == 0.5
    assert rows[cart].instability == 0.0
    assert rows[pong].normalized_score == 1.0  # as a human tester
    assert rows[pong].instability is None  # it never rose above its start
    assert (rows[other].status, rows[other].error, rows[other].final_score) == (FAILED, "killed", None)
    assert table.runs[3].status == MISSING
    assert table.curves == {(cart, TAG): curve, (pong, TAG): results[pong].curves[TAG]}
    assert table.gradient_norms == {cart: norms}  # of the first seed
