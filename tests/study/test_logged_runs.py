"""``diagnose`` and ``compare`` on runs whose events are made up."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest
import yaml
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger

from lit_gfs.main import main
from lit_gfs.metrics.layer_scalars import write_measurement
from lit_gfs.metrics.series import Series
from lit_gfs.study.logged_runs import (
    LoggedRun,
    differing_options,
    find_runs,
    read_run,
    short_run_names,
)
from lit_gfs.study.report.run_figures import averaged
from support.command_line import refused, stopped
from support.study_fits import write_events
from support.training import quiet_trainer

RANK, RETURN = "representation/effective_rank", "eval/episode_return"


@pytest.fixture(autouse=True)
def _directory_with_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_run("runs/dqn/version_2", ranks=[16.0] * 12, lr=1e-3)
    make_run("runs/dqn/version_10", ranks=[16.0, *[1.1] * 11], lr=1e-2, returns=range(11, -1, -1))


def make_run(directory: str, ranks: list[float], lr: float, returns: Iterable[float] = range(12)) -> None:
    path = Path(directory)
    path.mkdir(parents=True)
    write_events(
        path,
        {
            RANK: [(100 * index, rank) for index, rank in enumerate(ranks)],
            RETURN: [(100 * index, float(value)) for index, value in enumerate(returns)],
        },
    )
    optimizer = {"class_path": "torch.optim.Adam", "init_args": {"lr": lr}}
    config = {
        "seed_everything": 0,
        "model": {"class_path": "lit_gfs.agents.DQN", "init_args": {"optimizer": optimizer}},
        "run": {"root": directory},
        "ckpt_path": None,
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))


def test_diagnose_says_what_is_wrong_in_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", "runs"])

    healthy, collapsed = capsys.readouterr().out.split("runs/dqn/version_10\n")
    assert healthy.startswith("runs/dqn/version_2\n  0 of 2 rules fired; not judged: dormant units")
    assert collapsed.startswith("  features collapsed since step 100: the effective rank is 1.1")


def test_events_may_lie_in_a_directory_that_names_the_run() -> None:
    make_run("runs/dqn/version_3", ranks=[16.0] * 12, lr=1e-3)
    directory = Path("runs/dqn/version_3/gfs_2x256_s0")
    directory.mkdir()
    for events in directory.parent.glob("events*"):
        events.rename(directory / events.name)

    assert find_runs(["runs/dqn/version_3"]) == find_runs([str(directory)]) == [directory.parent]
    assert find_runs(["runs"])[1] == directory.parent
    run = read_run(directory.parent)
    assert run.options["model.optimizer.lr"] == 1e-3
    assert run.steps == 1_100


def test_scalars_of_layers_without_charts_are_diagnosed(capsys: pytest.CaptureFixture[str]) -> None:
    logger = TensorBoardLogger("runs/dqn/version_2", name="", version="")
    trainer = quiet_trainer(logger=logger)
    for step in range(6):
        norms = {f"gradient_flow/norm/trunk.layer_0{layer}": 10.0**layer for layer in range(1, 5)}
        module = Counting(step)
        write_measurement(trainer, module, "gradient_flow", {}, norms, per_layer=False)
    logger.finalize("success")

    main(["diagnose", "runs/dqn/version_2"])

    said = capsys.readouterr().out
    assert "starving layers since step 0" in said
    assert "gradients near trunk.layer_01 are 0.001 times those near trunk.layer_04" in said


class Counting(BoringModel):
    """Stands at a step of the x axis."""

    def __init__(self, env_steps: int) -> None:
        super().__init__()
        self.env_steps = env_steps


def test_a_run_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", "runs/dqn/version_2", "runs/dqn", "runs/dqn/version_2/"])

    assert re.findall(r"^runs.*", capsys.readouterr().out, re.MULTILINE) == [
        "runs/dqn/version_2",
        "runs/dqn/version_10",
    ]


def test_strict_turns_a_finding_into_a_status() -> None:
    main(["diagnose", "runs/dqn/version_2", "--strict", "true"])

    assert stopped(["diagnose", "runs/dqn", "--strict", "true"]) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["diagnose"], r"runs not given"),
        (
            ["diagnose", "runs/dqn/version_3"],
            r"'runs/dqn/version_3' is no directory; .* 'runs/dqn/version_2'",
        ),
        (["diagnose", "runs/dqm"], r"'runs/dqm' is no directory; .*did you mean 'runs/dqn'"),
        (
            ["diagnose", "runs/dqn/version_2/config.yaml"],
            r"config.yaml' is no directory; expected that of a run",
        ),
        (["diagnose", "nothing"], r"'nothing' holds no run; expected a directory with events"),
        (["diagnose", "x" * 5000], r"is no directory; expected that of a run"),
        (["diagnose", "runs", "--strictly", "true"], r"--strictly is no known option"),
        (
            ["compare", "runs/dqn/version_2"],
            r"compare got one run, 'runs/dqn/version_2'; expected at least two",
        ),
        (["compare", "runs", "--output", "nowhere/page.html"], r"--output is 'nowhere/page.html'; expected"),
        (["compare", "runs", "--output", "runs"], r"--output is 'runs'; expected a file"),
    ],
)
def test_wrong_arguments_get_one_line(
    arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("nothing").mkdir()

    assert re.search(line, refused(arguments, capsys))


def test_compare_shows_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", "runs/dqn/version_2", "runs/dqn/version_10"])

    rows = [
        [cell.strip() for cell in line.split("│")[1:-1]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert ["model.optimizer.lr", "0.001", "0.01"] in rows
    assert ["steps", "1,100", "1,100"] in rows
    assert ["final score", "10.5", "0.50"] in rows  # of the last tenth of the steps
    assert ["best score", "11.0", "11.0"] in rows
    assert not [row for row in rows if row[0].startswith(("seed", "run", "ckpt"))]
    assert any(row[:2] == ["diagnosis", "nothing found"] and "collapsed" in row[2] for row in rows)


def test_compare_writes_one_page_with_curves() -> None:
    main(["compare", "runs", "--output", "side.html"])

    page = Path("side.html").read_text()
    assert "<td>model.optimizer.lr</td><td>0.001</td><td>0.01</td>" in page
    assert "features collapsed since step 100" in page
    assert page.count("data:image/") == 1
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)


def test_points_of_a_resumed_run_are_in_order() -> None:
    write_events(Path("runs/dqn/version_2"), {RETURN: [(1200, 5.0)]}, started_at=-100.0)

    steps = read_run(Path("runs/dqn/version_2")).curves[RETURN].steps
    assert steps == sorted(steps)
    assert steps[-1] == 1200


def test_a_run_without_configuration_and_evaluations_can_be_read() -> None:
    Path("bare").mkdir()
    write_events(Path("bare"), {"loss/q": [(1, 2.0)]})

    run = read_run(find_runs(["bare"])[0])
    assert (run.options, run.final, run.best, run.steps) == ({}, None, None, 1)


def test_names_leave_out_what_all_runs_share() -> None:
    def short(*paths: str) -> list[str]:
        return short_run_names([Path(path) for path in paths])

    assert short("runs/a/version_0", "runs/b/version_0") == ["a", "b"]
    assert short("runs/a/version_0", "runs/a/version_1") == ["version_0", "version_1"]
    assert short("runs/a/version_0", "runs/b/version_1") == ["a/version_0", "b/version_1"]
    assert short("runs/a", "runs/a/version_0") == ["a", "a/version_0"]


def test_arguments_of_other_classes_are_left_out() -> None:
    def run(**options: object) -> LoggedRun:
        return LoggedRun(Path(), {}, options)

    with_clipping = run(**{"gfs.clip": "Clipping", "gfs.clip.decay": 0.9, "seed": 0})
    without = run(**{"gfs.clip": None, "seed": 1})
    other = run(**{"gfs.clip": "Clipping", "gfs.clip.decay": 0.5, "seed": 0})

    assert differing_options([with_clipping, without]) == {"gfs.clip": ["Clipping", None], "seed": [0, 1]}
    assert differing_options([with_clipping, other]) == {"gfs.clip.decay": [0.9, 0.5]}


def test_long_curves_are_averaged() -> None:
    assert averaged(Series([1, 2, 3, 4, 5], [0.0, 2.0, 4.0, 6.0, 9.0]), most=3) == Series(
        [1, 3, 5], [1.0, 5.0, 9.0]
    )
    assert averaged(Series([], [])) == Series([], [])
