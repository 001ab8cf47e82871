"""Cells as tasks of Ray."""

from __future__ import annotations

import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.launchers.local import LocalLauncher
from lit_gfs.study.launchers.ray import OBJECT_STORE_BYTES, RayLauncher
from lit_gfs.utils.ray_cluster import import_ray, keeping_signals
from support import launched
from support.study_fits import study


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Start Ray once for the tests of this file."""
    import_ray("--launcher ray")  # with the study's settings
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    with keeping_signals():
        cluster = Cluster(initialize_head=True, head_node_args=options)
    yield cluster.address
    cluster.shutdown()


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    launched.visible_to_cells(monkeypatch)


def test_the_table_is_that_of_local_processes_though_a_worker_is_killed(
    address: str, capfd: pytest.CaptureFixture[str]
) -> None:
    plan = study("well", "error", "lost once")
    by_ray = launched.in_background(launched.kill_the_parent_of_a_cell)
    record = launched.run(plan, RayLauncher(address, 1, 0, 2))
    by_ray.join()
    rows = launched.table(plan)
    assert [(cell, reason.split(" (")[0]) for cell, reason in record.interruptions] == [
        ("lost once", "lost with its machine")
    ]
    assert [row["status"] for row in rows] == ["finished", "failed", "finished"]
    printed = capfd.readouterr()
    assert printed.out + printed.err == ""  # neither Ray's banner nor its reports
    assert not record.results["lost once"].cpu_seconds  # it resumed

    Path("runs").rename("by_ray")
    launched.in_background(launched.kill_the_cell_that_waits)
    launched.run(plan, LocalLauncher())
    assert launched.table(plan) == rows


def test_a_stop_ends_the_cells_that_run(address: str) -> None:
    stop = threading.Event()
    pids = []

    def watch() -> None:
        pids.append(int(launched.file_of_a_cell("pid").read_text()))
        stop.set()

    before = signal.getsignal(signal.SIGTERM)
    launcher = RayLauncher(address, 1, 0, None)
    assert signal.getsignal(signal.SIGTERM) == before  # the study's, not Ray's
    launched.in_background(watch)
    record = launched.run(study("never"), launcher, stop=stop)

    assert record.results == {}
    assert launched.ends(pids[0])


def test_a_machine_without_the_directory_ends_the_study_with_one_line(address: str) -> None:
    launcher = RayLauncher(address, 1, 0, None)
    plan = study("well")
    start = launcher.start

    def without_directory(tasks: list) -> None:  # type: ignore[type-arg]
        start([task._replace(directory=Path("/nowhere")) for task in tasks])

    launcher.start = without_directory  # type: ignore[method-assign, assignment]
    with pytest.raises(UserError, match=r"does not see '/nowhere'; expected a disk that all machines share"):
        launched.run(plan, launcher)


def test_a_cluster_that_does_not_answer_is_refused_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(
        UserError, match=rf"--address is '127.0.0.1:{port}', and no Ray cluster answers there"
    ):
        RayLauncher(f"127.0.0.1:{port}", 1, 0, None)


def test_without_ray_the_line_has_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the package ray .*; run: pip install 'lit-gfs\[ray\]'"):
        RayLauncher(None, 1, 0, None)
