from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from tensordict import TensorDict

from lit_gfs.agents import DQN, learner
from lit_gfs.agents.learner import Learner
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.gradients.global_norm import clip_global_norm
from support.accelerator import ACCELERATOR
from support.specs import discrete_spec
from support.training import MakeTrainer, weights

SPEC = discrete_spec()


def test_the_probe_is_the_latest_256_observations() -> None:
    agent = DQN(SPEC)
    done = torch.zeros(3, 50, 1, dtype=torch.bool)
    pieces = torch.arange(7 * 3 * 50 * 2, dtype=torch.float32).view(7, 3, 50, 2)

    assert agent.probe_batch() is None
    for number, observation in enumerate(pieces, start=1):
        agent.on_collection_end(
            TensorDict({"observation": observation.clone(), "next": {"done": done}}, [3, 50])
        )
        expected = pieces[:number].transpose(1, 2).flatten(0, 2)[-256:]
        probe = agent.probe_batch()
        assert probe is not None
        assert torch.equal(probe, expected)
    assert len(agent._observations) < 256 + 150


@pytest.mark.parametrize(("num_envs", "steps"), [(1, 400), (16, 64), (128, 32), (100, 3), (300, 2), (700, 1)])
def test_the_probe_shows_all_environments_alike(num_envs: int, steps: int) -> None:
    agent = DQN(SPEC)
    observation = torch.stack(
        torch.meshgrid(torch.arange(num_envs), torch.arange(steps), indexing="ij"), -1
    ).float()
    done = torch.zeros(num_envs, steps, 1, dtype=torch.bool)

    for _ in range(3):
        agent.on_collection_end(
            TensorDict({"observation": observation, "next": {"done": done}}, done.shape[:2])
        )

    probe = agent.probe_batch()
    assert probe is not None
    assert len(probe) == 256
    shares = probe[:, 0].long().bincount(minlength=num_envs)
    assert (probe[-min(num_envs, 256) :, 1] == steps - 1).all()
    if num_envs <= 256:
        assert shares.max() - shares.min() <= 1 + 2 * (num_envs * steps < 256)
    else:
        assert shares.max() == 1
        assert probe[:, 0].diff().max() <= -(-num_envs // 256)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_checkpoint_gives_observations_to_all_processes_and_pending_episodes_to_the_first(
    monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    agent, seen = DQN(SPEC), torch.randn(5, 2)
    monkeypatch.setattr(DQN, "global_rank", rank)

    agent.on_load_checkpoint({"learner": {"class": "DQN", "seen": seen, "episodes": [[3.0, 4]]}})

    probe = agent.probe_batch()
    assert probe is not None
    assert torch.equal(probe, seen)
    assert agent._episodes == ([(3.0, 4)] if rank == 0 else [])


def test_scores_are_logged_on_the_modules_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What joins several GPUs reduces nothing that is on a CPU."""
    agent = DQN(SPEC).to("meta")
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(agent, "log_dict", lambda scores, **options: logged.update(scores))
    agent.trainer = SimpleNamespace(validating=False)  # type: ignore[assignment]

    agent.report_evaluation({"eval/episode_return": torch.tensor(1.0)})

    assert logged["eval/episode_return"].device.type == "meta"


@pytest.mark.parametrize(
    ("options", "is_ours"),
    [
        ({"gradient_clip_val": 0.01}, True),
        ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "norm", "accumulate_grad_batches": 2}, True),
        ({"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}, False),
        ({"gradient_clip_val": 0.01, "precision": "bf16-mixed"}, False),
        ({}, False),
    ],
    ids=str,
)
def test_the_trainer_clips_as_it_does_by_itself(
    options: dict[str, Any], is_ours: bool, make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trained() -> torch.Tensor:
        torch.manual_seed(7)
        data = ReplayDataModule(
            "CartPole-v1", num_envs=2, total_steps=48, learning_starts=16, steps_per_update=4, seed=3
        )
        agent = DQN(data.env_spec)
        make_trainer(limit_val_batches=0, **options).fit(agent, data)
        return weights(agent)

    clipped = []

    def noted(gradients: Any, max_norm: float) -> None:
        clipped.append(max_norm)
        clip_global_norm(gradients, max_norm)

    monkeypatch.setattr(learner, "clip_global_norm", noted)
    ours = trained()
    assert bool(clipped) == (is_ours and ACCELERATOR == "cpu")
    monkeypatch.setattr(Learner, "configure_gradient_clipping", LightningModule.configure_gradient_clipping)
    assert torch.equal(ours, trained())
