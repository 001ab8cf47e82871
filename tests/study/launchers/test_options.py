"""Where cells run, as the command line says it; contradictions are refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.command import study_parser
from lit_gfs.study.launchers import options
from lit_gfs.study.launchers.options import Choice, choose_launcher


@pytest.fixture(autouse=True)
def _four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(options, "available_cores", lambda: 4)


def choice(*arguments: str) -> Choice:
    return choose_launcher(study_parser().parse_args(list(arguments)))


LOCAL_JOBS = ["--launcher=slurm", "--slurm.cluster=local"]


@pytest.mark.parametrize(
    ("arguments", "jobs", "handed_over", "queues"),
    [
        ([], 4, 4, False),
        (["--threads=2"], 2, 2, False),
        (["--launcher=ray"], 4, 4, True),
        (["--launcher=ray", "--cpus=0.5"], 8, 8, True),
        (["--launcher=ray", "--address=auto"], None, None, True),
        (["--launcher=ray", "--address=auto", "--jobs=9"], 9, 9, True),
        (LOCAL_JOBS, 4, 4, False),
        ([*LOCAL_JOBS, "--jobs=3"], 3, 3, False),
    ],
)
def test_how_many_cells_a_launcher_gets(
    arguments: list[str], jobs: int | None, handed_over: int | None, queues: bool
) -> None:
    chosen = choice(*arguments)
    assert (chosen.jobs, chosen.handed_over, chosen.queues) == (jobs, handed_over, queues)


def test_slurm_gets_all_cells_and_their_number_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("sbatch", "srun"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    chosen = choice("--launcher=slurm", "--slurm.time=5", "--jobs=9")
    assert (chosen.jobs, chosen.handed_over, chosen.queues) == (9, None, True)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--address=auto"], "--address is for --launcher ray; --launcher is local"),
        (["--launcher=slurm", "--address=auto"], "--address is for --launcher ray; --launcher is slurm"),
        (["--slurm.time=5"], "--slurm is for --launcher slurm; --launcher is local"),
        (["--cpus=2"], "--cpus is for --launcher ray and --launcher slurm; --launcher is local"),
        (["--launcher=ray", "--gpus=1.5"], "--gpus is 1.5; expected a part of a GPU"),
    ],
)
def test_options_that_contradict_are_refused(arguments: list[str], line: str) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        choice(*arguments)
