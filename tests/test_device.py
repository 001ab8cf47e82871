"""Runs on a device other than the CPU: a stand-in for one does to the rounding what the CPU does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from support import processes, standin
from support.comparison import run_differences

QUIET = ["--trainer.enable_progress_bar=false", "--trainer.log_every_n_steps=5"]
EVERYTHING = [
    "--config=recipes/gfs",
    "--gfs.gradient_flow=GradientFlowMonitor",
    "--gfs.gradient_flow.every_n_steps=8",
    "--gfs.representation=RepresentationMonitor",
    "--gfs.representation.every_n_steps=12",
    "--gfs.curvature=CurvatureMonitor",
    "--gfs.curvature.every_n_steps=20",
    "--gfs.curvature.samples=2",
    "--gfs.curvature.iterations=2",
]
SMALL = ["--model.trunk.width=16", "--model.trunk.depth=2"]
STEPS = ["--data.total_steps=128", "--data.eval_every=64", "--data.eval_episodes=2", "--data.num_envs=2"]
ROLLOUTS = ["--data.rollout_steps=16", "--data.epochs=2", "--data.minibatches=2", *STEPS]
LEARNERS = {
    "dqn": [
        *("--config=quickstart", "--data.learning_starts=40", "--data.steps_per_update=4"),
        *("--data.batch_size=16", "--model.target_sync_every=60", *STEPS),
    ],
    "ppo": ["--config=ppo_cartpole", "--model.normalize_observation=true", *ROLLOUTS],
    "pqn": ["--config=pqn_cartpole", *ROLLOUTS],
    "pqn on tensors": ["--config=pqn_cartpole", *ROLLOUTS, "--data.env_id=tensor/CartPole-v1"],
    "continuous ppo": [
        *("--config=ppo_cartpole_swingup", *ROLLOUTS),
        "--data.env_options={action_repeat: 50}",
    ],
    "pqn with kron": ["--config=pqn_cartpole", "--config=recipes/multiskip_kron", *ROLLOUTS],
    "classifier": [
        *("--config=label_shuffle", "--data.samples=64", "--data.batch_size=32"),
        *("--data.shuffle_every=1", "--data.epochs=4"),
    ],
}
FAST = ("dqn", "ppo", "pqn on tensors", "classifier")
SLOW = [each for each in LEARNERS if each not in FAST]
MORE = {"classifier": ["--data.epochs=6"]}
TOLERANCE = 1e-3
"""What rounding makes of some dozens of updates; monitors divide by small numbers."""


def life(device: str, place: Path, arguments: list[str], more: list[str]) -> str:
    """Fit, validate, test, and fit on from the last checkpoint; return what was printed of evaluations.

    Both devices live in the same place, one after the other: a checkpoint holds paths.
    """
    place.mkdir()
    setup = standin.register if device == standin.NAME else None
    on_device = [f"--trainer.accelerator={device}", *QUIET]
    last = ["--ckpt_path=runs/a/b/last.ckpt", *on_device]
    commands = [
        ["fit", *arguments, *on_device, "--run.root=runs", "--run.name=a", "--run.version=b"],
        ["validate", *last],
        ["test", *last],
        ["fit", *last, *more],
    ]
    ended = processes.finish(processes.start(commands[0], place, setup, *commands[1:], draws=True), place)
    assert ended.status == 0, ended.err
    place.rename(place.with_name(device))
    return "".join(line for line in ended.out.splitlines(True) if "eval/" in line)


@pytest.mark.parametrize("learner", [*FAST, *(pytest.param(each, marks=pytest.mark.slow) for each in SLOW)])
def test_a_run_ends_on_a_device_as_on_the_cpu(learner: str, tmp_path: Path) -> None:
    arguments = [*LEARNERS[learner], *EVERYTHING, *SMALL]
    more = MORE.get(learner, ["--data.total_steps=192"])

    printed = {device: life(device, tmp_path / "here", arguments, more) for device in ("cpu", standin.NAME)}

    assert printed[standin.NAME] == printed["cpu"] != ""
    run, other = (tmp_path / device / "runs/a/b" for device in printed)
    assert run_differences(run, other, TOLERANCE) == []


def refusals() -> None:
    """Try what a GPU refuses, and what it allows, on the stand-in."""
    standin.register()
    there, here = torch.arange(3.0, device=standin.NAME), torch.arange(3.0)
    assert there.device.type == standin.NAME
    assert torch.equal((there + torch.tensor(1.0)).cpu(), here + 1)
    assert torch.equal(there[torch.tensor([0, 2])].cpu(), here[[0, 2]])
    generators = torch.Generator(standin.NAME), torch.Generator()
    refused = {
        "same device": [
            lambda: there + here,
            lambda: torch.stack([there.sum(), here.sum()]),
            lambda: here.sum().add_(there.sum()),
            lambda: here[torch.tensor([0], device=standin.NAME)],
            lambda: nn.Linear(3, 1)(there),
        ],
        "numpy": [there.numpy, lambda: np.asarray(there)],
        "generator": [lambda: there.normal_(generator=generators[1])],
    }
    there.normal_(generator=generators[0])
    for words, tries in refused.items():
        for each in tries:
            with pytest.raises((RuntimeError, TypeError), match=words):
                each()


def test_the_stand_in_keeps_apart_what_a_gpu_keeps_apart(tmp_path: Path) -> None:
    ended = processes.run(["--help"], tmp_path, refusals)
    assert ended.status == 0, ended.err
