"""Commands and options as other programs spell them, each with the suggestion that its line ends with."""

from __future__ import annotations

import pytest

from support.command_line import refused

COMMANDS = [
    ("train --config quickstart", "'fit'"),
    ("fti", "'fit'"),
    ("eval --ckpt_path last", "'validate'"),
    ("evaluate", "'validate'"),
    ("resume", "'fit --ckpt_path last'"),
    ("quickstart", "'fit --config quickstart'"),
    ("studies/smoke", "'study --config studies/smoke'"),
    ("list", "'configs'"),
    ("help", "'--help'"),
    ("version", "'--version'"),
    ("--versoin", "'--version'"),
    ("fit ppo_cartpole", "'fit --config ppo_cartpole'"),
    ("fit quickstrat", "'fit --config quickstart'"),
    ("fit --config=quickstrat", "'quickstart'"),
    ("fit --config quickstart data.total_steps=1000", "'--data.total_steps=1000'"),
    ("validate runs/dqn/last.ckpt", "'validate --ckpt_path runs/dqn/last.ckpt'"),
    ("study studies/smoke", "'study --config studies/smoke'"),
    ("study --config studies/smoke --dry-run", "'--dry_run'"),
    ("fit --lr 1e-3", "'--model.optimizer.lr'"),
]
OPTIONS = [
    ("--total_steps", "'--data.total_steps'"),
    ("--total-timesteps", "'--data.total_steps'"),
    ("--data.total_step", "'total_steps'"),
    ("--data.steps", "'--data.total_steps'"),
    ("--seed", "'--seed_everything' or '--data.seed'"),
    ("--depth", "'--model.trunk.depth'"),
    ("--model.depth", "'--model.trunk.depth'"),
    ("--width", "'--model.trunk.width'"),
    ("--lr", "'--model.optimizer.lr'"),
    ("--learning-rate", "'--model.optimizer.lr'"),
    ("--model.lr", "'--model.optimizer.lr'"),
    ("--optimizer", "'--model.optimizer'"),
    ("--env", "'--data.env_id'"),
    ("--env_id", "'--data.env_id'"),
    ("--data.env", "'--data.env_id'"),
    ("--num_envs", "'--data.num_envs'"),
    ("--batch-size", "'--data.batch_size' or '--gfs.curvature.batch_size'"),
    ("--gamma", "'--model.gamma'"),
    ("--n_steps", "'--data.n_step' or '--data.total_steps'"),
    ("--prioritized", "'--data.priority_exponent'"),
    ("--data.alpha", "'--data.priority_exponent'"),
    ("--beta", "'--data.importance_exponent'"),
    ("--num-atoms", "'--model.atoms'"),
    ("--double_q", "'--model.double'"),
    ("--precision", "'--trainer.precision'"),
    ("--device", "'--trainer.accelerator'"),
    ("--logdir", "'--run.root'"),
    ("--resume", "'--ckpt_path'"),
    ("--z_threshold", "'--gfs.temporal_clipping.z_threshold'"),
    ("--gfs.temporal_clipping.z", "'--gfs.temporal_clipping.z_threshold'"),
    ("--gfs.temporal_cliping", "'--gfs.temporal_clipping'"),
]
"""Options of a DQN run."""


@pytest.mark.usefixtures("empty_directory")
@pytest.mark.parametrize(("command", "meant"), COMMANDS)
def test_a_command_of_another_program(command: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(command.split(), capsys).endswith(f"; did you mean {meant}?")


@pytest.mark.usefixtures("empty_directory")
@pytest.mark.parametrize(("option", "meant"), OPTIONS)
def test_an_option_of_another_program(option: str, meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(["fit", "--config", "quickstart", option, "4"], capsys)

    assert line.endswith(f"; did you mean {meant}?")


@pytest.mark.usefixtures("empty_directory")
def test_options_of_the_chosen_classes_alone_are_suggested(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'--data.rollout_steps'" in refused(["fit", "--config=ppo_cartpole", "--n_steps=4"], capsys)
    assert "rollout" not in refused(["fit", "--config=quickstart", "--n_steps=4"], capsys)
