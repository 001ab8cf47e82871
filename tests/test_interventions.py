"""The three interventions as users switch them: one flag each, on every agent, in every combination."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_gfs.main import main
from support.command_line import stopped
from support.event_files import read_scalars

KEYS = ("path_init", "temporal_clipping", "update_normalization")
"""Those of recipes/gfs."""
CLIPPING = ("temporal_clipping", "gradient_normalization")
"""Those that replace the Trainer's clipping."""
SUBSETS = [subset for size in range(4) for subset in combinations(KEYS, size)]
QUICK = [
    "--data.eval_episodes=2",
    "--model.trunk.width=16",
    "--trainer.log_every_n_steps=8",
    "--trainer.enable_progress_bar=false",
]
CONTROL = [
    *("--data.total_steps=300", "--data.learning_starts=100", "--data.eval_every=100"),
    *("--data.batch_size=16", "--data.steps_per_update=4", "--data.eval_step_limit=20"),
]
CONFIGS = {
    "dqn": ["quickstart", "--data.total_steps=300", "--data.learning_starts=100", "--data.eval_every=100"],
    "ppo": ["ppo_cartpole", "--data.total_steps=256", "--data.num_envs=4", "--data.rollout_steps=16"],
    "pqn": ["pqn_cartpole", "--data.total_steps=256", "--data.num_envs=4", "--data.rollout_steps=16"],
    "sac": ["sac_pendulum", *CONTROL],
    "td3": ["td3_cartpole_swingup", "--data.env_id=Pendulum-v1", "--data.env_options=null", *CONTROL],
}
ENVS = {"sac": "Pendulum-v1", "td3": "Pendulum-v1"}


pytestmark = pytest.mark.usefixtures("empty_directory")


def command(agent: str, *arguments: str) -> list[str]:
    return ["fit", "--config", *CONFIGS[agent], *QUICK, *arguments]


def fit(agent: str, *arguments: str) -> Path:
    main(command(agent, *arguments))
    return Path(f"runs/{agent}_{ENVS.get(agent, 'CartPole-v1')}/version_0")


def who_wrote(run: Path) -> set[str]:
    return {tag.split("/")[1] for tag in read_scalars(run) if tag.startswith("intervention/")}


# DQN has all subsets, PPO each intervention alone and all together, the others all together; the slow tests
# have the rest.
OFTEN = {"dqn": (0, 1, 2, 3), "ppo": (1, 3), "pqn": (3,), "sac": (3,), "td3": (3,)}
CASES = [
    pytest.param(
        agent,
        subset,
        id=f"{agent}-{'+'.join(subset) or 'none'}",
        marks=() if len(subset) in OFTEN[agent] else pytest.mark.slow,
    )
    for agent in CONFIGS
    for subset in SUBSETS
]


@pytest.mark.parametrize(("agent", "subset"), CASES)
def test_every_subset_runs_resumes_and_writes_its_own_tags(agent: str, subset: tuple[str, ...]) -> None:
    off = [f"--gfs.{key}=null" for key in KEYS if key not in subset]

    run = fit(agent, "--config", "recipes/gfs", *off)

    assert who_wrote(run) == set(subset)
    before = torch.load(run / "last.ckpt", weights_only=True)
    saved = {key.split("{")[0] for key in before["callbacks"]}
    assert ("TemporalGradientClipping" in saved) == ("temporal_clipping" in subset)
    assert ("UpdateNormalization" in saved) == ("update_normalization" in subset)

    main(["fit", "--ckpt_path", str(run / "last.ckpt"), "--data.total_steps=400"])

    assert who_wrote(run) == set(subset)
    after = torch.load(run / "last.ckpt", weights_only=True)
    assert after["global_step"] > before["global_step"]


@pytest.mark.parametrize("key", sorted({*KEYS, *CLIPPING}))
def test_each_is_switched_on_by_one_flag(key: str, capfd: pytest.CaptureFixture[str]) -> None:
    run = fit("dqn", f"--gfs.{key}=true")

    assert who_wrote(run) == {key}
    told = f"lit_gfs: gfs.{key} replaces trainer.gradient_clip_val 10 of quickstart"
    ended = capfd.readouterr()
    assert ended.err.splitlines().count(told) == (key in CLIPPING)
    assert re.search(rf"^gfs +.*\b{key}\b", ended.out, re.MULTILINE)
    trainer = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    assert trainer["gradient_clip_val"] == (None if key in CLIPPING else 10)


def test_all_are_switched_off_by_one_flag(capfd: pytest.CaptureFixture[str]) -> None:
    fit("dqn", "--config", "recipes/gfs", "--gfs", "null", "--gfs.path_init", "on")

    assert re.search(r"^gfs +path_init$", capfd.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize("key", CLIPPING)
def test_a_threshold_of_the_users_own_beside_it_is_told_in_one_line(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stopped(command("ppo", f"--gfs.{key}=true", "--trainer.gradient_clip_val=0.5")) == 2

    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "gradient_clip_val=0.5" in line
    assert "expected trainer.gradient_clip_val null" in line


def test_the_baseline_recipe_switches_all_of_them_off() -> None:
    run = fit("dqn", "--config", "recipes/gfs", "--config", "recipes/baseline")

    assert who_wrote(run) == set()


def test_interventions_change_what_is_learned() -> None:
    weights: list[Any] = []
    for version, flags in enumerate(([], ["--gfs.gradient_normalization={}"])):
        fit("dqn", "--trainer.gradient_clip_val=null", *flags)
        checkpoint = torch.load(f"runs/dqn_CartPole-v1/version_{version}/last.ckpt", weights_only=True)
        weights.append(checkpoint["state_dict"]["q_network.head.weight"])

    assert not torch.equal(*weights)
