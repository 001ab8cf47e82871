"""Checkpoints of another agent, network, optimizer or program."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_gfs.agents import DQN as Agent
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.main import main
from lit_gfs.networks import PlainTrunk
from lit_gfs.utils.checksummed_files import read_checksummed, write_checksummed
from support.command_line import DQN, PPO, Finished, stopped
from support.training import quiet_trainer

pytestmark = pytest.mark.usefixtures("empty_directory")


def test_a_checkpoint_of_another_agent_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(PPO)

    assert stopped([*DQN, "--ckpt_path", "runs/ppo_CartPole-v1/version_0/last.ckpt"]) == 2

    assert "the checkpoint is of PPO; expected one of DQN" in capsys.readouterr().err


def test_a_checkpoint_of_another_network_is_told_in_one_line(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(DQN)
    checkpoint = "runs/dqn_CartPole-v1/version_0/last.ckpt"

    assert stopped(["validate", "--ckpt_path", checkpoint, "--model.trunk.width=32"]) == 2

    assert "does not fit" in capsys.readouterr().err


def test_a_checkpoint_of_another_optimizer_is_told_in_one_line(
    finished: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    finished(DQN)

    resume = ["fit", "--ckpt_path=last", "--data.total_steps=1000"]

    assert stopped([*resume, "--model.optimizer=torch.optim.SGD"]) == 2

    assert capsys.readouterr().err.splitlines()[-1] == (
        "lit_gfs: error: model.optimizer is torch.optim.sgd.SGD, but the checkpoint was written with "
        "torch.optim.adam.Adam; expected the same"
    )


def test_weights_that_are_loaded_by_themselves_are_trained_with_any_optimizer(finished: Finished) -> None:
    finished(DQN)
    data = ReplayDataModule(
        "CartPole-v1", total_steps=100, learning_starts=50, eval_every=50, eval_episodes=1
    )
    agent = Agent.load_from_checkpoint(
        "runs/dqn_CartPole-v1/version_0/last.ckpt",
        env_spec=data.env_spec,
        trunk=partial(PlainTrunk, width=16),
        optimizer=partial(torch.optim.SGD, lr=1e-3),
    )

    quiet_trainer().fit(agent, data)

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
    finished: Finished,
    change: Callable[[dict[str, Any]], Any],
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    finished(DQN)
    path = Path("runs/dqn_CartPole-v1/version_0/last.ckpt")
    content = read_checksummed(path)
    change(content)
    write_checksummed(content, path)

    assert stopped(["fit", f"--ckpt_path={path}", "--data.total_steps=1000"]) == 2

    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lit_gfs: error: --ckpt_path '{path}' does not fit the model: {reason}")


def test_a_resume_that_is_refused_leaves_the_configuration(finished: Finished) -> None:
    finished(DQN)
    run = Path("runs/dqn_CartPole-v1/version_0")
    before = (run / "config.yaml").read_text()

    assert stopped(["fit", "--ckpt_path", str(run / "last.ckpt"), "--model.trunk.depth=5"]) == 2

    assert (run / "config.yaml").read_text() == before
    main(["validate", "--ckpt_path", str(run / "last.ckpt")])
