"""Environments with odd spaces and habits, from the command line."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lit_gfs.configuration.image_check import vectors_of
from lit_gfs.envs import EnvSpec
from lit_gfs.main import main
from support.event_files import read_scalars

SMALL = [
    "--data.num_envs=2",
    "--data.total_steps=64",
    "--data.eval_every=64",
    "--data.eval_episodes=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_checkpointing=false",
]
ROLLOUTS = ["--data.rollout_steps=16", "--data.minibatches=2"]


def fit(kind: str, *options: str, config: str = "ppo_cartpole") -> int:
    """Return the exit status of a small run in an odd environment."""
    environment = [f"--data.env_id=support.odd_envs:Odd{kind}-v0", "--trust=support.odd_envs"]
    rollouts = ["--data.learning_starts=20"] if config == "quickstart" else ROLLOUTS
    try:
        main(["fit", "--config", config, *environment, *SMALL, *rollouts, *options])
    except SystemExit as end:
        return int(str(end.code))
    return 0


pytestmark = pytest.mark.usefixtures("empty_directory")


@pytest.mark.parametrize("kind", ["Choices", "Switches", "Free", "Table", "Inventory"])
def test_ppo_trains_on_every_kind_of_space(kind: str) -> None:
    assert fit(kind) == 0


@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        ("Nan", 4, "gave a reward of nan in step 4 of its episode, after"),
        ("Narrow", 4, "showed an observation of shape (1,); its space has (2,)"),
    ],
)
@pytest.mark.parametrize("config", ["ppo_cartpole", "quickstart"])
def test_faults_end_a_run_in_one_line(
    kind: str, status: int, message: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(kind, config=config) == status
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert message in line


def test_returns_of_huge_rewards_stay_finite() -> None:
    with pytest.warns(UserWarning, match="OddHuge-v0 gave a reward of 2e\\+38, .* model.reward_scale"):
        assert fit("Huge", "--model.reward_scale=1e-38") == 0

    (run,) = Path("runs").glob("*/*")
    scalars = read_scalars(run)
    for tag in ("eval/episode_return", "eval/episode_return_std", "train/episode_return"):
        assert all(math.isfinite(value) for _, value in scalars[tag]), tag


def test_a_configuration_for_vectors_is_told_of_on_images(recwarn: pytest.WarningsRecorder) -> None:
    def told() -> list[str]:
        return [str(each.message) for each in recwarn if "made for the vectors" in str(each.message)]

    assert fit("Picture", "--model.encoder=NatureCNN") == 0
    assert fit("Plain") == 0
    assert told() == []

    assert fit("Picture") == 0
    (line,) = told()
    assert "OddPicture-v0 shows images, and the configuration was made for the vectors of CartPole-v1" in line


def test_only_configurations_of_other_environments_that_show_vectors_are_named() -> None:
    images = EnvSpec("ALE/Pong-v5", (4, 84, 84), "uint8", 6, None, None, 4)
    vectors = EnvSpec("Acrobot-v1", (6,), "float32", 3, None, None, 1)
    cartpole = {"data": {"class_path": "RolloutDataModule", "init_args": {"env_id": "CartPole-v1"}}}

    assert vectors_of([{"model": {}}, cartpole], images) == "CartPole-v1"
    assert vectors_of([{"data": {"env_id": "Acrobot-v1"}}], images) == "Acrobot-v1"
    assert vectors_of([cartpole], vectors) is None
    assert vectors_of([{"data": {"env_id": "ALE/Breakout-v5"}}], images) is None
    for env_id in ("ALE/Pong-v5", "no such thing", "support.odd_envs:OddPlain-v0", None, 3):
        assert vectors_of([{"data": {"env_id": env_id}}, {"data": None}, {}], images) is None
