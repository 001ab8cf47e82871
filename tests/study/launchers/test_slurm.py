"""Cells as jobs of SLURM, whose commands are fakes, and as jobs of submitit's executor for one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.cell.task import Task
from lit_gfs.study.launchers import job, slurm
from lit_gfs.study.launchers.job import CellOfJob, CellsJob, read_ends
from lit_gfs.study.launchers.local import LocalLauncher
from lit_gfs.study.launchers.slurm import SlurmLauncher
from lit_gfs.study.planning.plan import Cell, Score
from support import fake_slurm, launched
from support.study_fits import study


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    launched.visible_to_cells(monkeypatch)


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give fakes of SLURM's commands, and return the directory of their state."""
    return fake_slurm.install(tmp_path, monkeypatch)


@pytest.fixture
def held(state: Path) -> Path:
    """Have all jobs wait in the queue."""
    (state / "hold").touch()
    return state


def launcher(gpus: float = 0, jobs: int | None = None, cpus: float = 1, **options: Any) -> SlurmLauncher:
    return SlurmLauncher(Path("runs"), {"time": 60, **options}, cpus, gpus, jobs)


def tasks(count: int) -> list[Task]:
    return [
        Task(
            cell=Cell(f"cell_{number}", {}, []),
            command=[],
            directory=Path(f"runs/cells/cell_{number}"),
            score=Score(),
            keep_checkpoints=False,
            environment={},
            working_directory=Path.cwd(),
            launcher="slurm",
        )
        for number in range(count)
    ]


def scancels(state: Path) -> list[list[str]]:
    path = state / "scancel.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_the_text_of_an_array_says_what_was_asked_for(held: Path) -> None:
    launcher(gpus=2, jobs=3, cpus=4, partition="gpu", requeues=7, mem="8GB").start(tasks(5))

    (text,) = fake_slurm.arrays(held)
    asked = fake_slurm.parameters(text)
    expected = {
        "array": "0-4%3",
        "time": "60",
        "partition": "gpu",
        "mem": "8GB",
        "requeue": "",
        "gpus-per-node": "2",
        "cpus-per-task": "4",
        "nodes": "1",
        "ntasks-per-node": "1",
        "job-name": "runs",
    }
    assert {name: asked.get(name) for name in expected} == expected
    assert asked["output"].startswith(str(Path.cwd() / "runs" / "slurm"))


def test_cells_that_share_a_gpu_are_one_job(held: Path) -> None:
    launcher(gpus=0.25, jobs=8).start(tasks(10))

    asked = fake_slurm.parameters(fake_slurm.arrays(held)[0])
    assert (asked["array"], asked["gpus-per-node"], asked["cpus-per-task"]) == ("0-2%2", "1", "4")


def test_with_fewer_jobs_than_shares_a_job_has_fewer_cells(held: Path) -> None:
    launcher(gpus=0.25, jobs=2).start(tasks(4))

    asked = fake_slurm.parameters(fake_slurm.arrays(held)[0])
    assert (asked["array"], asked["cpus-per-task"]) == ("0-1%1", "2")


def test_without_gpus_none_is_asked_for_and_a_gres_takes_their_place(held: Path) -> None:
    launcher().start(tasks(2))
    launcher(gpus=0.5, gres="gpu:a100:1").start(tasks(2))

    first, second = map(fake_slurm.parameters, fake_slurm.arrays(held))
    assert "gpus-per-node" not in first.keys() | second.keys()
    assert (first["array"], second["gres"], second.get("array")) == ("0-1%2", "gpu:a100:1", None)


def test_more_cells_than_an_array_may_have_are_several(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "MAX_ARRAY", 3)
    launcher().start(tasks(5))

    assert [fake_slurm.parameters(text)["array"] for text in fake_slurm.arrays(held)] == ["0-2%3", "0-1%2"]


def test_a_stop_cancels_the_jobs_also_of_an_earlier_process(held: Path) -> None:
    launcher().start(tasks(3))
    after = launcher()
    after.start(tasks(2))  # those that wait would run twice
    assert scancels(held) == [["--state=PENDING", "1"]]

    after.stop()

    assert scancels(held)[1:] == [["1", "2"]]
    launcher().stop()
    assert len(scancels(held)) == 2


def test_a_job_that_is_gone_without_the_end_of_its_cell_is_lost(
    held: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "SECONDS_UNTIL_VISIBLE", 0.1)
    monkeypatch.setattr(slurm, "SECONDS_BETWEEN_QUERIES", 0.1)
    gone = launcher()
    gone.start(tasks(2))
    assert gone.wait(0.3) == []

    (held / "1_1.state").write_text("NODE_FAIL")

    deadline = time.monotonic() + 20
    while not (endings := gone.wait(1)) and time.monotonic() < deadline:
        pass
    assert [tuple(ending) for ending in endings] == [("cell_1", None, "its job ended (NODE_FAIL)")]


def test_what_slurm_refuses_is_told_in_its_words(state: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        UserError, match=r"^SLURM refused the jobs: sbatch: error: invalid partition .*closed$"
    ):
        launcher(partition="closed").start(tasks(2))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"tim": 5}, r"--slurm\.tim is no parameter of submitit; .*did you mean 'time'\?"),
        ({"gpus_per_node": 1}, r"--slurm\.gpus_per_node cannot be set: --gpus decides it"),
        ({"nodes": 2}, r"--slurm\.nodes cannot be set: a cell is one process"),
        ({"time": "2h"}, r"--slurm\.time is '2h'; expected a whole number of minutes, at least 1"),
        ({"time": 5, "requeues": -1}, r"--slurm\.requeues is -1; expected a whole number, at least 0"),
        ({"time": 5, "setup": "module load"}, r"--slurm\.setup is 'module load'; expected a list"),
        ({"cluster": "pbs"}, r"--slurm\.cluster is 'pbs'; expected slurm, or local"),
        ({"partition": "gpu"}, r"--slurm\.time is missing; expected the time limit of a job in minutes"),
    ],
)
def test_a_wrong_option_is_refused(state: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        SlurmLauncher(Path("runs"), options, 1, 0, None)
    assert not Path("runs").exists()


def test_without_slurm_or_submitit_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="does not find sbatch; expected a machine that submits jobs"):
        launcher()
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"needs the package submitit .*pip install 'lit-gfs\[slurm\]'"):
        launcher()


def test_a_study_runs_as_an_array_and_is_cancelled(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "POLL_SECONDS", 0.1)
    plan, stop = study("kill once", "never"), threading.Event()
    pids = []

    def watch() -> None:
        launched.file_of_a_cell("facts.json")
        pids.append(int(launched.file_of_a_cell("pid").read_text()))
        time.sleep(1)
        stop.set()

    launched.in_background(watch)
    record = launched.run(plan, launcher(gpus=0.5), jobs=2, stop=stop)

    assert record.interruptions == [("kill once", "killed by SIGKILL (out of memory?)")]
    assert record.results["kill once"].status == "finished"
    facts = json.loads(next(Path("runs").rglob("facts.json")).read_text())
    assert facts["slurm"] == []  # by these, the run would take itself for the job, and resume what that began
    # Both shared a GPU; the second attempt came alone.
    assert ["array" in fake_slurm.parameters(text) for text in fake_slurm.arrays(state)] == [False, False]
    assert scancels(state)[-1] == ["1", "2"]
    assert launched.ends(pids[0])


def test_the_table_is_that_of_local_processes() -> None:
    plan = study("well", "kill once", "error")
    launched.run(plan, launcher(cluster="local"))
    rows = launched.table(plan)
    assert [row["status"] for row in rows] == ["finished", "finished", "failed"]

    Path("runs").rename("by_slurm")
    launched.run(plan, LocalLauncher())
    assert launched.table(plan) == rows


class Job:
    """A job of two cells, whose processes are replaced by one of another command."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *command: str) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

        def start_cell(directory: str, *_: object) -> subprocess.Popen[bytes]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            self.started.append(subprocess.Popen(command, cwd=directory, **pipes))  # type: ignore[call-overload]
            return self.started[-1]

        monkeypatch.setattr(job, "start_cell", start_cell)
        self.ends = tmp_path / "ends"
        self.ends.mkdir()
        cells = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "lease.json").touch()
            cells.append(CellOfJob(name, str(tmp_path / name), {}))
        self.run = CellsJob(cells, str(tmp_path), str(self.ends))


def test_a_job_tells_the_end_of_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Job(tmp_path, monkeypatch, "sh", "-c", 'echo started; echo "disk full"; test -e fine || exit 5')
    (tmp_path / "b" / "fine").touch()
    told.run()

    assert read_ends(told.ends) == {"a": (5, "disk full"), "b": (0, "disk full")}
    assert (tmp_path / "a" / "lease.json").exists()


def test_a_job_that_starts_again_runs_only_what_has_not_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Job(tmp_path, monkeypatch, "true")
    (tmp_path / "a" / "result.json").touch()
    again: Any = told.run.checkpoint()
    again.function()

    assert len(told.started) == 1
    assert read_ends(told.ends) == {"a": (0, ""), "b": (0, "")}
    assert not (tmp_path / "b" / "lease.json").exists()
    again.function()
    assert len(told.started) == 1


def test_a_job_that_slurm_restarts_after_a_lost_node_takes_the_leases(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Job(tmp_path, monkeypatch, "true")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    told.run()

    assert not list(tmp_path.glob("*/lease.json"))


def test_the_stop_of_a_study_without_slurm_ends_its_jobs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Job(tmp_path, monkeypatch, "sleep", "60")
    study = launcher(cluster="local")
    study._submitted["1"] = slurm._Submitted(Ended(), {"a", "b"}, told.ends)
    threading.Timer(0.5, study.stop).start()
    told.run()

    assert [process.returncode for process in told.started] == [-signal.SIGKILL] * 2
    assert read_ends(told.ends) == {}
    told.run()
    assert len(told.started) == 2  # a job that begins late


class Ended:
    """A job that has ended."""

    def done(self) -> bool:
        return True


def test_a_job_that_is_interrupted_ends_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Job(tmp_path, monkeypatch, "sleep", "60")
    threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        told.run()

    assert [process.returncode for process in told.started] == [-signal.SIGKILL] * 2
    assert read_ends(told.ends) == {}


@pytest.mark.slow
def test_a_job_at_its_time_limit_is_queued_again_and_resumes(state: Path) -> None:
    plan = study("lost once")

    def limit() -> None:
        parent = int(launched.file_of_a_cell("parent").read_text())
        os.kill(parent, signal.SIGUSR2)

    launched.in_background(limit)
    record = launched.run(plan, launcher(), jobs=1)

    assert record.interruptions == []  # SLURM started it again, not the study
    assert record.results["lost once"].status == "finished"
    assert len(fake_slurm.arrays(state)) == 1
