"""A run that is killed at any moment, again and again, ends as the one that was never killed, bit for bit."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from lit_gfs.buffers.shards import ReplayShards
from lit_gfs.utils.checksummed_files import is_intact, read_checksummed
from support import processes
from support.comparison import run_differences

FIT = [
    *("fit", "--config=quickstart", "--run.root=runs", "--run.name=killed", "--run.version=run"),
    *("--data.num_envs=2", "--data.learning_starts=40", "--data.steps_per_update=4"),
    *("--data.total_steps=400", "--data.eval_every=30", "--data.eval_episodes=1", "--data.buffer_size=150"),
    *("--data.env_options={max_episode_steps: 20}", "--data.batch_size=16", "--model.trunk.width=16"),
    *("--trainer.log_every_n_steps=5", "--trainer.enable_progress_bar=false"),
]


def newest_intact(run: Path) -> Path | None:
    """Return the intact checkpoint of the most steps, all of whose transitions are intact too."""
    checkpoints: dict[int, Path] = {}
    for path in sorted(run.glob("*.ckpt")):
        # What a process that was killed leaves in the place of a checkpoint is a whole one.
        assert is_intact(path), path
        content = read_checksummed(path)
        if path.name == "best.ckpt":
            continue  # nobody goes on from there
        ReplayShards(run / "replay").require_intact(content["ReplayDataModule"]["replay"][0])
        checkpoints[content["global_step"]] = path
    return checkpoints[max(checkpoints)] if checkpoints else None


def kill_and_compare(directory: Path, kills: int, seed: int) -> None:
    generator = random.Random(seed)
    run = directory / "runs/killed/run"
    began = time.monotonic()
    process = processes.start(FIT, directory, draws=True)
    process.join()
    duration = time.monotonic() - began
    assert process.exitcode == 0
    whole = run.rename(directory / "whole")

    landed = 0
    while True:
        checkpoint = newest_intact(run)
        if checkpoint is None:
            shutil.rmtree(run, ignore_errors=True)
        resume = [] if checkpoint is None else ["--ckpt_path=last"]
        process = processes.start([*FIT, *resume], directory, draws=True)
        if landed < kills:
            process.join(generator.uniform(0.1, 1) * duration)
        else:
            process.join()
        if process.is_alive():
            process.kill()
            process.join()
            landed += 1
            continue
        assert process.exitcode == 0
        assert run_differences(run, whole) == [], f"after {landed} kills"
        if landed == kills:
            return
        shutil.rmtree(run)


def test_a_run_that_is_killed_ends_as_the_one_that_is_not(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, kills=2, seed=0)


@pytest.mark.slow
def test_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    kill_and_compare(tmp_path, kills=50, seed=1)
