"""Which cells a study has, what each of them runs, and what is refused."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gfs.configuration.config_files import shipped_configs
from lit_gfs.errors import UserError
from lit_gfs.study.planning.factors import read_where
from lit_gfs.study.planning.plan import Study, read_study

CONTENT: dict[str, Any] = yaml.safe_load(
    """
name: example
description: Two tasks.
factors:
  task:
    cart: {configs: [quickstart], floor: 9, reference: 500}
    pong: {configs: [dqn_pong], options: {data.total_steps: 1_000}}
  network:
    plain: {options: {model.trunk: PlainTrunk}}
  scale:
    base: {options: {model.trunk.depth: 2}}
    large: {options: {model.trunk.depth: 8, data.env_options: {a: [1, null]}}}
  recipe:
    baseline: {configs: [recipes/baseline]}
    gfs: {configs: [recipes/gfs], options: {gfs.path_init.mirrored: true}}
  seed: [3, 0]
when:
  - where: {recipe: gfs, scale: [large]}
    options: {model.optimizer.lr: 1.0e-4}
skip:
  - {task: pong, scale: large, recipe: [baseline]}
compare: {baseline: baseline, base_scale: base, tuned_on: [cart]}
"""
)


def content(**changes: Any) -> dict[str, Any]:
    """Return the example with some values changed, by dotted key."""
    changed = copy.deepcopy(CONTENT)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = changed
        for parent in parents:
            section = section[parent]
        section[last] = value
    return changed


def test_cells_come_seed_by_seed_and_in_the_order_of_the_factors() -> None:
    names = [cell.name for cell in read_study(CONTENT).cells()]

    of_a_seed = [
        "cart-plain-base-baseline",
        "cart-plain-base-gfs",
        "cart-plain-large-baseline",
        "cart-plain-large-gfs",
        "pong-plain-base-baseline",
        "pong-plain-base-gfs",
        "pong-plain-large-gfs",  # the baseline is skipped
    ]
    assert names == [f"{name}-seed_{seed}" for seed in (3, 0) for name in of_a_seed]


def test_a_cell_runs_configs_then_options_in_the_order_of_the_factors() -> None:
    cells = {cell.name: cell for cell in read_study(CONTENT).cells()}

    assert cells["pong-plain-large-gfs-seed_0"].arguments == [
        "--config=dqn_pong",
        "--config=recipes/gfs",
        "--data.total_steps=1000",
        "--model.trunk=PlainTrunk",
        "--model.trunk.depth=8",
        '--data.env_options={"a": [1, null]}',
        "--gfs.path_init.mirrored=true",
        "--seed_everything=0",
        "--model.optimizer.lr=0.0001",
    ]
    assert "--model.optimizer.lr=0.0001" not in cells["pong-plain-base-gfs-seed_0"].arguments


def test_levels_and_strata() -> None:
    study = read_study(CONTENT)
    cell = study.cells()[0]

    assert cell.levels == {
        "task": "cart",
        "network": "plain",
        "scale": "base",
        "recipe": "baseline",
        "seed": "3",
    }
    assert study.stratum(cell.levels) == "cart / plain"


def test_the_seed_may_stand_anywhere_among_the_factors() -> None:
    factors = {"seed": [1, 2], **{key: value for key, value in CONTENT["factors"].items() if key != "seed"}}

    cells = read_study(content(factors=factors)).cells()

    assert cells[0].name == "seed_1-cart-plain-base-baseline"
    assert cells[0].arguments[2] == "--seed_everything=1"
    assert [cell.levels["seed"] for cell in cells] == ["1"] * 7 + ["2"] * 7


def test_names_are_safe_for_files() -> None:
    tasks = {"ALE/Pong-v5 (full)": {"configs": ["dqn_pong"]}}

    study = read_study(content(factors__task=tasks, skip=None, compare__tuned_on=[]))

    assert study.cells()[0].name == "ALE_Pong-v5_full_-plain-base-baseline-seed_3"


def test_a_saved_study_is_the_same_study(tmp_path: Path) -> None:
    study = read_study(CONTENT)

    study.save(tmp_path / "study.yaml")

    assert Study.load(tmp_path / "study.yaml") == study


def test_scores_default_to_evaluation_returns_and_curves_to_the_score() -> None:
    assert read_study(CONTENT).score.tag == "eval/episode_return"
    score = read_study(content(score={"tag": "eval/accuracy", "curve_tag": None})).score
    assert (score.curve_tag, score.final_share) == ("eval/accuracy", 0.1)


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"factor": {}}, "the study: 'factor' is no known key; did you mean 'factors'"),
    "unknown key of a level": (
        {"factors__task__cart": {"configs": ["quickstart"], "flor": 1}},
        "factors.task.cart: 'flor' is no known key; did you mean 'floor'",
    ),
    "missing factor": (
        {"factors": {key: value for key, value in CONTENT["factors"].items() if key != "recipe"}},
        "factors.recipe is missing",
    ),
    "configs that are no list": (
        {"factors__recipe__gfs": {"configs": "x"}},
        "gfs.configs is 'x'; expected a list",
    ),
    "unknown level in when": (
        {"when": [{"where": {"recipe": "gsf"}, "options": {}}]},
        r"when\[0\].where: 'gsf' is no known level of recipe; did you mean 'gfs'",
    ),
    "unknown factor in skip": (
        {"skip": [{"recipy": "gfs"}]},
        r"skip\[0\]: 'recipy' is no known factor.*'recipe'",
    ),
    "when without options": ({"when": [{"where": {"recipe": "gfs"}}]}, r"when\[0\] is .* where and options"),
    "unknown baseline": ({"compare__baseline": "base"}, "compare.baseline: 'base' is no known recipe"),
    "unknown base scale": ({"compare__base_scale": "bas"}, "compare.base_scale: 'bas' is no known scale"),
    "unknown tuned task": (
        {"compare__tuned_on": ["card"]},
        "compare.tuned_on: 'card' is no known task.*'cart'",
    ),
    "tuned baseline": (
        {"compare__tuned_baseline": "gsf"},
        "compare.tuned_baseline: 'gsf' is no known recipe; did you mean 'gfs'",
    ),
    "tuned baseline as baseline": (
        {"compare__tuned_baseline": "baseline"},
        "compare.tuned_baseline is 'baseline', as compare.baseline; expected another recipe",
    ),
    "no baseline": ({"compare": {"base_scale": "base"}}, "compare.baseline is missing"),
    "nothing to compare": ({"compare": {}}, "compare.baseline and compare.base_scale are missing"),
    "a reference alone": (
        {"factors__task__cart": {"configs": ["quickstart"], "reference": 1}},
        "factors.task.cart has only one of floor and reference",
    ),
    "a floor above the reference": (
        {"factors__task__cart": {"floor": 2, "reference": 1}},
        "cart.floor is 2; exp",
    ),
    "a floor of a recipe": (
        {"factors__recipe__gfs": {"floor": 2, "reference": 3}},
        "only levels of task have",
    ),
    "a floor that is text": (
        {"factors__task__cart__floor": "low"},
        "cart.floor is 'low'; expected a number or",
    ),
    "a seed twice": ({"factors__seed": [1, 1]}, r"factors.seed is \[1, 1\]; expected a list of different"),
    "no seeds": ({"factors__seed": []}, r"factors.seed is \[\]"),
    "an unquoted switch": ({"factors__scale": {True: {}}}, "factors.scale.True is no name in YAML; .*quotes"),
    "a seed among options": (
        {"factors__recipe__gfs": {"options": {"seed_everything": 4}}},
        "gfs.options has seed_everything, which the study itself sets; list seeds in factors.seed",
    ),
    "a directory among options": (
        {"factors__recipe__gfs": {"options": {"run.root": "/tmp"}}},
        "factors.recipe.gfs.options has run.root, which the study itself sets for each cell",
    ),
    "a directory in when": (
        {"when": [{"where": {"recipe": "gfs"}, "options": {"ckpt_path": "last.ckpt"}}]},
        r"when\[0\].options has ckpt_path, which the study itself sets for each cell",
    ),
    "a name that is no file's": (
        {"factors__task": {"t" * 220: {}}, "skip": None, "compare__tuned_on": []},
        r"a cell is called 't{40}...', in \d+ bytes; expected levels whose names have 200 bytes together",
    ),
    "cells of one name": (
        {"factors__task": {"a b": {}, "a_b": {}}, "skip": None, "compare__tuned_on": []},
        "two cells are called 'a_b-plain-",
    ),
    "nothing left": ({"skip": [{"scale": ["base", "large"]}]}, "skip leaves no cell"),
    "a name with a slash": ({"name": "../x"}, "name is '../x'; expected the name of a directory"),
    "a share above 1": ({"score": {"final_share": 2}}, "score.final_share is 2; expected a number above 0"),
    "no study": ({"factors": None}, "factors is None; expected levels by factor"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_with_its_place_in_the_file(mistake: str, tmp_path: Path) -> None:
    changes, expected = MISTAKES[mistake]
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content(**changes), sort_keys=False))

    with pytest.raises(UserError, match=expected) as error:
        Study.load(path)

    assert str(error.value).startswith(f"{path}: ")


def test_a_study_with_many_seeds_is_read_in_time() -> None:
    started = time.process_time()

    study = read_study(content(factors__seed=list(range(2_000))))

    assert len(study.factors["seed"]) == 2_000
    assert time.process_time() - started < 3  # with a pass over all cells for each of them, four times that


def test_a_study_of_too_many_cells_is_refused() -> None:
    with pytest.raises(UserError, match=r"factors span 160,000 cells; expected at most 100,000"):
        read_study(content(factors__seed=list(range(20_000))))


def test_a_file_that_is_no_yaml_is_told(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("a: [")

    with pytest.raises(UserError, match="is no YAML"):
        Study.load(tmp_path / "study.yaml")


def test_a_selection_takes_one_level_or_several() -> None:
    factors = read_study(CONTENT).factors

    assert read_where({"seed": 0, "recipe": ["gfs"]}, factors, "--only") == {"seed": ["0"], "recipe": ["gfs"]}
    with pytest.raises(UserError, match="--only: '7' is no known level of seed"):
        read_where({"seed": [7]}, factors, "--only")


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name.startswith("studies/")])
def test_every_shipped_study_loads(name: str) -> None:
    study = Study.load(shipped_configs()[name])

    assert f"studies/{study.name}" == name
    assert len(study.cells()) >= 12
