"""How a run that does not finish is told."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lit_gfs.callbacks.graceful_stop import GracefulStop
from lit_gfs.errors import EnvironmentFault, StorageFault
from lit_gfs.runs.exit_status import ERROR_NAME, keep_traceback, told_in_one_line


@pytest.mark.parametrize(
    ("number", "verb"), [(errno.ENOSPC, "write"), (errno.EROFS, "write"), (errno.EIO, "read or write")]
)
def test_what_the_system_refuses_is_told_as_far_as_it_is_known(
    number: int, verb: str, tmp_path: Path
) -> None:
    with (
        pytest.raises(
            StorageFault, match=f"^cannot {verb} a/file: {os.strerror(number)}; there is no intact"
        ),
        told_in_one_line(GracefulStop(), tmp_path),
    ):
        raise OSError(number, os.strerror(number), "a/file")


def test_an_error_that_is_not_about_the_disk_stays_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConnectionRefusedError), told_in_one_line(GracefulStop(), tmp_path):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


def test_a_traceback_is_not_written_through_a_link(tmp_path: Path) -> None:
    elsewhere = tmp_path / "precious"
    elsewhere.write_text("mine")
    (tmp_path / ERROR_NAME).symlink_to(elsewhere)
    fault = EnvironmentFault("Maze-v0", 1, "raised ValueError: lost")

    keep_traceback(fault, tmp_path)

    assert elsewhere.read_text() == "mine"
    assert "ValueError: lost" in (tmp_path / ERROR_NAME).read_text()
    assert not (tmp_path / ERROR_NAME).is_symlink()
