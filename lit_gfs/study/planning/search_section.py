"""The section ``search`` of a study: the searched options, the seeds that tune, and the choices made."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from lit_gfs.errors import UserError, shown
from lit_gfs.study.planning.factors import Factors
from lit_gfs.study.planning.sections import check_known, read_section

Distribution = dict[str, Any]
"""Either ``choices``, a list of values; or ``low``, ``high``, ``log`` and ``step`` (``None``: continuous)."""

Space = dict[str, Distribution]
"""Distributions by option, as in ``model.optimizer.lr``."""

SEARCH_DIRECTORY = "search"
"""The directory of a search, in that of its study."""

TRIAL = "trial"
"""The factor that a search adds to those of its study."""

_RANGE = ("low", "high", "log", "step")


class Pair(NamedTuple):
    """A recipe at a scale. Each pair is searched by itself."""

    recipe: str
    scale: str

    def __str__(self) -> str:
        return f"recipe {self.recipe!r} at scale {self.scale!r}"


@dataclass(frozen=True)
class Choice:
    """The options that a search chose for a recipe at a scale.

    Attributes:
        recipe: The recipe.
        scale: The scale.
        options: The chosen value by option.
        score: The mean normalized score of the chosen trial, over the tasks and the seeds.
        trial: The number of the chosen trial.
        trials: Number of trials, including pruned ones.
        pruned: Number of pruned trials.
        seeds: The seeds that tuned.
        tasks: The tasks that tuned.
    """

    recipe: str
    scale: str
    options: dict[str, Any]
    score: float
    trial: int
    trials: int
    pruned: int
    seeds: list[int]
    tasks: list[str]

    @property
    def pair(self) -> Pair:
        """The recipe and the scale."""
        return Pair(self.recipe, self.scale)


@dataclass(frozen=True)
class Search:
    """A search for the options of some recipes, separately at each scale.

    Attributes:
        seeds: The seeds that tune; none of them is among those of the study, which confirm.
        recipes: The searched options of each recipe, a `Space` by recipe.
        trials: Number of trials for each recipe and scale.
        tasks: The tasks that tune; by default those of ``compare.tuned_on``.
        sampler_seed: Seed of the suggestions.
        prune: Whether a trial ends early if its first seeds score below the median of earlier trials.
        chosen: The choices so far.
    """

    seeds: list[int]
    recipes: dict[str, Any]
    trials: int = 20
    tasks: list[str] = field(default_factory=list)
    sampler_seed: int = 0
    prune: bool = True
    chosen: list[Choice] = field(default_factory=list)

    def choice(self, pair: Pair) -> Choice | None:
        """Return the choice for a pair, or ``None`` if there is none yet."""
        return next((choice for choice in self.chosen if choice.pair == pair), None)


def read_search(content: Any, factors: Factors, tuned_on: Sequence[str]) -> Search | None:
    """Read the section ``search``.

    Args:
        content: The section; ``None`` if the study has none.
        factors: The factors of the study.
        tuned_on: The tasks of ``compare.tuned_on``.

    Raises:
        UserError: If there is a mistake, with its place.
    """
    if content is None:
        return None
    others = (
        {key: value for key, value in content.items() if key != "chosen"}
        if isinstance(content, dict)
        else content
    )
    section = read_section(Search, others, "search")
    chosen = read_choices(content.get("chosen", []), "search.chosen")
    search = replace(section, chosen=chosen, tasks=section.tasks or list(tuned_on))
    _check_seeds(search.seeds, factors)
    if search.trials < 1:
        raise UserError(f"search.trials is {search.trials}; expected a number of at least 1")
    if search.sampler_seed < 0:
        raise UserError(f"search.sampler_seed is {search.sampler_seed}; expected a number of at least 0")
    if not search.tasks:
        raise UserError("search.tasks is empty, as compare.tuned_on is; expected tasks of the study")
    check_known(search.tasks, factors["task"], "task", "search.tasks")
    if others := [task for task in search.tasks if task not in tuned_on]:
        raise UserError(
            f"search.tasks: {others[0]!r} is not in compare.tuned_on, so it is held out; expected another"
        )
    if not search.recipes:
        raise UserError("search.recipes is empty; expected distributions by option, by recipe")
    if TRIAL in factors:
        raise UserError(f"factors.{TRIAL}: a search adds a factor of this name; expected another one")
    check_known(search.recipes, factors["recipe"], "recipe", "search.recipes")
    recipes = {recipe: _read_space(space, recipe) for recipe, space in search.recipes.items()}
    return replace(search, recipes=recipes)


def _check_seeds(seeds: Sequence[int], factors: Factors) -> None:
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"search.seeds is {seeds!r}; expected different numbers, such as [100, 101]")
    if both := [seed for seed in seeds if str(seed) in factors["seed"]]:
        raise UserError(
            f"search.seeds: {both[0]} is also in factors.seed; expected other seeds to tune than to confirm"
        )


def read_choices(content: Any, place: str) -> list[Choice]:
    """Read a list of choices, as a search writes them.

    Raises:
        UserError: If there is a mistake, with its place.
    """
    if not isinstance(content, list):
        raise UserError(f"{place} is {shown(content)}; expected a list of choices, as search wrote it")
    choices = [read_section(Choice, each, f"{place}[{index}]") for index, each in enumerate(content)]
    if len({choice.pair for choice in choices}) < len(choices):
        raise UserError(f"{place} has two choices for one recipe and scale; expected one")
    return choices


def contains(distribution: Distribution, value: Any) -> bool:
    """Return whether a value can be drawn from a distribution; steps are not checked."""
    if "choices" in distribution:
        return value in distribution["choices"]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return bool(distribution["low"] <= value <= distribution["high"])


def is_whole(distribution: Distribution) -> bool:
    """Return whether a range has whole numbers only: its bounds and its step are whole."""
    return all(isinstance(distribution[key], int) for key in ("low", "high", "step"))


def _read_space(content: Any, recipe: str) -> Space:
    place = f"search.recipes.{recipe}"
    if not isinstance(content, dict) or not content:
        raise UserError(f"{place} is {shown(content)}; expected distributions by option")
    return {str(option): _read_distribution(each, f"{place}.{option}") for option, each in content.items()}


def _read_distribution(content: Any, place: str) -> Distribution:
    if not isinstance(content, dict) or not content:
        raise UserError(f"{place} is {shown(content)}; expected choices, or low and high")
    check_known(content, ("choices", *_RANGE), "key", place)
    if "choices" in content:
        return _read_choices_of_values(content, place)
    for key in ("low", "high"):
        if key not in content:
            raise UserError(f"{place}.{key} is missing; expected choices, or low and high")
    low, high = (_read_number(content[key], f"{place}.{key}") for key in ("low", "high"))
    log, step = content.get("log", False), content.get("step")
    if not isinstance(log, bool):
        raise UserError(f"{place}.log is {shown(log)}; expected true or false")
    if not low < high:
        raise UserError(f"{place}.low is {low}; expected less than high, {high}")
    if log and low <= 0:
        raise UserError(f"{place}.low is {low}; expected more than 0 on a logarithmic scale")
    if step is not None:
        step = _read_number(step, f"{place}.step")
        if step <= 0:
            raise UserError(f"{place}.step is {step}; expected a number above 0")
        steps = (high - low) / step
        if not math.isclose(steps, round(steps), abs_tol=1e-9):
            raise UserError(f"{place}.step is {step}; expected a step that leads from {low} to {high}")
        is_one = isinstance(step, int) and step == 1 and isinstance(low, int) and isinstance(high, int)
        if log and not is_one:
            raise UserError(
                f"{place}.step is {step}; on a logarithmic scale expected none, or 1 for integers"
            )
    return {"low": low, "high": high, "log": log, "step": step}


def _read_choices_of_values(content: dict[str, Any], place: str) -> Distribution:
    if others := [key for key in content if key != "choices"]:
        raise UserError(f"{place} has choices and {others[0]}; expected choices alone, or low and high")
    choices = content["choices"]
    if not isinstance(choices, list) or not choices:
        raise UserError(f"{place}.choices is {shown(choices)}; expected a list of values")
    if len({json.dumps(value, default=str) for value in choices}) < len(choices):
        raise UserError(f"{place}.choices is {shown(choices)}; expected different values")
    return {"choices": choices}


def _read_number(value: Any, place: str) -> int | float:
    """Read a number; YAML takes ``1e-5``, without a dot, for text."""
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise UserError(f"{place} is {shown(value)}; expected a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{place} is {shown(value)}; expected a number")
    return value
