"""The command line, run in this process in an empty directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_optimizer  # noqa: F401 - which has a Kron too
import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_gfs.agents import DQN
from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_trust import trust
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.errors import UserError
from lit_gfs.main import main
from lit_gfs.networks import PlainTrunk
from lit_gfs.runs.run_directory import RunDirectory
from lit_gfs.utils.checksummed_files import read_checksummed, write_checksummed

trust(__name__)

SMALL = [
    "--data.total_steps=600",
    "--data.learning_starts=200",
    "--data.eval_every=200",
    "--data.eval_episodes=2",
    "--data.batch_size=16",
    "--model.trunk.width=16",
    "--trainer.log_every_n_steps=10",
    "--trainer.enable_progress_bar=false",
]
FIT = ["fit", "--config", "quickstart", *SMALL]


@pytest.fixture(autouse=True)
def _empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def tags(run: Path) -> dict[str, Any]:
    events = EventAccumulator(str(run))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


def test_the_configuration_is_written_from_where_the_run_is(monkeypatch: pytest.MonkeyPatch) -> None:
    # The logger's thread opens its file by a relative path at any time.
    save, here = RunDirectory.save_config, []

    def watched(*arguments: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "chdir", here.append)
            save(*arguments)

    monkeypatch.setattr(RunDirectory, "save_config", watched)

    main([*FIT, "--data.total_steps=220"])

    assert here == []
    assert Path("runs/dqn_CartPole-v1/version_0/config.yaml").is_file()


def test_a_run_leaves_config_events_and_checkpoints() -> None:
    main(FIT)

    run = Path("runs/dqn_CartPole-v1/version_0")
    assert {path.name for path in run.iterdir()} >= {"config.yaml", "last.ckpt", "best.ckpt"}
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["total_steps"] == 600
    assert config["seed_everything"] == 0
    scalars = tags(run)
    assert set(scalars) >= {
        "train/episode_return",
        "train/episode_length",
        "eval/episode_return",
        "loss/q",
        "schedule/epsilon",
        "schedule/learning_rate",
        "time/steps_per_second",
        "time/frames",
        "gradient_flow/norm/trunk.layers.0",
        "gradient_flow/norm_applied/head",
        "gradient_flow/max_min_ratio",
    }
    assert [point.step for point in scalars["eval/episode_return"]] == [400, 600]
    assert all(point.step <= 600 for points in scalars.values() for point in points)


def test_the_defaults_of_a_suite_are_in_the_configuration_of_the_run() -> None:
    small = ["--data.num_envs=1", "--data.rollout_steps=8", "--data.total_steps=8", "--data.eval_episodes=1"]
    atari = ["--data.env_id=ALE/Pong-v5", "--data.env_options={max_frames: 40}", "--model.encoder=NatureCNN"]
    main(["fit", "--config=ppo_cartpole", *small, *atari, "--trainer.enable_progress_bar=false"])

    config = yaml.safe_load(Path("runs/ppo_ALE-Pong-v5/version_0/config.yaml").read_text())
    options = config["data"]["init_args"]["env_options"]
    assert options["repeat_action_probability"] == 0.25
    assert options["max_frames"] == 40
    main(["validate", "--ckpt_path=last"])


def test_a_checkpoint_loads_without_pickled_code() -> None:
    main(FIT)

    checkpoint = torch.load("runs/dqn_CartPole-v1/version_0/last.ckpt", weights_only=True)

    assert checkpoint["ReplayDataModule"]["env_steps"] == 600


def test_a_second_run_gets_a_directory_of_its_own_and_equal_results() -> None:
    main(FIT)
    main(FIT)

    weights = [
        torch.load(f"runs/dqn_CartPole-v1/version_{version}/last.ckpt", weights_only=True)["state_dict"]
        for version in (0, 1)
    ]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


def test_validate_and_test_work_on_a_checkpoint_alone(capsys: pytest.CaptureFixture[str]) -> None:
    main(FIT)
    before = sorted(Path("runs").rglob("*"))

    for subcommand in ("validate", "test"):
        capsys.readouterr()
        main([subcommand, "--ckpt_path", "runs/dqn_CartPole-v1/version_0/best.ckpt"])
        assert "eval/episode_return" in capsys.readouterr().out

    assert sorted(Path("runs").rglob("*")) == before


def test_a_resumed_run_goes_on_in_its_directory() -> None:
    main(FIT)
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
    # Files of one second are read in no particular order.
    evaluated = sorted(point.step for point in tags(run)["eval/episode_return"])
    assert evaluated[:2] == [400, 600]
    assert len(set(evaluated)) == len(evaluated)
    # The configuration is that of the whole run: it begins it anew.
    assert yaml.safe_load((run / "config.yaml").read_text())["ckpt_path"] is None


def test_a_run_that_branches_off_says_where_from() -> None:
    main(FIT)
    checkpoint = "runs/dqn_CartPole-v1/version_0/last.ckpt"

    main(["fit", "--ckpt_path", checkpoint, "--data.total_steps=1000", "--run.version=branch"])

    config = Path("runs/dqn_CartPole-v1/branch/config.yaml")
    assert yaml.safe_load(config.read_text())["ckpt_path"] == checkpoint


@pytest.mark.parametrize("name", ["runs/dqn_CartPole-v1/version_0/last.ckpt", "last"])
def test_a_configuration_may_name_the_checkpoint_to_go_on_from(name: str) -> None:
    main(FIT)
    write("resume.yaml", ckpt_path=name)

    main([*FIT, "--config", "resume.yaml", "--data.total_steps=1000"])
    main([*FIT, "--config", "resume.yaml", "--ckpt_path", "null"])

    runs = Path("runs/dqn_CartPole-v1")
    assert sorted(path.name for path in runs.iterdir()) == ["version_0", "version_1"]
    steps = [
        torch.load(runs / version / "last.ckpt", weights_only=True)["ReplayDataModule"]["env_steps"]
        for version in ("version_0", "version_1")
    ]
    assert steps[0] >= 1000
    assert steps[1] < 1000


# -- interventions ---------------------------------------------------------------------------------------


class Halve(Callback):
    """Halves every gradient: an intervention of somebody else."""

    def __init__(self, factor: float = 0.5, note: str = "") -> None:
        self.factor = factor
        self.note = note

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.factor)


class TwoInterventions(GradientFlowCLI):
    interventions: ClassVar[dict[str, type[Callback]]] = {**GradientFlowCLI.interventions, "halve": Halve}

    def _run_subcommand(self, subcommand: str) -> None:
        """Build everything, run nothing."""


def interventions(*arguments: str) -> list[Callback]:
    cli = TwoInterventions(["fit", *arguments, "--trainer.enable_progress_bar=false"])
    return [
        callback
        for callback in cli.trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, tuple(TwoInterventions.interventions.values()))
    ]


def write(name: str, **content: Any) -> str:
    Path(name).write_text(yaml.safe_dump(content))
    return name


def shipped(name: str) -> str:
    from lit_gfs.configuration.config_files import find_config

    return str(find_config(name))


def test_interventions_keep_their_order_whatever_the_order_of_keys() -> None:
    extra = write("extra.yaml", gfs={"halve": {"class_path": f"{__name__}.Halve"}})

    names = [type(c).__name__ for c in interventions("--config", extra, "--config", shipped("quickstart"))]

    assert names == ["GradientFlowMonitor", "NaNGuard", "Halve"]


def test_interventions_merge_across_configs_and_the_command_line_has_the_last_word() -> None:
    first = write(
        "first.yaml", gfs={"halve": {"class_path": f"{__name__}.Halve", "init_args": {"factor": 0.3}}}
    )
    second = write("second.yaml", gfs={"halve": {"init_args": {"note": "second"}}})

    (monitor, guard, halve) = interventions(
        "--config",
        shipped("quickstart"),
        "--config",
        first,
        "--config",
        second,
        "--gfs.gradient_flow.init_args.every_n_steps=7",
        "--gfs.nan_guard.init_args.patience=9",
    )

    assert isinstance(halve, Halve)
    assert (halve.factor, halve.note) == (0.3, "second")
    assert monitor.every_n_steps == 7  # type: ignore[attr-defined]
    assert guard.patience == 9  # type: ignore[attr-defined]


@pytest.mark.parametrize("off", ["--gfs.gradient_flow=null", "--gfs.gradient_flow null"])
def test_null_switches_an_intervention_off(off: str) -> None:
    found = interventions("--config", shipped("quickstart"), *off.split(" "), "--gfs.nan_guard=null")

    assert found == []


def test_what_is_on_by_default_stays_as_it_was_saved(capsys: pytest.CaptureFixture[str]) -> None:
    for switch, expected in ((), ["NaNGuard"]), (["--gfs.nan_guard=null"], []):
        with pytest.raises(SystemExit):
            GradientFlowCLI(["fit", "--config", shipped("quickstart"), *switch, "--print_config"])
        Path("saved.yaml").write_text(capsys.readouterr().out)

        found = interventions("--config", "saved.yaml", "--gfs.gradient_flow=null")

        assert [type(callback).__name__ for callback in found] == expected


@pytest.mark.parametrize("on", ["--gfs.gradient_flow={}", "--gfs.gradient_flow=GradientFlowMonitor"])
def test_an_empty_value_or_a_class_name_switches_it_on(on: str) -> None:
    found = interventions("--config", shipped("quickstart"), "--gfs.gradient_flow=null", on)

    assert [type(c).__name__ for c in found] == ["GradientFlowMonitor", "NaNGuard"]


def test_callbacks_under_trainer_still_work() -> None:
    cli = TwoInterventions(
        ["fit", "--config", shipped("quickstart"), "--trainer.callbacks+=LearningRateMonitor"]
    )

    assert "LearningRateMonitor" in [type(c).__name__ for c in cli.trainer.callbacks]  # type: ignore[attr-defined]


def test_depth_and_width_are_one_option_each() -> None:
    cli = TwoInterventions(
        ["fit", "--config", shipped("quickstart"), "--model.trunk.depth", "8", "--model.trunk.width", "192"]
    )

    layers = [layer for layer in cli.model.trunk.modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in layers] == [192] * 8


# -- mistakes --------------------------------------------------------------------------------------------

UNWRITABLE = "/proc/runs"

MISTAKES = {
    "unknown env": (
        ["--data.env_id", "CartPool-v1"],
        "CartPool-v1.*did you mean .*CartPole-v1",
    ),
    "unknown game": (["--data.env_id", "ALE/Pnog-v5"], "ALE/Pnog-v5.*ALE/Pong-v5"),
    "unknown task": (["--data.env_id", "dm_control/walker-wlak-v0"], "walker-wlak.*walker-walk"),
    "unknown key": (["--model.gama", "0.9"], "model.gama is no known key; did you mean 'gamma'"),
    "unknown key of a trunk": (["--model.trunk.depht", "3"], "model.trunk.depht .*did you mean 'depth'"),
    "unknown data key": (["--data.num_env", "3"], "data.num_env is no known key; did you mean 'num_envs'"),
    "unknown top-level key": (["--modle.gamma", "3"], "--modle.gamma is no known option"),
    "wrong type": (["--model.gamma", "high"], "model.gamma is 'high'; expected float"),
    "wrong type of steps": (["--data.total_steps", "1.5"], "data.total_steps is '1.5'; expected int"),
    "an intervention under another's key": (
        ["--gfs.path_init", "TemporalGradientClipping"],
        "gfs.path_init is 'TemporalGradientClipping'; expected PathSensitiveInit or null",
    ),
    "unknown key of an intervention": (
        ["--gfs.temporal_clipping.z_treshold", "2"],
        "gfs.temporal_clipping.z_treshold is no known key; did you mean 'z_threshold'",
    ),
    "wrong choice of a trunk": (
        ["--model.trunk.norm", "layr"],
        "model.trunk.norm is 'layr'; expected one of",
    ),
    "misspelt optimizer": (
        ["--model.optimizer", "lit_gfs.optim.Krom"],
        "is 'lit_gfs.optim.Krom'; expected a class of Optimizer; did you mean 'lit_gfs.optim.Kron'",
    ),
    "ambiguous optimizer": (
        ["--model.optimizer", "Kron"],
        "which several classes are called; .*lit_gfs.optim",
    ),
    "strength above 1": (
        [
            "--gfs.gradient_normalization",
            "GradientNormalization",
            "--gfs.gradient_normalization.strength",
            "2",
        ],
        "strength is 2.0; expected a number between 0 and 1",
    ),
    "an optimizer that does not resume": (
        ["--trust", "pytorch_optimizer", "--model.optimizer", "pytorch_optimizer.Kron"],
        "model.optimizer is pytorch_optimizer.Kron.*expected lit_gfs.optim.Kron",
    ),
    "wrong choice": (
        ["--model.loss", "hubr"],
        "model.loss is 'hubr'; expected one of .*did you mean 'huber'",
    ),
    "wrong trainer value": (
        ["--trainer.gradient_clip_val", "x"],
        "trainer.gradient_clip_val is 'x'; expected",
    ),
    "continuous task": (["--data.env_id", "Pendulum-v1"], "'Pendulum-v1' has a continuous action space"),
    "negative steps": (["--data.total_steps", "-5"], "total_steps is -5; expected"),
    "missing config": (["--config", "nowhere.yaml"], "--config 'nowhere.yaml' not found"),
    "unwritable directory": (["--run.root", UNWRITABLE], f"--run.root '{UNWRITABLE}' cannot be written"),
    "missing checkpoint": (["--ckpt_path", "runs/last.ckpt"], "--ckpt_path 'runs/last.ckpt' not found"),
    "unknown intervention": (["--gfs.gradient_flw", "null"], "--gfs.gradient_flw .*--gfs.gradient_flow"),
    "unknown class": (["--model.trunk", "ResidulTrunk"], "model.trunk is 'ResidulTrunk'.*'ResidualTrunk'"),
    "too many minibatches": (
        ["--config", "ppo_cartpole", "--data.minibatches", "5000"],
        "minibatches is 5000, more than the 1024 transitions",
    ),
    "unknown option of a suite": (["--data.env_options", "{sticky: 0.5}"], "sticky"),
    "checkpoint that is none": (["--ckpt_path", "notes.txt"], "notes.txt' is no checkpoint"),
    "checkpoint missing in a config": (["--config", "resume.yaml"], "'nowhere.ckpt' not found"),
    "no target period": (
        ["--model.target_sync_every", "0"],
        "target_sync_every is 0; expected .* at least 1",
    ),
    "discount above 1": (["--model.gamma", "2"], "gamma is 2.0; expected a number between 0 and 1"),
    "negative learning rate": (["--model.optimizer.lr", "-1"], "model.optimizer: .*-1"),
    "negative seed": (["--data.seed", "-1"], "seed is -1; expected"),
    "precision that loses shapes": (["--trainer.precision", "bf16-true"], "precision is bf16-true; expected"),
    "validation in batches": (
        ["--trainer.val_check_interval", "100"],
        "val_check_interval is 100; .*eval_every",
    ),
    "labels for an agent": (
        ["--data", "LabelShuffleDataModule"],
        "DQN learns from environments; expected data RolloutDataModule or ReplayDataModule",
    ),
    "environments for a classifier": (
        ["--model", "lit_gfs.agents.classifier.Classifier"],
        "Classifier learns from labels, not from ReplayDataModule; use LabelShuffleDataModule",
    ),
    "negative depth": (["--model.trunk.depth", "-1"], "depth.*-1"),
    "unknown accelerator": (["--trainer.accelerator", "gpuu"], "gpuu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, expected = MISTAKES[mistake]
    Path("notes.txt").write_text("no checkpoint")
    write("resume.yaml", ckpt_path="nowhere.ckpt")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "quickstart", *SMALL, *arguments])

    assert stop.value.code == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert line.startswith("lit_gfs: error: ")
    assert re.search(expected, line), line
    assert not Path("runs").exists() or not list(Path("runs").rglob("*.ckpt"))


def test_a_run_without_a_logger_leaves_other_files_alone() -> None:
    Path("config.yaml").write_text("mine")

    main([*FIT, "--trainer.logger=false"])

    assert Path("config.yaml").read_text() == "mine"
    run = Path("runs/dqn_CartPole-v1/version_0")
    assert {path.name for path in run.iterdir()} == {
        "config.yaml",
        "last.ckpt",
        "previous.ckpt",
        "best.ckpt",
        "replay",
    }


def test_help_reads_well(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in ((["--help"], "stay trainable"), (["fit", "--help"], "--gfs.gradient_flow")):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


def test_a_checkpoint_of_another_agent_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data.num_envs=2", "--data.rollout_steps=8", "--data.total_steps=32", "--data.eval_episodes=1"]
    main(["fit", "--config", "ppo_cartpole", *small, "--trainer.enable_progress_bar=false"])

    with pytest.raises(SystemExit) as stop:
        main([*FIT, "--ckpt_path", "runs/ppo_CartPole-v1/version_0/last.ckpt"])

    assert stop.value.code == 2
    assert "the checkpoint is of PPO; expected one of DQN" in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(FIT)
    checkpoint = "runs/dqn_CartPole-v1/version_0/last.ckpt"

    with pytest.raises(SystemExit) as stop:
        main(["validate", "--ckpt_path", checkpoint, "--model.trunk.width=32"])

    assert stop.value.code == 2
    assert "does not fit" in capsys.readouterr().err


def test_a_checkpoint_of_another_optimizer_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(FIT)

    with pytest.raises(SystemExit) as stop:
        main(["fit", "--ckpt_path=last", "--data.total_steps=1000", "--model.optimizer=torch.optim.SGD"])

    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "lit_gfs: error: model.optimizer is torch.optim.sgd.SGD, but the checkpoint was written with "
        "torch.optim.adam.Adam; expected the same"
    )


def test_weights_that_are_loaded_by_themselves_are_trained_with_any_optimizer() -> None:
    main(FIT)
    data = ReplayDataModule(
        "CartPole-v1", total_steps=100, learning_starts=50, eval_every=50, eval_episodes=1
    )
    agent = DQN.load_from_checkpoint(
        "runs/dqn_CartPole-v1/version_0/last.ckpt",
        env_spec=data.env_spec,
        trunk=partial(PlainTrunk, width=16),
        optimizer=partial(torch.optim.SGD, lr=1e-3),
    )

    Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(agent, data)

    assert data.env_steps >= 100


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content["optimizer_states"][0].update(state=3), "AttributeError: "),
        (lambda content: content["optimizer_states"][0].update(param_groups=[]), "ValueError: loaded state"),
        (lambda content: content["callbacks"].update(NaNGuard=3), "TypeError: "),
        (lambda content: content["loops"].pop("fit_loop"), "KeyError: "),
    ],
)
def test_an_intact_checkpoint_of_something_else_is_told_in_one_line(
    change: Callable[[dict[str, Any]], Any], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main(FIT)
    path = Path("runs/dqn_CartPole-v1/version_0/last.ckpt")
    content = read_checksummed(path)
    change(content)
    write_checksummed(content, path)

    with pytest.raises(SystemExit) as stop:
        main(["fit", f"--ckpt_path={path}", "--data.total_steps=1000"])

    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lit_gfs: error: --ckpt_path '{path}' does not fit the model: {reason}")


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
        main(FIT)


def test_user_errors_are_not_value_errors() -> None:
    """jsonargparse would take those for its own and bury them."""
    assert not issubclass(UserError, (ValueError, TypeError))


def test_a_resume_that_is_refused_leaves_the_configuration() -> None:
    main(FIT)
    run = Path("runs/dqn_CartPole-v1/version_0")
    before = (run / "config.yaml").read_text()

    with pytest.raises(SystemExit):
        main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--model.trunk.depth=5"])

    assert (run / "config.yaml").read_text() == before
    main(["validate", "--ckpt_path", str(run / "last.ckpt")])


def test_interventions_come_before_the_users_own_callbacks() -> None:
    order: list[str] = []

    class Own(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *arguments: Any) -> None:
            order[:] = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]

    globals()["Own"] = Own
    main([*FIT, f"--trainer.callbacks={__name__}.Own"])

    assert order.index("GradientFlowMonitor") < order.index("Own")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "gfs: {temporal_cliping: {}}",
            r"gfs.temporal_cliping is no known key; did you mean 'temporal_clipping'",
        ),
        ("gfz: {path_init: {}}", r"gfz is no known key; did you mean 'gfs'"),
        ("gfs: [path_init]", r"gfs is \['path_init'\]; expected keys such as .*path_init"),
        ("data: {init_args: {eval_every: null}}", r"data.eval_every is null; expected int"),
        (
            "gfs: {temporal_clipping: {class_path: TemporalGradientClipping, init_args: {decay: null}}}",
            r"gfs.temporal_clipping.decay is null; expected float",
        ),
    ],
)
def test_a_mistake_in_a_file_is_told_in_one_line(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine.yaml").write_text(text)

    with pytest.raises(SystemExit) as exit_:
        main([*FIT, "--config", "mine.yaml"])

    assert exit_.value.code == 2
    assert re.search(message, capsys.readouterr().err)
