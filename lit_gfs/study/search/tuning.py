"""The cells of a search: those of its study, on other seeds, with the trial as one more factor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any, NamedTuple

from lit_gfs.errors import UserError
from lit_gfs.study.planning.factors import Level, as_seeds
from lit_gfs.study.planning.plan import Cell, Study
from lit_gfs.study.planning.search_section import TRIAL, Distribution, Pair, Search, is_whole
from lit_gfs.study.results.collect import Result, make_run


class Block(NamedTuple):
    """The cells of a trial that have the same seed."""

    seed: str
    cells: list[Cell]


def search_of(study: Study) -> Search:
    """Return the search of a study.

    Raises:
        UserError: If it has none.
    """
    if study.search is None:
        raise UserError(f"the study {study.name!r} has no section search; expected one, as in docs/search.md")
    return study.search


def searched_pairs(study: Study) -> list[Pair]:
    """List the recipes and scales that a study searches.

    Raises:
        UserError: If a pair has cells in the study, but none on the tasks of the search.
    """
    search = search_of(study)
    searched = dict.fromkeys(pair_of(cell) for cell in trial_study(study, {0: {}}).cells())
    for pair in dict.fromkeys(pair_of(cell) for cell in study.cells()):
        if pair.recipe in search.recipes and pair not in searched:
            raise UserError(f"skip leaves {pair} no cell on search.tasks, {', '.join(search.tasks)}")
    return list(searched)


def pair_of(cell: Cell) -> Pair:
    """Return the recipe and the scale of a cell."""
    return Pair(cell.levels["recipe"], cell.levels["scale"])


def trial_study(study: Study, trials: Mapping[int, Mapping[str, Any]], pair: Pair | None = None) -> Study:
    """Plan trials as a study whose cells are those of the search.

    Args:
        study: The plan.
        trials: The options of each trial, by its number.
        pair: Limits the study to a recipe and a scale.
    """
    search = search_of(study)
    recipes = [pair.recipe] if pair else [name for name in study.factors["recipe"] if name in search.recipes]
    scales = [pair.scale] if pair else list(study.factors["scale"])
    factors = {
        **study.factors,
        "task": {task: study.factors["task"][task] for task in search.tasks},
        "scale": {scale: study.factors["scale"][scale] for scale in scales},
        "recipe": {recipe: study.factors["recipe"][recipe] for recipe in recipes},
        "seed": as_seeds(search.seeds),
        # The last factor: its options go after those of the recipe, and before `when`.
        TRIAL: {f"{TRIAL}_{number}": Level(options=dict(options)) for number, options in trials.items()},
    }
    return replace(study, factors=factors, search=None)


def trial_blocks(study: Study, pair: Pair, number: int, options: Mapping[str, Any]) -> list[Block]:
    """List the cells of a trial, seed by seed."""
    cells = trial_study(study, {number: options}, pair).cells()
    seeds = dict.fromkeys(cell.levels["seed"] for cell in cells)
    return [Block(seed, [cell for cell in cells if cell.levels["seed"] == seed]) for seed in seeds]


def mean_score(study: Study, cells: Iterable[Cell], results: Mapping[str, Result]) -> float:
    """Return the mean normalized score of ended cells; a failed one counts as the floor, 0."""
    runs = [make_run(study, cell, results[cell.name]) for cell in cells]
    return fmean(0.0 if run.normalized_score is None else run.normalized_score for run in runs)


def probes(study: Study) -> list[Study]:
    """Plan trials with the ends of every range and with every choice, to check the options of the search."""
    return [
        trial_study(study, dict(enumerate(_extremes(search_of(study).recipes[pair.recipe]))), pair)
        for pair in searched_pairs(study)
    ]


def _extremes(space: Mapping[str, Distribution]) -> list[dict[str, Any]]:
    values = {option: _ends(distribution) for option, distribution in space.items()}
    count = max(map(len, values.values()))
    return [
        {option: some[min(index, len(some) - 1)] for option, some in values.items()} for index in range(count)
    ]


def _ends(distribution: Distribution) -> Sequence[Any]:
    if "choices" in distribution:
        choices: list[Any] = distribution["choices"]
        return choices
    low, high = distribution["low"], distribution["high"]
    if is_whole(distribution):
        return [low, high]
    # A number between them shows whether the option takes fractions.
    return [low, low + (distribution["step"] or 0.382 * (high - low)), high]
