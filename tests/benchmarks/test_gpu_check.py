"""The check of everything in small: one of its rows, and some that fail."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_files import complete_arguments


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = importlib.import_module("gpu_check")
    for name, value in module.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)  # it is put back after the test
    return module


def test_a_row_that_runs_is_ok(
    gpu_check: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = tmp_path / "check.json"
    monkeypatch.setattr(gpu_check, "_IMPORTED", [])  # but for its own rows, and they take long

    gpu_check.main(["--jobs=1", "--only=ppo, cartpole, multiskip_kron, 32", f"--json={outcomes}"])

    said = capsys.readouterr().out
    assert [each["status"] for each in json.loads(outcomes.read_text())] == ["ok"]
    assert "ppo, cartpole, multiskip_kron, 32-true  ok" in said
    assert "1 ok, 0 failed" in said


def test_a_row_that_fails_says_why_and_so_does_the_exit_status(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [gpu_check.Row("wrong", "pqn", ("--data.num_envs=0",))]
    monkeypatch.setattr(gpu_check, "rows", lambda has_gpu: rows)

    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--jobs=1"])

    assert ended.value.code == 1
    assert "exit status 2: lit_gfs: error: num_envs is 0; expected" in capsys.readouterr().out


def test_a_row_that_takes_too_long_is_ended(gpu_check: Any) -> None:
    outcome = gpu_check.attempt(gpu_check.Row("endless", "pqn", ("--data.total_steps=1000000",)), 5.0)

    assert outcome.status == "failed"
    assert outcome.error.startswith("after 5 s:")


def test_a_run_that_does_not_go_on_is_a_failure(gpu_check: Any) -> None:
    row = gpu_check.Row("short", "classifier", ("--data.epochs=6",))

    assert gpu_check.attempt(row, 100.0).error.startswith("exit status 1: AssertionError: optimizer steps")


def test_every_combination_has_a_row(gpu_check: Any) -> None:
    here, on_gpu = ([row.name for row in gpu_check.rows(has_gpu)] for has_gpu in (False, True))

    assert len(set(on_gpu)) == len(on_gpu)
    assert set(here) == {name for name in on_gpu if "16-mixed" not in name or "bf16" in name}
    for agent in ("dqn", "ppo", "pqn"):
        for suite in ("cartpole", "acrobot", "breakout", "swingup"):
            for recipe in gpu_check.RECIPES:
                assert {f"{agent}, {suite}, {recipe}, {each}" for each in gpu_check.PRECISIONS} <= set(on_gpu)


def test_speeds_are_compared_with_the_first_row_of_a_group(
    gpu_check: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    speeds = importlib.import_module("_gpu_speed")
    rows = {"as shipped": ("--agent=pqn",), "wrong": ("--agent=sarsa",), "faster": ("--num-envs=64",)}
    monkeypatch.setattr(speeds, "GROUPS", {"pqn": rows})
    measured = {"--agent=pqn": 100.0, "--num-envs=64": 250.0}

    def throughput(options: list[str]) -> Any:
        assert options[-1] == "--seconds=2"
        if options[0] not in measured:
            return None, "lit_gfs: error: no agent 'sarsa'"
        return {"fit": {"steps_per_second": measured[options[0]]}, "ratio": 0.5}, ""

    monkeypatch.setattr(speeds, "_throughput", throughput)
    file = tmp_path / "speed.json"

    with pytest.raises(SystemExit) as ended:
        gpu_check.main(["--speed", "--seconds=2", f"--json={file}"])

    assert ended.value.code == 1
    found = {each["row"]: each for each in json.loads(file.read_text())}
    assert (found["faster"]["steps_per_second"], found["faster"]["by_first"]) == (250, 2.5)
    assert found["wrong"]["steps_per_second"] is None
    assert "no agent 'sarsa'" in capsys.readouterr().out


def test_fit_knows_the_options_of_every_row_of_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    speeds, throughput = (importlib.import_module(name) for name in ("_gpu_speed", "throughput"))
    monkeypatch.setattr(GradientFlowCLI, "_set_seed", lambda self: None)
    monkeypatch.setattr(GradientFlowCLI, "instantiate_classes", lambda self: None)
    monkeypatch.setattr(GradientFlowCLI, "_run_subcommand", lambda self, subcommand: None)

    cli = GradientFlowCLI(complete_arguments(["fit", "--config=quickstart"]))
    for rows in speeds.GROUPS.values():
        for options in rows.values():
            command, *_ = throughput.fit_arguments(throughput.make_parser().parse_args(list(options)))
            cli.parse_arguments(cli.parser, complete_arguments(command))  # a wrong option is an error
