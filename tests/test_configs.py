"""Every shipped configuration is parsed and trains for a few steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_gfs.cli import main
from lit_gfs.config_files import find_config, shipped_configs
from lit_gfs.errors import UserError

SMALL_ROLLOUT = [
    "--data.num_envs=2",
    "--data.rollout_steps=8",
    "--data.total_steps=32",
    "--data.minibatches=2",
]
SMALL_REPLAY = [
    "--data.num_envs=2",
    "--data.total_steps=80",
    "--data.learning_starts=40",
    "--data.buffer_size=1000",
    "--data.batch_size=8",
]
# Full games and episodes take minutes on a slow machine: evaluation has tests of its own.
QUICK = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_every_shipped_config_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small = SMALL_ROLLOUT if name.startswith("ppo") else SMALL_REPLAY

    main(["fit", "--config", name, *small, *QUICK])

    runs = list(tmp_path.glob("runs/*/version_0"))
    assert len(runs) == 1
    assert (runs[0] / "config.yaml").is_file()
    assert list(runs[0].glob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", ["dqn_pong", "dqn_pong.yaml", "configs/dqn_pong.yaml", "configs/dqn_pong"])
def test_a_shipped_config_is_found_by_any_of_its_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert find_config(name) == shipped_configs()["dqn_pong"]


def test_a_file_comes_before_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dqn_pong").write_text("")

    assert find_config("dqn_pong") == Path("dqn_pong")


def test_a_misspelt_config_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'dqn_pnog' not found; .*; did you mean 'dqn_pong'"):
        find_config("dqn_pnog")


def test_the_promised_configs_are_shipped() -> None:
    assert set(shipped_configs()) >= {
        "quickstart",
        "dqn_acrobot",
        "dqn_pong",
        "dqn_breakout",
        "ppo_cartpole",
        "ppo_pong",
        "ppo_breakout",
        "ppo_cartpole_swingup",
        "ppo_walker_walk",
        "ppo_cheetah_run",
    }
