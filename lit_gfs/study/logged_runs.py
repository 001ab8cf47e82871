"""Runs on the disk that nobody planned: which there are, what they logged, and how they were configured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lit_gfs.configuration.flat_options import flat_options
from lit_gfs.errors import UserError, nearest
from lit_gfs.metrics.scores import final_score
from lit_gfs.metrics.series import Series, bounded
from lit_gfs.runs.event_files import event_directory
from lit_gfs.runs.layout import CONFIG_NAME
from lit_gfs.runs.logged_scalars import logged_scalars
from lit_gfs.utils.formats import relative_path
from lit_gfs.utils.yaml_files import read_yaml

EVENTS = "events.out.tfevents.*"
SCORES = ("eval/episode_return", "eval/phase_accuracy", "eval/accuracy")
"""Tags of an evaluation's score; the first one that a run has counts."""


class LoggedRun(NamedTuple):
    """A run.

    Attributes:
        directory: Its directory.
        curves: All its scalars by tag.
        options: Values of its configuration by dotted name; none if it has no configuration.
    """

    directory: Path
    curves: Mapping[str, Series]
    options: Mapping[str, Any]

    @property
    def scalars(self) -> dict[str, Series]:
        """The series that a `Diagnosis` has kept of these curves."""
        return {tag: bounded(zip(*series, strict=True)) for tag, series in self.curves.items()}

    @property
    def steps(self) -> int:
        """Its last logged step."""
        return max((series.steps[-1] for series in self.curves.values()), default=0)

    @property
    def score(self) -> Series | None:
        """The scores of its evaluations, if there were any."""
        return next((self.curves[tag] for tag in SCORES if tag in self.curves), None)

    @property
    def final(self) -> float | None:
        """Its final score, as a study has it."""
        return None if self.score is None else final_score(*self.score)

    @property
    def best(self) -> float | None:
        """Its best evaluation."""
        return None if self.score is None else max(self.score.values)


def find_runs(names: Sequence[str]) -> list[Path]:
    """Return the directories of runs.

    Args:
        names: Directories of runs, or directories above them, which stand for all runs inside: a group such
            as ``runs/dqn_CartPole-v1``, or a study.

    Raises:
        UserError: If there is no such directory, or no run in it.
    """
    found = []
    for name in names:
        if not os.path.isdir(name):  # Path.is_dir raises if a name is too long
            raise UserError(f"{name!r} is no directory; expected that of a run{_neighbours(name)}")
        inside = {_run_of(path.parent) for path in Path(name).rglob(EVENTS)}
        if not inside:
            raise UserError(f"{name!r} holds no run; expected a directory with {EVENTS}{_neighbours(name)}")
        found += sorted(inside, key=_in_order)
    return list(dict.fromkeys(found))


def _run_of(directory: Path) -> Path:
    """Return the run whose event files are in a directory: the same, or the one above."""
    above = directory.parent
    is_inside = not (directory / CONFIG_NAME).is_file() and (above / CONFIG_NAME).is_file()
    return above if is_inside else directory


def _neighbours(name: str) -> str:
    """Suggest runs in the nearest directory above a name that exists."""
    above = next((path for path in Path(os.path.normpath(name)).parents if os.path.isdir(path)), Path())
    runs = {
        _run_of(path.parent) for depth in ("*", "*/*", "*/*/*") for path in above.glob(f"{depth}/{EVENTS}")
    }
    return nearest(name, {str(path) for run in runs for path in (run, run.parent)})


def _in_order(directory: Path) -> list[tuple[int, str]]:
    """Return a key that sorts ``version_2`` before ``version_10``."""
    return [(len(part), part) if part.startswith("version_") else (0, part) for part in directory.parts]


def read_run(directory: Path) -> LoggedRun:
    """Read a run's scalars and configuration.

    Raises:
        UserError: If its configuration cannot be read.
    """
    curves = {}
    for tag, logged in logged_scalars(event_directory(directory)).items():
        # The files of a resumed run are read in no particular order.
        points = sorted(logged, key=lambda point: (point.step, point.wall_time))
        curves[tag] = Series([point.step for point in points], [point.value for point in points])
    path = directory / CONFIG_NAME
    return LoggedRun(directory, curves, flat_options(read_yaml(path)) if path.is_file() else {})


def short_run_names(directories: Sequence[Path]) -> list[str]:
    """Return names that tell runs apart: without the parts that all of them share at the start or the end."""
    if len(directories) == 1:
        return [relative_path(directories[0])]
    paths = [Path(os.path.abspath(directory)).parts for directory in directories]
    while all(len(parts) > 1 for parts in paths) and len({parts[0] for parts in paths}) == 1:
        paths = [parts[1:] for parts in paths]
    while all(len(parts) > 1 for parts in paths) and len({parts[-1] for parts in paths}) == 1:
        paths = [parts[:-1] for parts in paths]
    return ["/".join(parts) for parts in paths]


def differing_options(runs: Sequence[LoggedRun]) -> dict[str, list[Any]]:
    """Return the options in which runs differ, with the value of each run.

    An option that a run does not have counts as ``None``. If runs differ in a class, its arguments are left
    out.
    """
    names = dict.fromkeys(name for run in runs for name in run.options)
    differing: dict[str, list[Any]] = {}
    for name in sorted(names):  # a class before its arguments
        values = [run.options.get(name) for run in runs]
        parts = name.split(".")
        above = {".".join(parts[:length]) for length in range(1, len(parts))}
        if any(value != values[0] for value in values) and not above & differing.keys():
            differing[name] = values
    return differing
