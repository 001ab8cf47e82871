"""Cells run in processes of their own: how they end, what is repeated, and who may run them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lit_gfs.errors import StorageFault
from lit_gfs.study.cell.attempts import Attempt, begin_attempt, forget_attempts, prepare, seconds_in
from lit_gfs.study.cell.planned import choose_cells, fit_command, read_results
from lit_gfs.study.driver import run_cells
from lit_gfs.study.launchers.local import LocalLauncher
from lit_gfs.study.planning.plan import Cell, Score
from lit_gfs.study.results.collect import read_result
from lit_gfs.study.results.table import FAILED, FINISHED
from lit_gfs.study.running import Steps
from lit_gfs.utils.checksummed_files import write_checksummed
from support import study_fits
from support.processes import is_alive, wait_for
from support.study_fits import study
from support.study_record import Record


def run(
    cells: list[Cell],
    directory: Path,
    jobs: int = 1,
    stop: threading.Event | None = None,
    threads: int = 1,
    keep_checkpoints: bool = True,
    retries: int = 0,
) -> Record:
    record = Record()
    stop = stop or threading.Event()
    run_cells(
        cells,
        Score(),
        directory,
        LocalLauncher(),
        jobs,
        record,
        stop,
        threads,
        study_fits.FIT,
        keep_checkpoints=keep_checkpoints,
        retries=retries,
    )
    return record


FAILURES = {
    "error": "^no such environment; seed 0$",
    "bug": "^ValueError: a bug over two lines$",
    "exit": "^SystemExit: 2$",
    "abrupt exit": "^exited with status 3: goodbye$",
    "kill": r"^killed by SIGKILL \(out of memory\?\): a fit that ends with kill$",
    "silence": "^no score: 'eval/episode_return' was never logged; did you mean 'train/episode_return'",
    "nan": "^no score: the final 'eval/episode_return' is nan$",
}


def test_however_a_cell_fails_it_is_recorded_and_the_others_run(tmp_path: Path) -> None:
    plan = study(*FAILURES, "well")

    results = run(plan.cells(), tmp_path).results

    for end, expected in FAILURES.items():
        assert results[end].status == FAILED
        assert re.search(expected, results[end].error), results[end].error
    assert (results["well"].status, results["well"].error) == (FINISHED, "")
    assert results["well"].curves["eval/episode_return"].values == [0.0, 0.0]
    assert results["well"].cpu_seconds == 0.5
    assert read_results(plan, tmp_path) == {result.cell: result for result in results.values()}
    log = (tmp_path / "cells" / results["bug"].cell / "log.txt").read_text()
    assert "a fit that ends with bug" in log
    assert "Traceback" in log


def test_jobs_run_at_once_with_the_threads_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")

    record = run(study("together", seeds=3).cells(), tmp_path, jobs=2, threads=3)

    assert record.most_at_once == 2
    facts = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("facts.json"))]
    assert len(facts) == 3
    assert all(fact["threads"] == "3" for fact in facts)
    assert len({fact["pid"] for fact in facts} - {os.getpid()}) == 3
    assert all(fact["frozen"] for fact in facts)  # no collector goes through the server's imports
    assert min(fact["ended"] for fact in facts[:2]) > max(fact["began"] for fact in facts[:2])
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_what_is_half_done_is_removed(tmp_path: Path) -> None:
    (cell,) = study("well").cells()
    left_over = tmp_path / "cells" / cell.name / "events.out.tfevents.0"
    left_over.parent.mkdir(parents=True)
    left_over.write_text("half")

    result = run([cell], tmp_path).results["well"]

    assert result.status == FINISHED
    assert not left_over.exists()


def test_a_cells_clock_leaves_out_pauses_and_lost_work() -> None:
    attempts = [Attempt(100.0, 0.0), Attempt(500.0, 30.0)]

    assert [seconds_in(attempts, moment) for moment in (120.0, 500.0, 510.0)] == [20.0, 30.0, 40.0]


def facts_of(place: Path) -> dict[str, Any]:
    return json.loads((place / "facts.json").read_text())


@pytest.mark.parametrize("keep_checkpoints", [True, False])
def test_a_cell_that_was_killed_goes_on_from_its_last_checkpoint(
    keep_checkpoints: bool, tmp_path: Path
) -> None:
    plan = study("kill once")
    (cell,) = plan.cells()
    place = tmp_path / "cells" / cell.name
    assert run([cell], tmp_path).results["kill once"].error.startswith("killed by SIGKILL")
    spent = 100.0  # seconds, up to the checkpoint
    content = json.loads((place / "attempts.json").read_text())
    content["attempts"][0][0] = (place / "last.ckpt").stat().st_mtime - spent
    (place / "attempts.json").write_text(json.dumps(content))
    assert choose_cells(plan, read_results(plan, tmp_path), retry_failed=True) == [cell]

    result = run([cell], tmp_path, keep_checkpoints=keep_checkpoints).results["kill once"]

    assert result.status == FINISHED
    assert facts_of(place)["command"][-1] == f"--ckpt_path={place}/last.ckpt"
    assert result.command == fit_command(cell, tmp_path, 1)
    assert result.wall_seconds == pytest.approx(spent + 0.2, abs=5)
    assert result.cpu_seconds is None  # the killed attempt left no record of its own
    assert result.curves["eval/episode_return"].seconds == pytest.approx([spent, spent + 1], abs=0.1)
    left = {path.name for path in place.iterdir()} - {"log.txt", "result.json", "facts.json", "task.json"}
    assert {name for name in left if "tfevents" not in name} == ({"last.ckpt"} if keep_checkpoints else set())


def test_a_killed_cell_starts_again_by_itself(tmp_path: Path) -> None:
    (cell,) = study("kill once").cells()

    record = run([cell], tmp_path, retries=1)

    assert record.results["kill once"].status == FINISHED
    assert record.interruptions == [("kill once", "killed by SIGKILL (out of memory?)")]
    place = tmp_path / "cells" / cell.name
    assert facts_of(place)["command"][-1] == f"--ckpt_path={place}/last.ckpt"


def test_a_cell_that_is_killed_again_and_again_fails(tmp_path: Path) -> None:
    record = run(study("kill", "well").cells(), tmp_path, retries=2)

    assert len(record.interruptions) == 2
    assert record.results["kill"].status == FAILED
    expected = "killed by SIGKILL (out of memory?) 3 times: a fit that ends with kill"
    assert record.results["kill"].error == expected
    assert record.results["well"].status == FINISHED


@pytest.mark.parametrize("change", ["arguments", "checkpoint", "error"])
def test_a_cell_begins_anew(change: str, tmp_path: Path) -> None:
    (cell,) = study("well", lr="1").cells()
    command = fit_command(cell, tmp_path, 1)
    place = tmp_path / "cells" / cell.name
    prepare(place, command)
    begin_attempt(place, command)
    write_checksummed(study_fits.CHECKPOINT, place / "last.ckpt")
    assert begin_attempt(place, command)[1] == [f"--ckpt_path={place}/last.ckpt"]
    if change == "arguments":
        (cell,) = study("well", lr="2").cells()
    elif change == "checkpoint":
        (place / "last.ckpt").write_bytes(b"cut short")
    else:
        forget_attempts(place)  # as where a fit raises an error

    run([cell], tmp_path)

    assert not any(argument.startswith("--ckpt_path") for argument in facts_of(place)["command"])
    assert not (place / "last.ckpt").exists()


def test_a_full_disk_ends_a_study_and_fails_no_cell(tmp_path: Path) -> None:
    plan = study("well", "full disk", "new")

    with pytest.raises(
        StorageFault, match=r"^cell 't-base-full_disk-seed_0': cannot write .*last.ckpt: No sp"
    ):
        run(plan.cells(), tmp_path)

    results = read_results(plan, tmp_path)
    assert {cell: result.status for cell, result in results.items()} == {"t-base-well-seed_0": FINISHED}


def test_a_stop_ends_the_workers_and_leaves_their_cells_unfinished(tmp_path: Path) -> None:
    cells = study("well", "never", "new").cells()
    stop = threading.Event()
    started = tmp_path / "cells" / "t-base-never-seed_0" / "pid"
    threading.Thread(target=lambda: (wait_for(started), stop.set())).start()

    record = run(cells, tmp_path, stop=stop)

    assert set(record.results) == {"well"}
    assert not is_alive(int(started.read_text()))
    assert read_result(started.parent) is None


def test_steps_of_a_running_cell_are_told(tmp_path: Path) -> None:
    stop = threading.Event()

    class Impatient(Record):
        def refresh(self, steps: Mapping[str, Steps]) -> None:
            super().refresh(steps)
            if self.steps:
                stop.set()

    (cell,) = study("never").cells()
    observer = Impatient()
    run_cells([cell], Score(), tmp_path, LocalLauncher(), 1, observer, stop, 1, study_fits.FIT)

    assert observer.steps == {cell.name: Steps(100, 200)}
    assert observer.results == {}


def test_workers_do_not_outlive_a_study_that_is_killed(tmp_path: Path) -> None:
    program = f"""
        import sys, threading
        from pathlib import Path
        sys.path[:0] = {sys.path!r}
        from support import study_fits
        from lit_gfs.study.driver import run_cells
        from lit_gfs.study.launchers import local
        from lit_gfs.study.planning.plan import Cell, Score
        class Silent:
            started = ended = interrupted = refresh = lambda *_: None
        local.PRELOADED.clear()  # only for speed
        cells = [Cell(name, {{}}, ["--ends=never", "--seed_everything=0"]) for name in ("a", "b")]
        if __name__ == "__main__":
            directory = Path({str(tmp_path)!r})
            launcher, stop = local.LocalLauncher(), threading.Event()
            run_cells(cells, Score(), directory, launcher, 2, Silent(), stop, 1, study_fits.FIT)
    """
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    process = subprocess.Popen([sys.executable, tmp_path / "program.py"])
    files = [tmp_path / "cells" / name / "pid" for name in ("a", "b")]
    for file in files:
        wait_for(file)
    pids = [int(file.read_text()) for file in files]
    assert all(map(is_alive, pids))

    process.send_signal(signal.SIGKILL)
    process.wait()

    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))
