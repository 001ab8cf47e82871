"""The section ``search`` of a study: what it plans, and which mistakes end with one line."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gfs.errors import UserError
from lit_gfs.study.planning.plan import Study, read_study
from lit_gfs.study.planning.search_section import Pair
from lit_gfs.study.search.tuning import probes, searched_pairs, trial_blocks

CONTENT: dict[str, Any] = yaml.safe_load(
    """
name: example
factors:
  task:
    cart: {floor: 9, reference: 500}
    pole: {floor: 0, reference: 1}
    pong: {}
  network: {a: {options: {net: a}}, b: {options: {net: b}}}
  scale: {base: {options: {depth: 2}}, large: {options: {depth: 8}}}
  recipe: {plain: {}, gfs: {configs: [recipes/gfs], options: {lr: 1}}}
  seed: [3, 0]
when:
  - {where: {scale: large}, options: {width: 5}}
  - {where: {recipe: plain}, options: {lr: 7}}
skip: [{recipe: gfs, network: b, scale: large}]
search:
  seeds: [10, 11]
  recipes:
    gfs: {lr: {low: 1e-5, high: 1, log: true}, model.kind: {choices: [x, null, 3]}}
compare: {baseline: plain, base_scale: base, tuned_on: [cart, pole]}
"""
)
CHOICE = {
    "recipe": "gfs",
    "scale": "large",
    "options": {"lr": 0.5, "model.kind": None},
    "score": 0.7,
    "trial": 3,
    "trials": 20,
    "pruned": 2,
    "seeds": [10, 11],
    "tasks": ["cart", "pole"],
}


def content(path: str = "", value: Any = None) -> dict[str, Any]:
    """Return the example with a value changed, by a path of keys that slashes separate."""
    changed = copy.deepcopy(CONTENT)
    if path:
        *parents, last = path.split("/")
        section = changed
        for parent in parents:
            section = section[parent]
        section[last] = value
    return changed


def test_a_trial_has_the_study_s_cells_on_other_seeds() -> None:
    study = read_study(CONTENT)
    options = {"lr": 0.25, "model.kind": "x"}

    assert searched_pairs(study) == [Pair("gfs", "base"), Pair("gfs", "large")]
    blocks = trial_blocks(study, Pair("gfs", "large"), 4, options)

    assert [block.seed for block in blocks] == ["10", "11"]
    assert [[cell.name for cell in block.cells] for block in blocks] == [
        [f"{task}-a-large-gfs-seed_{seed}-trial_4" for task in ("cart", "pole")] for seed in (10, 11)
    ]
    assert blocks[0].cells[0].arguments == [
        "--config=recipes/gfs",
        "--net=a",
        "--depth=8",
        "--lr=1",
        "--seed_everything=10",
        "--lr=0.25",
        "--model.kind=x",
        "--width=5",
    ]


def test_a_choice_goes_into_the_cells_as_in_the_search_and_is_saved_with_the_study(tmp_path: Path) -> None:
    study = read_study(content("search/chosen", [CHOICE]))
    (cell,) = (cell for cell in study.cells() if cell.name == "cart-a-large-gfs-seed_0")
    (trial, _) = trial_blocks(study, Pair("gfs", "large"), 3, CHOICE["options"])  # type: ignore[arg-type]

    assert "--seed_everything=0" in cell.arguments
    assert [argument for argument in cell.arguments if "seed" not in argument] == [
        argument for argument in trial.cells[0].arguments if "seed" not in argument
    ]
    chosen_for = {tuple(cell.levels.values())[2:4] for cell in study.cells() if "--lr=0.5" in cell.arguments}
    assert chosen_for == {("large", "gfs")}
    study.save(tmp_path / "study.yaml")
    again = Study.load(tmp_path / "study.yaml")
    assert again == study
    assert again.cells() == study.cells()


def test_the_ends_and_the_choices_are_checked_before_a_search() -> None:
    base, large = probes(read_study(content("search/recipes/gfs/n", {"low": 2, "high": 8})))

    arguments = {argument for cell in base.cells() for argument in cell.arguments}
    assert {"--lr=1e-05", "--lr=1", "--n=2", "--n=8", "--n=4.292", "--model.kind=null"} <= arguments
    assert {cell.levels["scale"] for cell in large.cells()} == {"large"}


MISTAKES = [
    ("search", "gfs", "search is 'gfs'; expected keys such as seeds, recipes"),
    ("search/seed", [1], "search: 'seed' is no known key; did you mean 'seeds'?"),
    ("search/seeds", [], "search.seeds is []; expected different numbers"),
    ("search/seeds", [1, 1], "search.seeds is [1, 1]; expected different numbers"),
    ("search/seeds", [1.5], "search.seeds is [1.5]; expected a list of whole numbers"),
    ("search/seeds", [10, 3], "search.seeds: 3 is also in factors.seed; expected other seeds to tune"),
    ("search/trials", 0, "search.trials is 0; expected a number of at least 1"),
    ("search/trials", "many", "search.trials is 'many'; expected a whole number"),
    ("search/sampler_seed", -1, "search.sampler_seed is -1; expected a number of at least 0"),
    ("search/prune", 1, "search.prune is 1; expected true or false"),
    ("search/tasks", ["crat"], "search.tasks: 'crat' is no known task; did you mean 'cart'?"),
    ("search/tasks", ["pong"], "search.tasks: 'pong' is not in compare.tuned_on, so it is held out"),
    ("compare/tuned_on", [], "search.tasks is empty, as compare.tuned_on is; expected tasks of the study"),
    ("search/recipes", {}, "search.recipes is empty; expected distributions by option, by recipe"),
    ("search/recipes", {"gsf": {}}, "search.recipes: 'gsf' is no known recipe; did you mean 'gfs'?"),
    ("search/recipes/gfs", {}, "search.recipes.gfs is {}; expected distributions by option"),
    ("search/recipes/gfs/lr", 0.1, "search.recipes.gfs.lr is 0.1; expected choices, or low and high"),
    ("search/recipes/gfs/lr", {"low": 1}, "search.recipes.gfs.lr.high is missing"),
    ("search/recipes/gfs/lr/hihg", 1, "search.recipes.gfs.lr: 'hihg' is no known key; did you mean 'high'?"),
    ("search/recipes/gfs/lr/low", 0, "search.recipes.gfs.lr.low is 0; expected more than 0 on a logarithmic"),
    ("search/recipes/gfs/lr/low", 2, "search.recipes.gfs.lr.low is 2; expected less than high, 1"),
    ("search/recipes/gfs/lr/low", "lots", "search.recipes.gfs.lr.low is 'lots'; expected a number"),
    ("search/recipes/gfs/lr/high", True, "search.recipes.gfs.lr.high is True; expected a number"),
    ("search/recipes/gfs/lr/high", float("inf"), "search.recipes.gfs.lr.high is inf; expected a number"),
    ("search/recipes/gfs/lr/log", "yes", "search.recipes.gfs.lr.log is 'yes'; expected true or false"),
    ("search/recipes/gfs/lr/step", 0.1, "search.recipes.gfs.lr.step is 0.1; expected a step that leads from"),
    ("search/recipes/gfs/lr", {"low": 1, "high": 2, "step": 0}, "lr.step is 0; expected a number above 0"),
    (
        "search/recipes/gfs/lr",
        {"low": 1, "high": 5, "step": 2, "log": True},
        "lr.step is 2; on a logarithmic scale expected none, or 1 for integers",
    ),
    (
        "search/recipes/gfs/lr/choices",
        [1],
        "search.recipes.gfs.lr has choices and low; expected choices alone",
    ),
    (
        "search/recipes/gfs/lr",
        {"choices": []},
        "search.recipes.gfs.lr.choices is []; expected a list of values",
    ),
    ("search/recipes/gfs/lr", {"choices": [1, 1]}, "lr.choices is [1, 1]; expected different values"),
    (
        "search/recipes/gfs/width",
        {"choices": [1]},
        "search.recipes.gfs: when[0] sets 'width' and goes before",
    ),
    ("search/recipes/gfs/width.a", {"choices": [1]}, "search.recipes.gfs: when[0] sets 'width.a' and goes"),
    ("factors/trial", {"one": {}}, "factors.trial: a search adds a factor of this name"),
    ("search/chosen", 3, "search.chosen is 3; expected a list of choices, as search wrote it"),
    (
        "search/chosen",
        [{key: value for key, value in CHOICE.items() if key != "scale"}],
        "search.chosen[0].scale is missing",
    ),
    ("search/chosen", [CHOICE, CHOICE], "search.chosen has two choices for one recipe and scale"),
]


@pytest.mark.parametrize(("path", "value", "expected"), MISTAKES)
def test_a_mistake_ends_with_one_line(path: str, value: Any, expected: str) -> None:
    with pytest.raises(UserError, match=re.escape(expected)) as error:
        read_study(content(path, value))
    assert "\n" not in str(error.value)


def test_a_recipe_that_only_held_out_tasks_have_cannot_be_searched() -> None:
    changed = content("skip", [{"recipe": "gfs", "task": ["cart", "pole"]}])

    with pytest.raises(UserError, match="skip leaves recipe 'gfs' at scale 'base' no cell"):
        searched_pairs(read_study(changed))
