"""Factors of a study and their levels: the arguments of a level, and the selection of cells by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_gfs.errors import UserError
from lit_gfs.study.planning.sections import check_known, read_section

REQUIRED_FACTORS = ("task", "scale", "recipe", "seed")

_SET_BY_STUDY = {
    "seed_everything": "; list seeds in factors.seed",
    **dict.fromkeys(("run.root", "run.name", "run.version"), " for each cell"),
    "ckpt_path": " for each cell",
}
"""Options that every cell has from its study, with advice for the user."""

Where = Mapping[str, list[str]]
"""Levels by factor. They select the cells that have one of the levels of every named factor."""


@dataclass(frozen=True)
class Level:
    """One level of a factor: the arguments that it adds to ``fit``.

    Attributes:
        configs: ``--config``, paths or shipped names.
        options: Values by option, as in ``model.trunk.depth``.
        floor: Only for a task: the score of an agent that learned nothing, 0 when normalized.
        reference: Only for a task: the score that counts as solved, 1 when normalized. A task without floor
            and reference is a human-normalized Atari game.
    """

    configs: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    floor: float | None = None
    reference: float | None = None


Factors = dict[str, dict[str, Level]]
"""Levels by name, by factor, in order."""


def matches(levels: Mapping[str, str], where: Where) -> bool:
    """Return whether a selection contains a cell's levels."""
    return all(levels[factor] in selected for factor, selected in where.items())


def read_where(content: Any, factors: Factors, place: str) -> Where:
    """Read a selection of cells: a level, or a list of levels, by factor.

    Raises:
        UserError: If a factor or a level is unknown.
    """
    if not isinstance(content, dict) or not content:
        raise UserError(f"{place} is {content!r}; expected a level, or a list of levels, by factor")
    check_known(content, factors, "factor", place)
    where = {}
    for factor, names in content.items():
        where[factor] = [str(name) for name in (names if isinstance(names, list) else [names])]
        check_known(where[factor], factors[factor], f"level of {factor}", place)
    return where


def read_factors(content: Any) -> Factors:
    """Read the factors of a study.

    Raises:
        UserError: If a factor is missing, or a level has a mistake.
    """
    if not isinstance(content, dict):
        raise UserError(f"factors is {content!r}; expected levels by factor")
    for factor in REQUIRED_FACTORS:
        if factor not in content:
            raise UserError(f"factors.{factor} is missing; a study has {', '.join(REQUIRED_FACTORS)}")
    return {
        str(factor): _read_seeds(levels) if factor == "seed" else _read_levels(str(factor), levels)
        for factor, levels in content.items()
    }


def _read_seeds(seeds: Any) -> dict[str, Level]:
    valid = isinstance(seeds, list) and all(type(seed) is int and seed >= 0 for seed in seeds)
    if not valid or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"factors.seed is {seeds!r}; expected a list of different numbers, such as [0, 1, 2]")
    return as_seeds(seeds)


def as_seeds(seeds: Sequence[int]) -> dict[str, Level]:
    """Make levels of seeds."""
    return {str(seed): Level(options={"seed_everything": seed}) for seed in seeds}


def _read_levels(factor: str, content: Any) -> dict[str, Level]:
    if not isinstance(content, dict) or not content:
        raise UserError(f"factors.{factor} is {content!r}; expected at least one level, with its options")
    levels = {}
    for name, section in content.items():
        place = f"factors.{factor}.{name}"
        if isinstance(name, bool) or name is None:
            raise UserError(f"{place} is no name in YAML; write it in quotes")
        level = levels[str(name)] = read_section(Level, section, place)
        require_free(level.options, f"{place}.options")
        _check_normalization(factor, level, place)
    return levels


def require_free(options: Mapping[str, Any], place: str) -> None:
    """Refuse options that the study sets for each cell.

    Raises:
        UserError: If there is one.
    """
    for option in options:
        if option in _SET_BY_STUDY:
            raise UserError(f"{place} has {option}, which the study itself sets{_SET_BY_STUDY[option]}")


def _check_normalization(factor: str, level: Level, place: str) -> None:
    bounds = [bound for bound in (level.floor, level.reference) if bound is not None]
    if factor != "task" and bounds:
        raise UserError(f"{place} has a floor or a reference; only levels of task have them")
    if len(bounds) == 1:
        raise UserError(f"{place} has only one of floor and reference; expected both, or none for Atari")
    if bounds and not bounds[0] < bounds[1]:
        raise UserError(f"{place}.floor is {bounds[0]}; expected less than the reference, {bounds[1]}")
