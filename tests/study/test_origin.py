"""Every cell is attributed to the command that ran it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.origin import (
    Part,
    attributed,
    continued,
    limited,
    part_of,
    read_origin,
    with_cell,
    write_origin,
)

OLD = {"commit": "1", "date": "Monday"}


def test_parts_survive_the_file(tmp_path: Path) -> None:
    parts = [Part("study --threads 3", OLD, ["a", "b"]), Part("study", {}, [])]

    write_origin(tmp_path, parts)

    assert read_origin(tmp_path) == parts
    assert [part.threads for part in parts] == [3, 1]


def test_an_older_file_is_one_part_with_all_cells(tmp_path: Path) -> None:
    (tmp_path / "origin.json").write_text(json.dumps({"command": "study", "versions": OLD}))

    (part,) = parts = read_origin(tmp_path)

    assert part == Part("study", OLD, None)
    assert part_of(parts, "any") is part
    assert limited(parts, ["a", "b"]) == [Part("study", OLD, ["a", "b"])]


@pytest.mark.parametrize(
    "content",
    ["", "[]", '{"parts": []}', '{"command": "study"}', '{"command": "study --threads", "versions": {}}'],
)
def test_a_file_of_another_format_is_told(content: str, tmp_path: Path) -> None:
    (tmp_path / "origin.json").write_text(content)

    with pytest.raises(UserError, match="does not say how the study was run"):
        read_origin(tmp_path)


def test_a_cell_that_no_part_names_is_of_the_last_one() -> None:
    parts = [Part("one", OLD, ["a"]), Part("two", OLD, ["gone"])]

    assert attributed(parts, ["a", "b"]) == [Part("one", OLD, ["a"]), Part("two", OLD, ["b"])]
    assert attributed([], ["a"]) == []


def test_the_same_command_goes_on_under_its_first_date() -> None:
    parts = [Part("one", OLD, ["a"]), Part("two", OLD, ["b"])]

    same = continued(parts, "one", {**OLD, "date": "Tuesday"})
    other = continued(parts, "one", {**OLD, "commit": "2"})

    assert same == [Part("two", OLD, ["b"]), Part("one", OLD, ["a"])]
    assert other == [*parts, Part("one", {**OLD, "commit": "2"}, [])]


def test_a_cell_that_is_run_again_changes_its_part() -> None:
    parts = [Part("one", OLD, ["a", "b"]), Part("two", OLD, [])]

    assert with_cell(parts, "a") == [Part("one", OLD, ["b"]), Part("two", OLD, ["a"])]
