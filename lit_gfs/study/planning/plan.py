"""The plan of a study: factors, their levels, and the cells that they span.

A cell is one run of ``fit``: one level of every factor. Each level adds configurations and options to the
command line of its cells.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml

from lit_gfs.configuration.config_trust import take_trust
from lit_gfs.errors import UserError
from lit_gfs.study.planning.factors import (
    Factors,
    Where,
    matches,
    read_factors,
    read_where,
    require_free,
)
from lit_gfs.study.planning.search_section import Search, read_search
from lit_gfs.study.planning.sections import check_known, read_section
from lit_gfs.utils.atomic_files import replacing_text
from lit_gfs.utils.yaml_files import read_yaml

STUDY_NAME = "study.yaml"
MAX_CELLS = 100_000
"""Maximum number of cells of a study, including skipped ones."""
_LONGEST_NAME = 200
"""Bytes in the name of a cell, which is that of its directory and of lease files beside it."""


@dataclass(frozen=True)
class Score:
    """The score of a run; higher is better.

    Attributes:
        tag: The logged scalar for the final score.
        curve_tag: The logged scalar for learning curves, stability and speed; empty: the same.
        final_share: The final score is the mean of ``tag`` over this last share of the steps.
        x_label: Unit of the steps.
        measures_speed: Whether the curve shows how fast a run learns. It does not if the objective changes by
            design and the first one is easy; speed-ups are then undefined.
    """

    tag: str = "eval/episode_return"
    curve_tag: str = ""
    final_share: float = 0.1
    x_label: str = "environment steps"
    measures_speed: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "curve_tag", self.curve_tag or self.tag)
        if not 0 < self.final_share <= 1:
            raise UserError(f"score.final_share is {self.final_share}; expected a number above 0, at most 1")


@dataclass(frozen=True)
class Compare:
    """The comparisons of a study.

    Attributes:
        baseline: The recipe that the others are compared with: at every scale, it has the rate of the small
            network.
        tuned_baseline: The same recipe at the best rate of each scale, found on other seeds; empty if there
            is none.
        base_scale: The scale that the others are compared with.
        tuned_on: The tasks that took part in choosing the recipes; the others are held out.
    """

    baseline: str
    base_scale: str
    tuned_on: list[str] = field(default_factory=list)
    tuned_baseline: str = ""

    def of(self, baseline: str) -> Compare:
        """Return the same comparisons with another baseline."""
        return replace(self, baseline=baseline, tuned_baseline="")


class When(NamedTuple):
    """Extra options for the cells that ``where`` selects."""

    where: Where
    options: dict[str, Any]


class Cell(NamedTuple):
    """One planned run: its name, its level by factor, and the resulting arguments of ``fit``."""

    name: str
    levels: dict[str, str]
    arguments: list[str]


@dataclass(frozen=True)
class Study:
    """A grid of runs.

    Attributes:
        name: The name of its directory.
        description: Its question in one or two sentences.
        score: The score of a run.
        factors: Levels by name, by factor, in order; includes ``task``, ``scale``, ``recipe`` and ``seed``.
        when: Extra options for some cells.
        skip: Cells to leave out.
        compare: The comparisons.
        keep_checkpoints: Whether to keep the best and the last weights of every ended cell.
        search: The search for options of its recipes, on other seeds, and the choices so far.
    """

    name: str
    description: str
    score: Score
    factors: Factors
    when: list[When]
    skip: list[Where]
    compare: Compare
    keep_checkpoints: bool = True
    search: Search | None = None

    @staticmethod
    def load(path: Path) -> Study:
        """Read a study from YAML and check it, except for the configurations and options that it names.

        Raises:
            UserError: If there is a mistake, with the file and the place in it.
        """
        content = read_yaml(path)
        try:
            return read_study(content)
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def save(self, path: Path) -> None:
        """Write the study as YAML that `load` reads back."""
        content = asdict(self)
        content["factors"] = {
            factor: {
                name: {key: value for key, value in asdict(level).items() if value not in (None, [], {})}
                for name, level in levels.items()
            }
            for factor, levels in self.factors.items()
        }
        content["factors"]["seed"] = [int(seed) for seed in self.factors["seed"]]
        content["when"] = [{"where": dict(rule.where), "options": rule.options} for rule in self.when]
        if self.search is None:
            del content["search"]
        with replacing_text(path) as file:
            yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True, width=110)

    def cells(self) -> list[Cell]:
        """List the planned runs, all of the first seed first, so that a stopped study is balanced."""
        grid = [factor for factor in self.factors if factor != "seed"]
        cells = []
        for seed, *names in itertools.product(
            self.factors["seed"], *(self.factors[factor] for factor in grid)
        ):
            chosen = {**dict(zip(grid, names, strict=True)), "seed": seed}
            levels = {factor: chosen[factor] for factor in self.factors}
            if not any(matches(levels, where) for where in self.skip):
                cells.append(Cell(_cell_name(levels), levels, self._arguments(levels)))
        return cells

    def stratum(self, levels: Mapping[str, str]) -> str:
        """Name the levels of all other factors than scale, recipe and seed: a task of the statistics."""
        return " / ".join(
            level for factor, level in levels.items() if factor not in ("scale", "recipe", "seed")
        )

    def _arguments(self, levels: Mapping[str, str]) -> list[str]:
        chosen = [self.factors[factor][name] for factor, name in levels.items()]
        options = [level.options for level in chosen]
        options += [rule.options for rule in [*self._chosen(), *self.when] if matches(levels, rule.where)]
        arguments = [
            *(f"--config={config}" for level in chosen for config in level.configs),
            *(f"--{key}={_as_text(value)}" for group in options for key, value in group.items()),
        ]
        if take_trust(arguments)[1]:
            raise UserError("trust cannot be an option in a study; type it, as in: study --trust my_package")
        return arguments

    def _chosen(self) -> list[When]:
        """Return the options that a search chose as rules, which go before those of ``when``."""
        choices = self.search.chosen if self.search else []
        return [
            When({"recipe": [choice.recipe], "scale": [choice.scale]}, choice.options) for choice in choices
        ]


def read_study(content: Any) -> Study:
    """Make a study from the content of its YAML file.

    Raises:
        UserError: If there is a mistake, with the place in the file.
    """
    if not isinstance(content, dict):
        raise UserError(f"the study is {content!r}; expected keys: {', '.join(Study.__annotations__)}")
    check_known(content, Study.__annotations__, "key", "the study")
    name = content.get("name")
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]*\w[\w.-]*", name):
        raise UserError(f"name is {name!r}; expected the name of a directory, of letters, digits, - and _")
    factors = read_factors(content.get("factors"))
    compare = read_section(Compare, content.get("compare"), "compare")
    check_known(compare.tuned_on, factors["task"], "task", "compare.tuned_on")
    study = Study(
        name=name,
        description=str(content.get("description") or ""),
        score=_read_score(content.get("score")),
        factors=factors,
        when=[
            _read_when(rule, factors, f"when[{index}]")
            for index, rule in enumerate(_read_list(content.get("when"), "when"))
        ],
        skip=[
            read_where(where, factors, f"skip[{index}]")
            for index, where in enumerate(_read_list(content.get("skip"), "skip"))
        ],
        compare=compare,
        keep_checkpoints=content.get("keep_checkpoints", True),
        search=read_search(content.get("search"), factors, compare.tuned_on),
    )
    if not isinstance(study.keep_checkpoints, bool):
        raise UserError(f"keep_checkpoints is {study.keep_checkpoints!r}; expected true or false")
    check_known([study.compare.baseline], factors["recipe"], "recipe", "compare.baseline")
    if tuned := study.compare.tuned_baseline:
        check_known([tuned], factors["recipe"], "recipe", "compare.tuned_baseline")
        if tuned == study.compare.baseline:
            raise UserError(
                f"compare.tuned_baseline is {tuned!r}, as compare.baseline; expected another recipe"
            )
    check_known([study.compare.base_scale], factors["scale"], "scale", "compare.base_scale")
    _check_searched(study)
    count = math.prod(len(levels) for levels in factors.values())
    if count > MAX_CELLS:
        raise UserError(f"factors span {count:,} cells; expected at most {MAX_CELLS:,}")
    names = Counter(cell.name for cell in study.cells())
    if not names:
        raise UserError("skip leaves no cell to run")
    if twice := [name for name, times in names.items() if times > 1]:
        raise UserError(f"two cells are called {min(twice)!r}; expected levels whose names differ in letters")
    longest = max(names, key=lambda name: len(name.encode()))
    if len(longest.encode()) > _LONGEST_NAME:
        raise UserError(
            f"a cell is called '{longest[:40]}...', in {len(longest.encode())} bytes; expected levels whose "
            f"names have {_LONGEST_NAME} bytes together"
        )
    return study


def _check_searched(study: Study) -> None:
    """Refuse a rule of ``when`` that would override a searched option."""
    for recipe, space in study.search.recipes.items() if study.search else ():
        for index, rule in enumerate(study.when):
            if recipe not in rule.where.get("recipe", [recipe]):
                continue
            for option in space:
                if any(option == key or option.startswith(f"{key}.") for key in rule.options):
                    raise UserError(
                        f"search.recipes.{recipe}: when[{index}] sets {option!r} and goes before the search; "
                        "expected it in one of them"
                    )


def _read_score(content: Any) -> Score:
    if isinstance(content, dict) and content.get("curve_tag", "") is None:
        content = {**content, "curve_tag": ""}
    return read_section(Score, content, "score")


def _read_when(content: Any, factors: Factors, place: str) -> When:
    if not isinstance(content, dict) or set(content) != {"where", "options"}:
        raise UserError(f"{place} is {content!r}; expected the keys where and options")
    options = content["options"]
    if not isinstance(options, dict):
        raise UserError(f"{place}.options is {options!r}; expected values by option")
    require_free(options, f"{place}.options")
    return When(read_where(content["where"], factors, f"{place}.where"), cast(dict[str, Any], options))


def _read_list(content: Any, place: str) -> list[Any]:
    if content is not None and not isinstance(content, list):
        raise UserError(f"{place} is {content!r}; expected a list")
    return content or []


def _cell_name(levels: Mapping[str, str]) -> str:
    parts = [f"seed_{level}" if factor == "seed" else level for factor, level in levels.items()]
    return re.sub(r"[^\w.+-]+", "_", "-".join(parts))


def _as_text(value: Any) -> str:
    """Write a value for the command line: text unchanged, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)
