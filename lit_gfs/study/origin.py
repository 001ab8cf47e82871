"""Where the cells of a study were run: ``origin.json``, a part for every command and machine."""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from lit_gfs.errors import UserError
from lit_gfs.utils.atomic_files import replacing_text

ORIGIN_NAME = "origin.json"
DATE = "date"


class Part(NamedTuple):
    """Cells that one command ran on one machine.

    Attributes:
        command: The command.
        versions: Commit, versions, machine and date of the start, from
            `lit_gfs.study.environment.environment`.
        cells: Names of the cells; ``None`` for all cells of the tables (an older file).
    """

    command: str
    versions: dict[str, str]
    cells: list[str] | None

    @property
    def threads(self) -> int:
        """Threads that its cells computed with."""
        words = shlex.split(self.command)
        return int(words[words.index("--threads") + 1]) if "--threads" in words else 1


def part_of(parts: Iterable[Part], cell: str) -> Part | None:
    """Return the part that ran a cell."""
    return next((part for part in parts if part.cells is None or cell in part.cells), None)


def limited(parts: Sequence[Part], cells: Collection[str]) -> list[Part]:
    """Keep only some cells, and the parts that ran any of them."""
    kept = [part._replace(cells=_names(part, cells)) for part in parts]
    return [part for part in kept if part.cells]


def attributed(parts: Sequence[Part], cells: Collection[str]) -> list[Part]:
    """Attribute the ended cells of a directory to its parts.

    A cell that no part names ended after the last one began, and before that was written down.
    """
    if not parts:
        return []
    known = {name for part in parts for name in _names(part, cells)}
    last = parts[-1]
    late = [name for name in cells if name not in known]
    return limited([*parts[:-1], last._replace(cells=_names(last, cells) + late)], cells)


def continued(parts: Sequence[Part], command: str, versions: dict[str, str]) -> list[Part]:
    """Add a part for a command that begins, or put the same command of an earlier date last."""

    def same(part: Part) -> bool:
        return part.command == command and {**part.versions, DATE: ""} == {**versions, DATE: ""}

    before = [part for part in parts if same(part)]
    others = [part for part in parts if not same(part)]
    begun = before[0].versions if before else versions
    return [*others, Part(command, begun, [name for part in before for name in part.cells or ()])]


def with_cell(parts: Sequence[Part], cell: str) -> list[Part]:
    """Attribute a cell that has ended to the last part, and to no other."""
    *others, last = (
        part._replace(cells=[name for name in part.cells or () if name != cell]) for part in parts
    )
    return [*others, last._replace(cells=[*(last.cells or ()), cell])]


def write_origin(directory: Path, parts: Sequence[Part]) -> None:
    """Write ``origin.json`` atomically."""
    with replacing_text(directory / ORIGIN_NAME) as file:
        json.dump({"parts": [part._asdict() for part in parts]}, file, indent=1)


def read_origin(directory: Path) -> list[Part]:
    """Read ``origin.json``, also one of an older version, which has a single part.

    Raises:
        UserError: If it does not say how the study was run.
    """
    path = directory / ORIGIN_NAME
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        parts = [
            Part(
                str(part["command"]),
                {str(key): str(value) for key, value in part["versions"].items()},
                None if part.get("cells") is None else list(map(str, part["cells"])),
            )
            for part in content.get("parts", [content])
        ]
        if not parts or any(part.threads < 1 for part in parts):
            raise ValueError("no part")
        return parts
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise UserError(
            f"'{path}' does not say how the study was run; expected it as study wrote it"
        ) from error


def _names(part: Part, cells: Collection[str]) -> list[str]:
    return list(cells) if part.cells is None else [name for name in part.cells if name in cells]
