"""A directory belongs to one study at a time, on one machine and among machines."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.lease import LEASE_NAME, LEASE_SECONDS, Lease, read_lease
from lit_gfs.study.lock import locked


class Time:
    """A clock that only sleep advances; each sleep lets something happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self.while_asleep: Any = lambda: None

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.while_asleep()


@pytest.fixture
def time() -> Time:
    return Time()


def leave_lease(directory: Path, lease: Lease) -> None:
    directory.mkdir(exist_ok=True)
    (directory / LEASE_NAME).write_text(json.dumps(lease._asdict()))


def far_lease(beat: int = 7) -> Lease:
    return Lease("somebody", "far", "another table", 4711, "study", beat)


def test_a_directory_belongs_to_one_study_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path / "a"):
        expected = rf"a study is running in '.*a' by process {os.getpid()} of \S+; wait for it"
        with pytest.raises(UserError, match=expected), locked(tmp_path / "a"):
            pass
        with locked(tmp_path / "b"):
            pass
    with locked(tmp_path / "a"):
        pass
    assert read_lease(tmp_path / "a") is None


def test_a_directory_that_cannot_be_made_is_told() -> None:
    with pytest.raises(UserError, match="'/proc/runs' cannot be written"), locked(Path("/proc/runs")):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_a_lease_keeps_other_studies_out(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: Time
) -> None:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "a"):
        lease = read_lease(tmp_path / "a")
        assert lease is not None
        time.while_asleep = lambda: leave_lease(tmp_path / "a", lease._replace(beat=1))
        with (
            pytest.raises(UserError, match="a study is running in"),
            locked(tmp_path / "a", time.clock, time.sleep),
        ):
            pass
    assert time.now < LEASE_SECONDS / 2


def test_a_study_of_another_machine_is_waited_for_until_it_shows_life(tmp_path: Path, time: Time) -> None:
    leave_lease(tmp_path, far_lease(7))
    time.while_asleep = lambda: time.now > 10 and leave_lease(tmp_path, far_lease(8))

    with (
        pytest.raises(UserError, match="by process 4711 of far"),
        locked(tmp_path, time.clock, time.sleep),
    ):
        pass
    assert 10 < time.now < 20
    assert read_lease(tmp_path) == far_lease(8)


def test_a_study_that_was_lost_with_its_machine_is_taken_over(
    tmp_path: Path, time: Time, capsys: pytest.CaptureFixture[str]
) -> None:
    leave_lease(tmp_path, far_lease())

    with locked(tmp_path, time.clock, time.sleep):
        lease = read_lease(tmp_path)
        assert lease is not None
        assert lease.pid == os.getpid()

    assert LEASE_SECONDS <= time.now <= LEASE_SECONDS + 10
    assert capsys.readouterr().err.count("a study of far was at work in") == 1


def test_a_study_that_was_killed_on_this_machine_delays_nobody(tmp_path: Path, time: Time) -> None:
    program = f"""
import sys, time
sys.path[:0] = {sys.path!r}
from pathlib import Path
from lit_gfs.study.lock import locked
with locked(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert read_lease(tmp_path) is not None

    with locked(tmp_path, time.clock, time.sleep):
        assert time.now == 0


def test_a_study_is_told_that_its_directory_was_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_gfs.study.lease.RENEWAL_SECONDS", 0.05)
    with locked(tmp_path) as is_lost:
        assert not is_lost.wait(0.3)
        leave_lease(tmp_path, far_lease())
        assert is_lost.wait(10)

    assert read_lease(tmp_path) == far_lease()  # which is not this study's to remove
