"""The packages import each other in one direction, from the top of this list to its bottom."""

from __future__ import annotations

import ast
import graphlib
import re
from pathlib import Path

import pytest

import lit_gfs

ROOT = Path(str(lit_gfs.__file__)).resolve().parent.parent

ORDER = (
    ("errors",),
    ("utils",),
    ("envs", "networks"),
    ("functional", "buffers", "metrics"),
    ("gradients", "init", "optim", "plasticity", "collectors"),
    ("steps",),
    ("runs",),
    ("callbacks",),
    ("agents", "datamodules", "configs"),
    ("configuration",),
    ("trainer", "policy"),
    ("cli",),
    ("study",),
    ("main",),
    ("__main__",),
)
"""A package may import from those above it, never from its neighbours in a line or from those below it."""

LEVELS = {name: level for level, names in enumerate(ORDER) for name in names}
FORMER_PLACES = {"classifier", "objective_shift"}
"""Modules that only hand on what has moved; nothing of ours imports them."""

FILES = [path for folder in ("lit_gfs", "callbacks", "datamodules") for path in (ROOT / folder).rglob("*.py")]


def imported(path: Path, within: str = "lit_gfs.") -> set[str]:
    """List what a file imports from a package, also within functions and for type checkers alone."""
    packages: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            of_us = node.module is not None and node.module.split(".")[0] == "lit_gfs"
            names = [f"{node.module}.{alias.name}" for alias in node.names] if of_us else []
        else:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        packages |= {name.removeprefix(within).split(".")[0] for name in names if name.startswith(within)}
    return packages


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_only_from_rooms_below(path: Path) -> None:
    own = path.relative_to(ROOT).with_suffix("").parts
    package = own[1] if own[0] == "lit_gfs" else own[0]
    if package == "__init__" or package in FORMER_PLACES:
        return
    others = imported(path) - {package}
    assert {name: LEVELS[name] for name in others if LEVELS[name] >= LEVELS[package]} == {}


def test_rooms_of_the_study_never_import_in_a_circle() -> None:
    study = ROOT / "lit_gfs" / "study"
    needs: dict[str, set[str]] = {}
    for path in study.rglob("*.py"):
        room = path.relative_to(study).with_suffix("").parts[0]
        needs.setdefault(room, set()).update(imported(path, "lit_gfs.study.") - {room})

    assert {"planning", "search"} <= needs.keys()
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError and names the circle


def test_the_page_shows_the_packages_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = page.split("```")[1]
    shown = re.findall(r"^ *(?:lit_gfs/)?(\w+)/? {2,}\S", tree, re.MULTILINE)

    assert set(shown) == LEVELS.keys() - {"__main__"}
    levels = [LEVELS[name] for name in shown]
    assert levels == sorted(levels)
