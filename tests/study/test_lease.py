"""Leases: who is at work in a directory, and whether it is alive."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lit_gfs.study import lease as leases
from lit_gfs.study.lease import (
    ABSENT_SECONDS,
    LEASE_NAME,
    LEASE_SECONDS,
    HeldLease,
    Lease,
    LeaseLost,
    Watch,
    process_table,
    read_lease,
    remove_lease,
)
from lit_gfs.study.running import Steps

FAR = Lease("somebody", "far", "another table", 4711, "ray", 7)


def nothing() -> None:
    pass


def until(holds: object) -> None:
    deadline = time.monotonic() + 20
    while not holds():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _renewed_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEWAL_SECONDS", 0.02)


def read(directory: Path) -> Lease:
    lease = read_lease(directory)
    assert lease is not None
    return lease


def test_a_lease_says_who_is_at_work_and_how_far(tmp_path: Path) -> None:
    assert read_lease(tmp_path) is None
    with HeldLease(tmp_path, "ray", nothing) as held:
        first = read(tmp_path)
        assert (first.pid, first.processes, first.launcher) == (os.getpid(), process_table(), "ray")
        assert first.steps is None
        until(lambda: read(tmp_path).beat >= first.beat + 3)
        held.tell(5, None)
        until(lambda: read(tmp_path).steps == Steps(5, None))
        assert not first.is_surely_dead()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_has_one_lease(tmp_path: Path) -> None:
    with HeldLease(tmp_path, "local", nothing) as held:
        with (
            pytest.raises(LeaseLost, match=f"process {os.getpid()} of "),
            HeldLease(tmp_path, "ray", nothing),
        ):
            pass
        held.require()


@pytest.mark.parametrize("taker", [None, FAR])
def test_a_process_finds_that_its_lease_was_taken(taker: Lease | None, tmp_path: Path) -> None:
    is_lost = threading.Event()
    with HeldLease(tmp_path, "local", is_lost.set) as held:
        remove_lease(tmp_path)
        if taker is not None:
            (tmp_path / LEASE_NAME).write_text(json.dumps(taker._asdict()))
        with pytest.raises(LeaseLost, match="another process has taken over"):
            held.require()
        assert is_lost.wait(20)
    assert read_lease(tmp_path) == taker


def test_a_beat_does_not_bring_a_lease_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_lost = threading.Event()
    as_text = HeldLease._content

    def removed_before_it_is_written(held: HeldLease, beat: int) -> str:
        if beat == 3:
            remove_lease(tmp_path)
        return as_text(held, beat)

    monkeypatch.setattr(HeldLease, "_content", removed_before_it_is_written)
    with HeldLease(tmp_path, "local", is_lost.set):
        assert is_lost.wait(20)
    assert read_lease(tmp_path) is None


def test_a_lease_that_is_being_written_belongs_to_nobody_else(tmp_path: Path) -> None:
    with HeldLease(tmp_path, "local", nothing) as held:
        (tmp_path / LEASE_NAME).write_text('{"owner": ')
        assert read(tmp_path).owner == ""
        held.require()
        until(lambda: read(tmp_path).owner)


def test_a_process_of_this_machine_that_ended_is_surely_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    ended = Lease("somebody", "here", process_table(), process.pid)

    assert ended.is_surely_dead()
    assert not Watch(0).is_alive(ended, 0)
    assert not ended._replace(pid=os.getpid()).is_surely_dead()
    assert not ended._replace(processes="another table").is_surely_dead()


def test_a_lease_without_a_beat_expires_by_the_clock_of_the_reader() -> None:
    watch = Watch(100)

    assert watch.is_alive(FAR, 150)  # seen for the first time
    assert watch.is_alive(FAR, 149 + LEASE_SECONDS)
    assert watch.is_alive(FAR._replace(beat=8), 151 + LEASE_SECONDS)
    assert watch.is_alive(FAR._replace(beat=8), 150 + 2 * LEASE_SECONDS)
    assert not watch.is_alive(FAR._replace(beat=8), 151 + 2 * LEASE_SECONDS)
    assert watch.is_alive(FAR._replace(owner="other"), 152 + 2 * LEASE_SECONDS)


def test_a_lease_that_is_not_there_may_appear_for_a_moment() -> None:
    watch = Watch(0)

    assert watch.is_alive(None, ABSENT_SECONDS - 1)
    assert not watch.is_alive(None, ABSENT_SECONDS)
    assert watch.is_alive(FAR, ABSENT_SECONDS + 1)
    assert watch.is_alive(None, ABSENT_SECONDS + 2)
