from __future__ import annotations

import time
from pathlib import Path

import pytest

from lit_gfs.runs.event_files import cut_event_files, event_file_sizes, wait_for_a_later_name

OLD, NEW = "events.out.tfevents.1000.host.1.0", "events.out.tfevents.2000.host.2.0"


def write(directory: Path, name: str, content: bytes) -> None:
    with (directory / name).open("ab") as file:
        file.write(content)


def test_files_are_taken_back_to_what_they_were(tmp_path: Path) -> None:
    write(tmp_path, OLD, b"before")
    write(tmp_path, "config.yaml", b"mine")
    sizes = event_file_sizes(tmp_path)
    write(tmp_path, OLD, b", after")
    write(tmp_path, NEW, b"of a later session")
    present = event_file_sizes(tmp_path)
    write(tmp_path, "events.out.tfevents.3000.host.3.0", b"just opened")

    cut_event_files(tmp_path, sizes, present)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == {
        OLD: b"before",
        "config.yaml": b"mine",
        "events.out.tfevents.3000.host.3.0": b"just opened",
    }


def test_what_was_taken_away_comes_back_for_a_checkpoint_that_needs_it(tmp_path: Path) -> None:
    write(tmp_path, OLD, b"one")
    early = event_file_sizes(tmp_path)
    write(tmp_path, OLD, b", two")
    late = event_file_sizes(tmp_path)
    write(tmp_path, OLD, b", three")

    cut_event_files(tmp_path, early, event_file_sizes(tmp_path))
    assert (tmp_path / OLD).read_bytes() == b"one"
    write(tmp_path, NEW, b"another two")
    other = event_file_sizes(tmp_path)
    cut_event_files(tmp_path, late, event_file_sizes(tmp_path))

    assert event_file_sizes(tmp_path) == late
    assert (tmp_path / OLD).read_bytes() == b"one, two"
    cut_event_files(tmp_path, other, event_file_sizes(tmp_path))
    assert event_file_sizes(tmp_path) == other
    assert (tmp_path / NEW).read_bytes() == b"another two"
    # No file besides those that readers are to see has their word in its name.
    assert len(list(tmp_path.rglob("*tfevents*"))) == 2


@pytest.mark.parametrize("sizes", [{}, {NEW: 3}])
def test_the_files_of_another_run_are_left_alone(tmp_path: Path, sizes: dict[str, int]) -> None:
    write(tmp_path, OLD, b"another run's")

    cut_event_files(tmp_path, sizes, event_file_sizes(tmp_path))

    assert (tmp_path / OLD).read_bytes() == b"another run's"


def test_a_new_file_sorts_behind_those_of_the_same_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "time", lambda: 2000.25)

    wait_for_a_later_name(tmp_path)
    write(tmp_path, OLD, b"")
    wait_for_a_later_name(tmp_path)
    assert slept == []

    write(tmp_path, NEW, b"")
    wait_for_a_later_name(tmp_path)
    assert slept == [0.75]


def test_names_that_leave_the_directory_touch_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    directory.mkdir()
    for path in (
        tmp_path / "events.out.tfevents.1",
        directory / "notes.txt",
        directory / "events.out.tfevents.2",
    ):
        path.write_bytes(bytes(10))

    for name in ("../events.out.tfevents.1", "notes.txt", str(tmp_path / "events.out.tfevents.1")):
        cut_event_files(directory, {name: 3, "events.out.tfevents.2": 3}, [])

    assert {path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()} == {10}


def test_going_back_twice_loses_no_later_event(tmp_path: Path) -> None:
    name, content = "events.out.tfevents.1.host", bytes(range(100))
    (tmp_path / name).write_bytes(content)

    for size in (50, 30, 100):
        cut_event_files(tmp_path, {name: size}, [name])
        assert (tmp_path / name).read_bytes() == content[:size]
