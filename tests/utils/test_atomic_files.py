"""Text files that are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gfs.utils.atomic_files import replacing_text


def test_a_file_takes_its_place_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with replacing_text(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(UnicodeEncodeError), replacing_text(path) as file:
        file.write("half\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["table.csv", "table.csv.partial"])
def test_links_are_not_followed(name: str, tmp_path: Path) -> None:
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("mine")
    (tmp_path / name).symlink_to(elsewhere)
    with replacing_text(tmp_path / "table.csv") as file:
        file.write("new")
    assert elsewhere.read_text() == "mine"
    assert (tmp_path / "table.csv").read_text() == "new"
