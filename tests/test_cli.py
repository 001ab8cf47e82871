"""The command line, run in this process in an empty directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.errors import UserError
from lit_gfs.main import main
from lit_gfs.runs.run_directory import RunDirectory
from support.command_line import DQN, PPO, BuiltOnly, Finished, stopped
from support.event_files import read_scalars

pytestmark = pytest.mark.usefixtures("empty_directory")


def test_the_configuration_is_written_from_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # The logger's thread opens its file by a relative path at any time.
    save, here = RunDirectory.save_config, []

    def watched(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "chdir", here.append)
            save(*arguments)

    monkeypatch.setattr(RunDirectory, "save_config", watched)

    main([*DQN, "--data.total_steps=220"])

    assert here == []
    assert Path("runs/dqn_CartPole-v1/version_0/config.yaml").is_file()


def test_a_run_leaves_config_events_and_checkpoints(finished: Finished) -> None:
    finished(DQN)

    run = Path("runs/dqn_CartPole-v1/version_0")
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "last.ckpt", "best.ckpt"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["total_steps"] == 600
    assert config["seed_everything"] == 0
    scalars = read_scalars(run)
    assert set(scalars) >= {
        "train/episode_return",
        "train/episode_length",
        "eval/episode_return",
        "loss/q",
        "schedule/epsilon",
        "schedule/learning_rate",
        "time/steps_per_second",
        "time/frames",
        "gradient_flow/max_min_ratio",
        "Overview/1_evaluation_return",
    }
    assert [step for step, _ in scalars["eval/episode_return"]] == [400, 600]
    assert all(step <= 600 for points in scalars.values() for step, _ in points)


def test_the_defaults_of_a_suite_are_in_the_configuration_of_the_run() -> None:
    atari = ["--data.env_id=ALE/Pong-v5", "--data.env_options={max_frames: 40}", "--model.encoder=NatureCNN"]
    main([*PPO, *atari])

    config = yaml.safe_load(Path("runs/ppo_ALE-Pong-v5/version_0/config.yaml").read_text())
    options = config["data"]["init_args"]["env_options"]
    assert options["repeat_action_probability"] == 0.25
    assert options["max_frames"] == 40
    main(["validate", "--ckpt_path=last"])


def test_a_checkpoint_loads_without_pickled_code(finished: Finished) -> None:
    finished(DQN)

    checkpoint = torch.load("runs/dqn_CartPole-v1/version_0/last.ckpt", weights_only=True)

    assert checkpoint["ReplayDataModule"]["env_steps"] == 600


def test_a_second_run_gets_a_directory_of_its_own_and_equal_results(finished: Finished) -> None:
    finished(DQN)
    main(DQN)

    weights = [
        torch.load(f"runs/dqn_CartPole-v1/version_{version}/last.ckpt", weights_only=True)["state_dict"]
        for version in (0, 1)
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_validate_and_test_work_on_a_checkpoint_alone(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(DQN)
    before = sorted(Path("runs").rglob("*"))

    for subcommand in ("validate", "test"):
        capsys.readouterr()
        main([subcommand, "--ckpt_path", "runs/dqn_CartPole-v1/version_0/best.ckpt"])
        assert "eval/episode_return" in capsys.readouterr().out

    assert sorted(Path("runs").rglob("*")) == before


def test_a_resumed_run_goes_on_in_its_directory(finished: Finished) -> None:
    finished(DQN)
    run = Path("runs/dqn_CartPole-v1/version_0")

    main(
        [
            "fit",
            "--ckpt_path",
            str(run / "last.ckpt"),
            "--data.total_steps=1000",
            "--data.learning_starts=100",
        ]
    )

    assert [path.name for path in run.parent.iterdir()] == ["version_0"]
    checkpoint = torch.load(run / "last.ckpt", weights_only=True)
    assert checkpoint["ReplayDataModule"]["env_steps"] >= 1000
    evaluated = sorted(step for step, _ in read_scalars(run)["eval/episode_return"])
    assert evaluated[:2] == [400, 600]
    assert len(set(evaluated)) == len(evaluated)
    # The configuration is that of the whole run: it begins it anew.
    assert yaml.safe_load((run / "config.yaml").read_text())["ckpt_path"] is None


def test_a_run_that_branches_off_says_where_from(finished: Finished) -> None:
    finished(DQN)
    checkpoint = "runs/dqn_CartPole-v1/version_0/last.ckpt"

    main(["fit", "--ckpt_path", checkpoint, "--data.total_steps=1000", "--run.version=branch"])

    config = Path("runs/dqn_CartPole-v1/branch/config.yaml")
    assert yaml.safe_load(config.read_text())["ckpt_path"] == checkpoint


@pytest.mark.parametrize("name", ["runs/dqn_CartPole-v1/version_0/last.ckpt", "last"])
def test_a_configuration_may_name_the_checkpoint_to_go_on_from(finished: Finished, name: str) -> None:
    finished(DQN)
    Path("resume.yaml").write_text(f"ckpt_path: {name}")

    main([*DQN, "--config", "resume.yaml", "--data.total_steps=1000"])
    main([*DQN, "--config", "resume.yaml", "--ckpt_path", "null"])

    runs = Path("runs/dqn_CartPole-v1")
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    steps = [
        torch.load(runs / version / "last.ckpt", weights_only=True)["ReplayDataModule"]["env_steps"]
        for version in ("version_0", "version_1")
    ]
    assert steps[0] >= 1000
    assert steps[1] < 1000


def test_a_run_without_a_logger_leaves_other_files_alone() -> None:
    Path("config.yaml").write_text("mine")

    main([*DQN, "--trainer.logger=false"])

    assert Path("config.yaml").read_text() == "mine"
    run = Path("runs/dqn_CartPole-v1/version_0")
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "last.ckpt",
        "previous.ckpt",
        "best.ckpt",
        "replay",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["fit"], ["--gfs.gradient_flow", "One of Classifier, DQN, PPO, PQN"]),
        (["study"], ["--retry_failed"]),
        (["report"], ["directory"]),
    ],
)
def test_help_reads_well(
    arguments: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped([*arguments, "--help"]) == 0
    told = capsys.readouterr().out
    assert all(words in told for words in expected)


def test_the_process_ends_with_status_2_and_without_a_traceback() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "lit_gfs", "fit", "--config", "quickstart", "--data.env_id", "CartPool-v1"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_COLOR": "1"},
    )

    assert process.returncode == 2
    assert process.stderr.strip().startswith("lit_gfs: error: ")
    assert len(process.stderr.strip().splitlines()) == 1
    assert process.stdout == ""


def test_errors_that_are_no_mistake_of_the_user_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("lit_gfs.agents.DQN.configure_optimizers", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        main(DQN)


def test_user_errors_are_not_value_errors() -> None:
    """jsonargparse would take those for its own and bury them."""
    assert not issubclass(UserError, (ValueError, TypeError))


def test_the_precision_of_products_is_high_unless_another_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    monkeypatch.setattr("lit_gfs.cli.set_matmul_precision", lambda precision, _: chosen.append(precision))

    BuiltOnly(complete_arguments(DQN))
    BuiltOnly(complete_arguments([*DQN, "--float32_matmul_precision=medium"]))

    assert chosen == ["high", "medium"]
