"""SLURM's commands on one machine: a script that runs as sbatch, srun, sacct, scancel or scontrol.

All state is in the directory of the environment variable FAKE_SLURM: the text of each array, a process id for
each job that runs, a state for each that was ended, and a line for each call of scancel. If it has a file
``hold``, jobs stay in the queue.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest  # whose import would take longer than any of the commands

COMMANDS = ("sbatch", "srun", "sacct", "scancel", "scontrol")


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put the commands on the PATH, and return the directory of their state."""
    commands, state = directory / "commands", directory / "slurm_state"
    commands.mkdir()
    state.mkdir()
    for name in COMMANDS:
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {__file__} {name} "$@"\n')
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(state))
    return state


def parameters(text: str) -> dict[str, str]:
    """Read the options of sbatch from the text of an array."""
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", text, re.MULTILINE))


def arrays(state: Path) -> list[str]:
    """Return the texts of all arrays, in order."""
    return [path.read_text() for path in sorted(state.glob("*.sh"), key=lambda path: int(path.stem))]


def _start(state: Path, array: str, index: str | None, restarts: int = 0) -> None:
    job = array if index is None else f"{array}_{index}"
    if (state / "hold").exists():
        (state / f"{job}.state").write_text("PENDING")
        return
    (state / f"{job}.state").unlink(missing_ok=True)
    variables = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_RESTART_COUNT": str(restarts)}
    if index is not None:
        variables |= {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": index}
    process = subprocess.Popen(
        ["bash", str(state / f"{array}.sh")],
        env={**os.environ, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(state / f"{job}.err").open("ab"),
        start_new_session=True,
    )
    (state / f"{job}.pid").write_text(str(process.pid))


def _jobs(state: Path, array: str) -> list[str]:
    """Return the jobs of an array, or a job alone."""
    found = {path.stem for kind in ("pid", "state") for path in state.glob(f"*.{kind}")}
    return sorted(job for job in found if job == array or job.startswith(f"{array}_"))


def _state_of(state: Path, job: str) -> str:
    if (state / f"{job}.state").exists():
        return (state / f"{job}.state").read_text()
    try:
        os.kill(int((state / f"{job}.pid").read_text()), 0)
    except ProcessLookupError:
        return "COMPLETED"
    return "RUNNING"


def sbatch(state: Path, arguments: list[str]) -> None:
    text = Path(arguments[0]).read_text()
    if parameters(text).get("partition") == "closed":
        sys.exit("sbatch: error: invalid partition specified: closed")
    array = str(len(list(state.glob("*.sh"))) + 1)
    (state / f"{array}.sh").write_text(text)
    last = re.search(r"--array=0-(\d+)", text)
    for index in [None] if last is None else [str(each) for each in range(int(last[1]) + 1)]:
        _start(state, array, index)
    print(f"Submitted batch job {array}")


def srun(state: Path, arguments: list[str]) -> None:
    while arguments[0].startswith("--"):
        arguments = arguments[2 if arguments[0] in ("--output", "--error") else 1 :]
    os.execvp(arguments[0], arguments)


def sacct(state: Path, arguments: list[str]) -> None:
    print("JobID|State|NodeList")
    for array in [arguments[place + 1] for place, each in enumerate(arguments) if each == "-j"]:
        for job in _jobs(state, array):
            print(f"{job}|{_state_of(state, job)}|here")


def scancel(state: Path, arguments: list[str]) -> None:
    with (state / "scancel.txt").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    waiting_only = "--state=PENDING" in arguments
    for array in [each for each in arguments if not each.startswith("--")]:
        for job in _jobs(state, array):
            before = _state_of(state, job)
            if before == "PENDING" or (before == "RUNNING" and not waiting_only):
                (state / f"{job}.state").write_text("CANCELLED")
            if before == "RUNNING" and not waiting_only:
                os.killpg(int((state / f"{job}.pid").read_text()), signal.SIGKILL)


def scontrol(state: Path, arguments: list[str]) -> None:
    array, _, index = arguments[1].partition("_")
    _start(state, array, index or None, restarts=1)


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(os.environ["FAKE_SLURM"]), sys.argv[2:])
