"""Results from the tables of other directories: which are taken, and that nothing of them is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.cell.planned import fit_command, read_results
from lit_gfs.study.finished import Elsewhere, needed, read_elsewhere, take_over
from lit_gfs.study.origin import Part, write_origin
from lit_gfs.study.planning.plan import STUDY_NAME, Study, read_study
from lit_gfs.study.results.collect import Result, make_table
from lit_gfs.study.results.table import FAILED, FINISHED, Curve, GradientNorms, write_table

TAG = "eval/episode_return"


def study(lr: str = "1", seeds: int = 2) -> Study:
    return read_study(
        {
            "name": "example",
            "factors": {
                "task": {"pong": {}},
                "scale": {"base": {}},
                "recipe": {"baseline": {"options": {"lr": lr}}},
                "seed": list(range(seeds)),
            },
            "compare": {"baseline": "baseline", "base_scale": "base"},
        }
    )


def results_of(plan: Study, place: Path, *statuses: str) -> dict[str, Result]:
    """Let the first cells of a study end."""
    results = {}
    for cell, status in zip(plan.cells(), statuses, strict=False):
        result = Result(cell.name, cell.arguments, fit_command(cell, place, 1), status)
        if status == FINISHED:
            result = result._replace(
                env_id="ALE/Pong-v5",
                steps=9,
                parameters=8,
                wall_seconds=1.5,
                cpu_seconds=2.25,
                curves={TAG: Curve([3, 9], [0.1, 1 / 3], [1 / 3, 2 / 3])},
                gradient_norms=GradientNorms(["head"], [3], [[1.0]], [[0.5]]),
            )
        else:
            result = result._replace(error="killed")
        results[cell.name] = result
    return results


def keep(plan: Study, results: dict[str, Result], place: Path, parts: list[Part] | None = None) -> None:
    place.mkdir()
    plan.save(place / STUDY_NAME)
    write_table(place, make_table(plan, results))
    write_origin(place, parts or [Part("study", {}, list(results))])


def test_a_result_survives_the_tables(tmp_path: Path) -> None:
    plan = study()
    keep(plan, results_of(plan, tmp_path / "part", FINISHED), tmp_path / "part")
    here = tmp_path / "here"

    found = read_elsewhere(plan, str(tmp_path / "part"), 1)
    take_over(here, found.results)

    expected = results_of(plan, tmp_path / "part", FINISHED)
    assert read_results(plan, here) == found.results == expected
    assert make_table(plan, found.results).runs[0].normalized_score is not None  # Atari, by its environment


def test_a_failed_cell_is_taken_over_unless_its_arguments_changed(tmp_path: Path) -> None:
    plan = study()
    keep(plan, results_of(plan, tmp_path, FAILED), tmp_path / "part")

    (found,) = read_elsewhere(plan, str(tmp_path / "part"), 1).results.values()

    assert (found.status, found.error) == (FAILED, "killed")
    assert read_elsewhere(study(lr="2"), str(tmp_path / "part"), 1).results == {}
    assert read_elsewhere(plan, str(tmp_path / "part"), 2).results == {}


def test_a_finished_cell_with_other_arguments_or_of_no_known_origin_is_refused(tmp_path: Path) -> None:
    plan, place = study(), tmp_path / "part"
    results = results_of(plan, place, FINISHED)
    keep(plan, results, place)

    with pytest.raises(UserError, match=r"other arguments: --lr=1 became --lr=2; leave '.*part' out"):
        read_elsewhere(study(lr="2"), str(place), 1)
    write_origin(place, [Part("study", {}, [])])
    with pytest.raises(UserError, match="part' does not say how cell 'pong-base-baseline-seed_0' was run"):
        read_elsewhere(plan, str(place), 1)


def test_each_cell_is_taken_from_one_place(tmp_path: Path) -> None:
    plan = study(seeds=4)
    names = [cell.name for cell in plan.cells()]

    def ended(*statuses: str) -> Elsewhere:
        results = results_of(plan, tmp_path, *statuses)
        return Elsewhere(results, [Part("study", {}, list(results))])

    here = ended(FINISHED, FAILED).results
    first, second = ended(FINISHED, FAILED, FINISHED), ended(FINISHED, FINISHED, FINISHED, FAILED)

    chosen = needed(here, [first, second])

    assert [list(each.results) for each in chosen] == [[names[2]], [names[1], names[3]]]
    assert [part.cells for each in chosen for part in each.parts] == [[names[2]], [names[1], names[3]]]
