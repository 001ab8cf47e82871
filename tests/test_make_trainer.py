"""Runs that a program starts by `make_trainer`: those of the command line, and from the command line on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import seed_everything
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.optim import Adam

import lit_gfs
from lit_gfs import make_trainer
from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks import (
    GradientFlowMonitor,
    NaNGuard,
    PathSensitiveInit,
    RepresentationMonitor,
    TemporalGradientClipping,
    UpdateNormalization,
)
from lit_gfs.callbacks.named import INTERVENTIONS
from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.configuration.described_run import describe_interventions
from lit_gfs.datamodules import LabelShuffleDataModule, ReplayDataModule, RolloutDataModule
from lit_gfs.errors import UserError
from lit_gfs.main import main
from lit_gfs.networks import PlainTrunk
from lit_gfs.utils.signatures import accepted_parameters
from support.accelerator import ACCELERATOR
from support.command_line import DQN as DQN_COMMAND
from support.command_line import BuiltOnly
from support.event_files import read_scalars

QUIET: dict[str, Any] = {
    "enable_progress_bar": False,
    "log_every_n_steps": 10,
    "gradient_clip_val": None,
    "accelerator": ACCELERATOR,
}
RUN = Path("runs/dqn_CartPole-v1/version_0")


@pytest.fixture(autouse=True)
def _own_directory_and_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # seed_everything sets it for the process.
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")


def quickstart(total_steps: int = 600, **options: Any) -> tuple[DQN, ReplayDataModule]:
    """Build the agent and the data of `support.command_line.DQN`."""
    seed_everything(0, workers=True)
    data = ReplayDataModule(
        "CartPole-v1",
        num_envs=8,
        total_steps=total_steps,
        buffer_size=100_000,
        batch_size=16,
        learning_starts=200,
        steps_per_update=2,
        eval_every=200,
        eval_episodes=2,
    )
    agent = DQN(
        data.env_spec,
        trunk=partial(PlainTrunk, depth=2, width=16),
        optimizer=partial(Adam, lr=2.3e-3),
        initialization="torch",
        target_sync_every=256,
        epsilon_end=0.04,
        epsilon_decay_steps=8_000,
        anneal_learning_rate=True,
        **options,
    )
    return agent, data


def saved_weights(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def assert_equal(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


def names(callbacks: Sequence[Callback]) -> list[str]:
    return [type(callback).__name__ for callback in callbacks]


def callbacks_of(trainer: Trainer) -> list[Callback]:
    return trainer.callbacks  # type: ignore[attr-defined]


def test_a_program_trains_as_the_command_line_does_bit_for_bit() -> None:
    agent, data = quickstart()
    trainer = make_trainer("gfs", gfs={"gradient_flow": True}, root="program", **QUIET)
    trainer.fit(agent, data)

    main([*DQN_COMMAND, "--config=recipes/gfs", f"--trainer.accelerator={ACCELERATOR}"])

    program = Path("program") / RUN.relative_to("runs")
    for name in ("last.ckpt", "best.ckpt"):
        assert_equal(saved_weights(program / name), saved_weights(RUN / name))
    ours, expected = read_scalars(program), read_scalars(RUN)
    assert ours.keys() == expected.keys()
    assert ours["eval/episode_return"] == expected["eval/episode_return"]
    assert ours["gradient_flow/global_norm"] == expected["gradient_flow/global_norm"]


def test_a_run_of_a_program_leaves_and_tells_what_a_run_of_the_command_line_does(
    capsys: pytest.CaptureFixture[str],
) -> None:
    agent, data = quickstart()
    make_trainer(accelerator=ACCELERATOR).fit(agent, data)

    told = capsys.readouterr().out
    assert "status             finished" in told
    assert f"best checkpoint    {RUN}/best.ckpt" in told
    assert "600/600 (100.0%)" in told
    assert {path.name for path in RUN.iterdir()} >= {"config.yaml", "last.ckpt", "best.ckpt", "replay"}


def test_a_run_of_a_program_resumes_exactly_in_its_directory() -> None:
    make_trainer(root="whole", **QUIET).fit(*quickstart(total_steps=500))
    clipping = {"gfs": {"temporal_clipping": True}}
    make_trainer(root="whole", **clipping, **QUIET).fit(*quickstart(total_steps=500))
    # Ended by a Trainer's limit, they have the same schedules.
    make_trainer(max_epochs=1, **QUIET).fit(*quickstart(total_steps=500))
    make_trainer(max_epochs=1, **clipping, **QUIET).fit(*quickstart(total_steps=500))

    main(["fit", f"--ckpt_path={RUN}/last.ckpt", "--trainer.max_epochs=-1"])
    make_trainer(**clipping, **QUIET).fit(*quickstart(total_steps=500), ckpt_path="last")

    versions = ["version_0", "version_1"]
    assert sorted(path.name for path in RUN.parent.iterdir()) == versions
    for version in versions:
        whole = Path("whole/dqn_CartPole-v1", version, "last.ckpt")
        assert_equal(saved_weights(RUN.parent / version / "last.ckpt"), saved_weights(whole))
        assert yaml.safe_load((RUN.parent / version / "config.yaml").read_text())["ckpt_path"] is None


def test_the_configuration_of_a_program_builds_the_same_run_again() -> None:
    chosen = {"temporal_clipping": True, "representation": {"tau": 0.1}}
    make_trainer(gfs=chosen, version="first", **QUIET).fit(*quickstart(total_steps=300))
    config = "runs/dqn_CartPole-v1/first/config.yaml"

    main(["fit", "--config", config, "--run.version=again"])

    group = RUN.parent
    assert_equal(saved_weights(group / "again/last.ckpt"), saved_weights(group / "first/last.ckpt"))
    built = BuiltOnly(complete_arguments(["fit", "--config", config, "--run.version=built"]))
    monitor = next(each for each in callbacks_of(built.trainer) if isinstance(each, RepresentationMonitor))
    assert monitor.tau == 0.1


def test_interventions_come_first_in_the_order_of_the_command_line() -> None:
    class Mine(Callback):
        pass

    given = [Mine(), UpdateNormalization(), TemporalGradientClipping(), GradientFlowMonitor()]

    trainer = make_trainer(gfs={"path_init": True}, callbacks=given, **QUIET)

    built = BuiltOnly(complete_arguments(["fit", "--config=quickstart", "--config=recipes/gfs"]))
    expected = [each for each in names(callbacks_of(built.trainer)) if each in names_of_keys()]
    assert names(callbacks_of(trainer))[2:8] == [*expected, "Mine"]
    assert expected[:2] == ["GradientFlowMonitor", "NaNGuard"]


def names_of_keys() -> list[str]:
    return [kind.__name__ for kind in INTERVENTIONS.values()]


def test_keys_override_a_recipe_argument_by_argument() -> None:
    trainer = make_trainer(
        "gfs",
        gfs={
            "path_init": {"growth": 3.0},
            "update_normalization": None,
            "nan_guard": False,
            "temporal_clipping": {"class_path": "TemporalGradientClipping", "init_args": {"warmup": 5}},
        },
        **QUIET,
    )

    chosen = {type(each).__name__: each for each in callbacks_of(trainer)}
    init, clipping = chosen["PathSensitiveInit"], chosen["TemporalGradientClipping"]
    assert isinstance(init, PathSensitiveInit)
    assert (init.growth, init.first_bias) == (3.0, 0.5)
    assert isinstance(clipping, TemporalGradientClipping)
    assert clipping.warmup == 5
    assert not chosen.keys() & {"NaNGuard", "UpdateNormalization"}
    assert trainer.gradient_clip_val is None


def test_a_callback_replaces_that_of_a_recipe_and_the_default() -> None:
    given = [PathSensitiveInit(growth=4.0), NaNGuard(patience=3)]

    callbacks = callbacks_of(make_trainer("gfs", callbacks=given, **QUIET))

    assert [each for each in callbacks if isinstance(each, PathSensitiveInit | NaNGuard)] == [
        given[1],
        given[0],
    ]


MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "key": ({"gfs": {"path_inlt": {}}}, r"'path_inlt'; expected one of .*did you mean 'path_init'"),
    "argument": ({"gfs": {"path_init": {"grwth": 2}}}, r"has 'grwth'; .*did you mean 'growth'"),
    "kind": ({"gfs": {"path_init": 3}}, r"is 3; expected a mapping"),
    "class": ({"gfs": {"path_init": {"class_path": "NaNGuard"}}}, r"expected PathSensitiveInit"),
    "twice": ({"gfs": {"nan_guard": {}}, "callbacks": NaNGuard()}, r"expected it once"),
    "recipe": ({"recipe": "gsf"}, r"'gsf' not found; .*did you mean 'gfs'"),
    "recipe of a network": ({"recipe": "multiskip_kron"}, r"sets model; expected only gfs and trainer"),
    "option": ({"max_epoch": 3}, r"make_trainer: .*max_epoch"),
    "version": ({"version": "a/b"}, r"'a/b'; expected the name of one directory"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake: str) -> None:
    options, line = MISTAKES[mistake]

    with pytest.raises(UserError, match=line) as told:
        make_trainer(**options)

    assert "\n" not in str(told.value)
    assert not Path("runs").exists()


def test_a_refused_run_leaves_no_directory() -> None:
    agent, data = quickstart()
    with pytest.raises(UserError, match=r"ckpt_path 'nowhere\.ckpt' not found"):
        make_trainer(**QUIET).fit(agent, data, ckpt_path="nowhere.ckpt")

    data = RolloutDataModule("CartPole-v1", total_steps=16)
    with pytest.raises(UserError, match="DQN"):
        make_trainer(**QUIET).fit(agent, data)

    assert not Path("runs").exists()


def test_a_checkpoint_of_another_network_is_told_in_one_line() -> None:
    agent, data = quickstart(total_steps=300)
    make_trainer(**QUIET).fit(agent, data)
    _, data = quickstart(total_steps=300)
    wider = DQN(data.env_spec, trunk=partial(PlainTrunk, depth=2, width=32))

    with pytest.raises(UserError, match=r"ckpt_path .*last.ckpt' does not fit the model: size mismatch"):
        make_trainer(**QUIET).fit(wider, data, ckpt_path=RUN)


def test_what_cannot_be_named_is_left_out_of_the_configuration_with_a_warning() -> None:
    seed_everything(0)
    data = RolloutDataModule("CartPole-v1", total_steps=16, num_envs=2, rollout_steps=8, eval_episodes=1)
    agent = PPO(data.env_spec, trunk=lambda features: PlainTrunk(features, width=8))

    with pytest.warns(UserWarning, match=r"PPO's trunk is <function .*config.yaml leaves out model and data"):
        make_trainer(**QUIET).fit(agent, data)

    config = yaml.safe_load(Path("runs/ppo_CartPole-v1/version_0/config.yaml").read_text())
    assert "model" not in config
    assert config["run"] == {"root": None, "name": None, "version": None}


@pytest.mark.parametrize("key", INTERVENTIONS)
def test_an_intervention_keeps_its_arguments_under_their_names(key: str) -> None:
    kind = INTERVENTIONS[key]
    defaults = {name: each.default for name, each in accepted_parameters(kind).items()}

    described = describe_interventions([kind()])

    assert described[key]["init_args"] == defaults
    assert [other for other, value in described.items() if value is not None] == [key]


def test_data_remember_what_they_were_made_of() -> None:
    data = LabelShuffleDataModule(samples=64, batch_size=16)

    assert data.given_arguments == {"samples": 64, "batch_size": 16}


def test_a_subclass_of_the_user_is_described_by_what_it_was_given() -> None:
    class Narrow(DQN):
        def __init__(self, env_spec: Any, width: int = 8, **options: Any) -> None:
            super().__init__(env_spec, trunk=partial(PlainTrunk, width=width), **options)

    _, data = quickstart()

    agent = Narrow(data.env_spec, 16, gamma=0.9)

    assert agent.given_arguments == {"env_spec": data.env_spec, "width": 16, "gamma": 0.9}


def test_the_package_itself_imports_no_torch() -> None:
    program = "import sys, lit_gfs; assert 'make_trainer' in dir(lit_gfs); print('torch' in sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env={**os.environ}
    )

    assert process.stdout.strip() == "False"
    with pytest.raises(AttributeError, match="no attribute 'make_trainers'"):
        _ = lit_gfs.make_trainers
