"""Rules on made-up series, one by one, and on the recorded runs of ``docs/results/diagnosis.csv``."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import lit_gfs
from lit_gfs.metrics.diagnosis import RULES, diagnose, is_read, not_judged, summary_line
from lit_gfs.metrics.findings import Finding, Scalars
from lit_gfs.metrics.learning_rules import (
    CHURN,
    EPSILON,
    EVALUATION,
    HEAD_CHURN,
    KL,
    NONFINITE,
    SKIPPED,
    TD_ERROR,
    TRAINING,
    evaluation_apart,
    lost_return,
)
from lit_gfs.metrics.network_rules import DORMANT, DORMANT_LAYER, NORM, RANK, chains, first_to_last
from lit_gfs.metrics.series import Series, bounded

RECORDED = Path(str(lit_gfs.__file__)).resolve().parent.parent / "docs" / "results" / "diagnosis.csv"


def recorded() -> dict[str, Scalars]:
    points: dict[str, dict[str, list[tuple[int, float]]]] = defaultdict(lambda: defaultdict(list))
    with RECORDED.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            points[row["run"]][row["tag"]].append((int(row["step"]), float(row["value"])))
    return {run: {tag: bounded(curve) for tag, curve in curves.items()} for run, curves in points.items()}


RUNS = recorded()


def series(*values: float) -> Series:
    """A point every hundred steps."""
    return Series([100 * (index + 1) for index in range(len(values))], list(values))


def chain(*norms: Sequence[float]) -> dict[str, Series]:
    """The gradient norms of a chain of layers, first layer first."""
    return {f"{NORM}trunk.layers.{3 * layer}": series(*values) for layer, values in enumerate(norms)}


def names(findings: Sequence[Finding]) -> list[str]:
    return [finding.name for finding in findings]


FIRING: list[tuple[str, Scalars]] = [
    ("features collapsed", {RANK: series(16, 9, *[2.4] * 8)}),
    ("features collapsed", {RANK: series(*[1.1] * 8)}),
    ("features collapsed", {RANK: series(*[1.1] * 8), EVALUATION: series(9, 8)}),
    ("features collapsed", {RANK: series(*[1.1] * 10), EVALUATION: series(9, 500, 300)}),
    ("dormant units", {DORMANT: series(0.1, 0.8, 0.8, 0.76)}),
    ("dormant units", {DORMANT: series(*[0.3] * 3), f"{DORMANT_LAYER}trunk.layers.9": series(*[0.97] * 3)}),
    ("starving layers", chain(*[[0.01] * 5] * 2, *[[1.0] * 5] * 6)),
    ("exploding layers", chain(*[[50.0] * 5] * 2, *[[1.0] * 5] * 6)),
    ("divergence", {SKIPPED: series(0, 0, 50, 100, 150)}),
    ("divergence", {NONFINITE: series(0, 0, 2, 2, 2)}),
    ("divergence", {TD_ERROR: series(*[0.1] * 6, *[20.0] * 3)}),
    ("churn", {CHURN: series(0, 0.9, 0, 0, 0.6, 0, 0.7, 0)}),
    ("learning rate too high", {HEAD_CHURN: series(0, 0.2, 0, 0, 0.3, 0, 0.2, 0)}),
    ("learning rate too high", {KL: series(*[0.06] * 8)}),
    ("evaluation and training apart", {EVALUATION: series(*[-500] * 4), TRAINING: series(*[-110] * 4)}),
    ("return lost", {EVALUATION: series(-500, -90, -90, -90, *[-490] * 8)}),
]

QUIET: list[tuple[str, Scalars]] = [
    ("too short to collapse", {RANK: series(16, *[1.0] * 6)}),
    ("a few directions from the start", {RANK: series(*[2.4] * 20)}),
    ("single low ranks", {RANK: series(16, *[1.0, 8.0] * 20)}),
    ("half of the units", {DORMANT: series(*[0.6] * 20)}),
    ("even layers", chain(*[[1.0, 2.0, 3.0, 4.0, 5.0]] * 8)),
    ("starving at first only", chain(*[[0.001, 0.5, 1.0, 1.0, 1.0]] * 2, *[[1.0] * 5] * 6)),
    ("other kinds of layers", {f"{NORM}norm": series(*[1e-6] * 9), f"{NORM}head": series(*[1.0] * 9)}),
    ("one skipped step", {SKIPPED: series(0, 0, *[1] * 20)}),
    ("a growing error", {TD_ERROR: series(*[0.1 * 1.3**index for index in range(20)])}),
    ("a single turn", {CHURN: series(0.9, *[0.1] * 20)}),
    ("random actions become rarer", {
        EVALUATION: series(*[100, 200, 300, 500]),
        TRAINING: series(*[20, 30, 40, 60]),
        EPSILON: series(1.0, 0.8, 0.6, 0.4),
    }),
    ("training has random actions", {EVALUATION: series(*[500] * 8), TRAINING: series(*[100] * 8)}),
    ("noise of a bad policy", {EVALUATION: series(-500, -495, -500, *[-500] * 10)}),
    ("one direction is enough for a solved task", {
        RANK: series(8, *[1.1] * 11), EVALUATION: series(9, 200, *[500] * 10)
    }),
    ("a dip", {EVALUATION: series(-500, -90, -90, -500, -90, -90, -90, -90)}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "scalars"), FIRING)
def test_a_rule_fires(name: str, scalars: Scalars) -> None:
    assert names(diagnose(scalars)) == [name]
    assert diagnose(scalars)[0].lasts


@pytest.mark.parametrize("scalars", [scalars for _, scalars in QUIET], ids=[name for name, _ in QUIET])
def test_no_rule_fires(scalars: Scalars) -> None:
    assert diagnose(scalars) == []


@pytest.mark.parametrize(("name", "scalars"), FIRING)
def test_no_rule_fires_on_the_first_two_points(name: str, scalars: Scalars) -> None:
    assert diagnose({tag: Series(each.steps[:2], each.values[:2]) for tag, each in scalars.items()}) == []


def test_a_finding_says_what_since_when_where_and_what_to_try() -> None:
    (finding,) = diagnose({RANK: series(16, 9, *[2.4] * 8)})

    assert finding.since == 300
    assert finding.line.startswith(
        "features collapsed since step 300: the effective rank is 2.4, and was up to 16; "
        "see docs/collapse.md, section 2; try --gfs.path_init"
    )
    assert "\n" not in finding.line


def test_a_finding_that_ends_says_so() -> None:
    (finding,) = diagnose({RANK: series(16, *[1.0] * 8, 9, 9)})

    assert not finding.lasts
    assert str(finding).startswith("features collapsed since step 200 until 1,000:")


def test_a_layer_without_gradient_starves() -> None:
    (finding,) = diagnose(chain([0.0] * 5, *[[1.0] * 5] * 3))

    assert "trunk.layers.0 are 0 times those near trunk.layers.9" in finding.text


def test_layers_are_ordered_by_their_numbers() -> None:
    layers = [f"policy.layers.{index}" for index in (10, 0, 2, 1)] + ["value.layers.0", "head"]

    assert chains(layers) == [[f"policy.layers.{index}" for index in (0, 1, 2, 10)]]


def test_the_ratio_of_layers_leaves_out_what_is_not_finite() -> None:
    inf, nan = float("inf"), float("nan")
    ratios = first_to_last(
        [series(2, nan, 8, 0), series(1, 1, 1, 1), series(1, 1, 1, 1), series(1, 1, inf, 4)]
    )

    assert ratios == Series([100, 400], [pytest.approx(2.0), 0.0])


def test_evaluations_are_judged_once_epsilon_is_constant() -> None:
    scalars = {
        EVALUATION: series(*[20] * 8),
        TRAINING: series(*[500] * 8),
        EPSILON: series(1.0, 0.5, *[0.05] * 6),
    }

    assert [finding.since for finding in evaluation_apart(scalars) or ()] == [400]


def test_a_return_that_never_rose_cannot_be_lost() -> None:
    assert lost_return({EVALUATION: series(*[-500] * 12)}) == []


def test_rules_without_data_are_named() -> None:
    scalars = {RANK: series(*[9.0] * 8)}

    assert [rule.name for rule in not_judged(scalars)] == [rule.name for rule in RULES[1:]]
    assert summary_line(scalars).startswith(
        "0 of 1 rules fired; not judged: dormant units (needs more measurements of --gfs."
    )


def test_everything_that_a_rule_reads_is_kept() -> None:
    asked: set[str] = set()

    class Asking(dict[str, Series]):
        """Notes the tags that are looked up, and has some points of each."""

        def get(self, tag: str, default: object = None) -> Series:  # type: ignore[override]
            asked.add(tag)
            return series(*[1.0] * 20)

        def __contains__(self, tag: object) -> bool:
            asked.add(str(tag))
            return True

        def __getitem__(self, tag: str) -> Series:
            return self.get(tag)

        def __iter__(self) -> Iterator[str]:
            return iter([f"{NORM}a.{layer}" for layer in range(4)] + [f"{DORMANT_LAYER}a.0"])

    judge: Callable[[Mapping[str, Series]], object]
    for _, _, judge in RULES:
        assert judge(Asking()) is not None
    assert len(asked) >= 12
    assert [tag for tag in asked if not is_read(tag)] == []
    assert not is_read("loss/q")


def test_recorded_runs_that_work_are_not_blamed() -> None:
    working = {run: scalars for run, scalars in RUNS.items() if not run.startswith("broken")}

    assert len(working) == 7
    assert [(run, names(found)) for run, scalars in working.items() if (found := diagnose(scalars))] == []


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        ("broken: deep", ["features collapsed"]),
        (
            "broken: quickstart, rate 0.05",
            ["features collapsed", "dormant units", "churn", "learning rate too high"],
        ),
        ("broken: swingup, rate 0.02", ["learning rate too high"]),
    ],
)
def test_recorded_runs_that_are_broken_are_told(run: str, expected: list[str]) -> None:
    assert names(diagnose(RUNS[run])) == expected


def test_the_collapse_is_found_by_the_first_evaluation() -> None:
    early = {
        tag: bounded((step, value) for step, value in zip(*each, strict=True) if step <= 11_000)
        for tag, each in RUNS["broken: deep"].items()
    }

    assert names(diagnose(early)) == ["features collapsed"]
