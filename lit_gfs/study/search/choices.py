"""The choices of a search, from ``chosen.yaml`` or another study's tables, for the cells that confirm."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import yaml

from lit_gfs.errors import UserError, shown
from lit_gfs.study.finished import require_tables
from lit_gfs.study.planning.plan import STUDY_NAME, Cell, Study
from lit_gfs.study.planning.search_section import Choice, Search, contains, read_choices
from lit_gfs.study.search.tuning import pair_of
from lit_gfs.utils.atomic_files import replacing_text
from lit_gfs.utils.yaml_files import read_yaml

CHOSEN_NAME = "chosen.yaml"


def write_chosen(directory: Path, choices: Iterable[Choice]) -> None:
    """Write ``chosen.yaml`` atomically."""
    with replacing_text(directory / CHOSEN_NAME) as file:
        # None writes lists of numbers, and options, in one line.
        content = [asdict(choice) for choice in choices]
        yaml.safe_dump(content, file, sort_keys=False, allow_unicode=True, default_flow_style=None, width=110)


def read_chosen(directory: Path) -> list[Choice]:
    """Read ``chosen.yaml``; return no choice if there is no such file.

    Raises:
        UserError: If it has a mistake.
    """
    path = directory / CHOSEN_NAME
    if not path.is_file():
        return []
    try:
        return read_choices(read_yaml(path), "the file")
    except UserError as error:
        raise UserError(f"'{path}': {error}") from error


def with_choices(study: Study, directory: Path, finished: Sequence[str] = ()) -> Study:
    """Add the choices of a search to a study.

    A choice in the study's own file goes before one of its directory, and that before one of ``--finished``.

    Args:
        study: The plan.
        directory: The study's directory.
        finished: Directories with the tables of other studies.

    Raises:
        UserError: If a choice does not belong to the search as the plan has it.
    """
    if study.search is None:
        return study
    sources = [
        ("search.chosen", study.search.chosen),
        (f"'{directory / CHOSEN_NAME}'", read_chosen(directory)),
    ]
    sources += [_tables(name) for name in finished]
    chosen: dict[tuple[str, str], Choice] = {}
    for source, choices in sources:
        for choice in choices:
            is_searched = choice.recipe in study.search.recipes and choice.scale in study.factors["scale"]
            if is_searched and choice.pair not in chosen:
                _check(choice, study.search, source)
                chosen[choice.pair] = choice
    return replace(study, search=replace(study.search, chosen=list(chosen.values())))


def keep_choices(study: Study, directory: Path) -> None:
    """Add the choices of a study to ``chosen.yaml``, so that it goes on without the tables they are from."""
    known = read_chosen(directory)
    pairs = {choice.pair for choice in known}
    new = [choice for choice in study.search.chosen if choice.pair not in pairs] if study.search else []
    if new:
        write_chosen(directory, [*known, *new])


def without_choice(study: Study, cells: Iterable[Cell]) -> list[Cell]:
    """List the cells of searched recipes that have no choice yet."""
    search = study.search
    if search is None:
        return []
    return [
        cell
        for cell in cells
        if cell.levels["recipe"] in search.recipes and search.choice(pair_of(cell)) is None
    ]


def require_choices(study: Study, cells: Iterable[Cell], config: str, root: str) -> None:
    """Refuse cells of searched recipes that have no choice yet.

    Raises:
        UserError: For the first such cell, with the command that searches.
    """
    if missing := without_choice(study, cells):
        raise UserError(f"{pair_of(missing[0])} has no choice yet; first run: {search_command(config, root)}")


def search_command(config: str, root: str) -> str:
    """Return the command that searches."""
    place = [] if root == "runs" else ["--root", root]
    return shlex.join(["python", "-m", "lit_gfs", "search", "--config", config, *place])


def _tables(name: str) -> tuple[str, list[Choice]]:
    path = require_tables(name) / STUDY_NAME
    search = Study.load(path).search
    return f"'{path}'", search.chosen if search else []


def _check(choice: Choice, search: Search, source: str) -> None:
    space = search.recipes[choice.recipe]
    for what, found, planned in (
        ("seeds", choice.seeds, search.seeds),
        ("tasks", choice.tasks, search.tasks),
        ("options", list(choice.options), list(space)),
    ):
        if sorted(map(str, found)) != sorted(map(str, planned)):
            raise UserError(
                f"{source}: {choice.pair} was searched with the {what} {shown(found)}, and the study has "
                f"{shown(planned)}; restore them, or search again under another name"
            )
    for option, value in choice.options.items():
        if not contains(space[option], value):
            raise UserError(
                f"{source}: {choice.pair} has {option} = {shown(value)}, outside of its distribution; "
                "restore that, or search again under another name"
            )
