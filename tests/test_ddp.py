"""Two processes: each has environments of its own, steps are counted over both, weights stay equal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gfs.agents import DQN, PPO
from lit_gfs.datamodules import ReplayDataModule, RolloutDataModule


class Report(Callback):
    """Writes what each process ended with, as forked processes take their memory with them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.observations: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *arguments: Any) -> None:
        self.observations.append(pl_module.probe_batch())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        report = {
            "env_steps": trainer.datamodule.env_steps,  # type: ignore[attr-defined]
            "global_step": trainer.global_step,
            "weights": torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()]),
            "observations": torch.cat(self.observations),
        }
        torch.save(report, self.directory / f"{trainer.global_rank}.pt")


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("name", ["DQN", "PPO", "PPO with a divergence limit"])
def test_two_processes_count_together_and_learn_alike(
    name: str, make_trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    arguments: dict[str, Any] = {"num_envs": 2, "total_steps": 128, "eval_every": 64, "eval_episodes": 2}
    torch.manual_seed(0)
    data: Any
    agent: LightningModule
    if name == "DQN":
        data = ReplayDataModule("Counting-v0", learning_starts=32, batch_size=8, seed=1, **arguments)
        agent = DQN(data.env_spec)
    else:
        data = RolloutDataModule("Counting-v0", rollout_steps=8, epochs=2, minibatches=2, seed=1, **arguments)
        limit = 1e-9 if "limit" in name else None
        agent = PPO(data.env_spec, target_kl=limit, normalize_observation=True)

    make_trainer(strategy="ddp_fork", devices=2, callbacks=[Report(tmp_path)]).fit(agent, data)

    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["env_steps"] == second["env_steps"] == 128
    assert first["global_step"] == second["global_step"] > 0
    assert torch.equal(first["weights"], second["weights"])
    assert not torch.equal(first["observations"], second["observations"])
