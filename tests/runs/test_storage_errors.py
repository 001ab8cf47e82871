"""Which errors end a run with the status of a storage fault, and which are told with their traceback."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lit_gfs.runs.storage_errors import describe_storage_error, is_storage_error

RUN = Path("runs/run/version_0")
FAILING = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", "ENODEV", "ESTALE", "ENOTCONN", "ETIMEDOUT")
FAILING += ("EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN", "EREMOTEIO", "ESHUTDOWN", "EUCLEAN", "ENOLCK")


def error(name: str, path: Path | None = None) -> OSError:
    number = getattr(errno, name)
    return OSError(number, os.strerror(number), path and str(path))


@pytest.mark.parametrize("name", FAILING)
def test_a_disk_that_fails(name: str) -> None:
    assert is_storage_error(error(name), RUN)
    assert is_storage_error(error(name))


@pytest.mark.parametrize("name", ["ENOENT", "ENOTDIR", "EISDIR", "EEXIST"])
def test_what_is_missing_or_something_else_is_the_storages_fault_in_the_run_alone(name: str) -> None:
    assert is_storage_error(error(name, RUN / "last.ckpt"), RUN)
    assert is_storage_error(error(name, RUN.absolute()), RUN)
    for elsewhere in (RUN.parent, Path("data.npz"), RUN.with_name("version_01") / "last.ckpt", None):
        assert not is_storage_error(error(name, elsewhere), RUN)
    assert not is_storage_error(error(name, RUN / "last.ckpt"))


def test_other_errors_are_no_faults_of_the_storage() -> None:
    assert not is_storage_error(error("EINVAL", RUN / "last.ckpt"), RUN)
    assert not is_storage_error(ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), RUN)
    assert not is_storage_error(ValueError("no OSError"), RUN)


def test_the_line_has_the_file_and_the_reason() -> None:
    full = describe_storage_error(error("ENOSPC", RUN / "last.ckpt"), RUN)
    assert full == "cannot write runs/run/version_0/last.ckpt: No space left on device"
    assert describe_storage_error(error("ESTALE"), RUN) == f"cannot read or write {RUN}: Stale file handle"
