"""Trainers that say nothing, and small data to train on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_gfs.datamodules import ReplayDataModule, RolloutDataModule
from support.accelerator import ACCELERATOR

MakeTrainer = Callable[..., Trainer]


def quiet_trainer(**options: Any) -> Trainer:
    """Build a Trainer that writes nothing unless told to."""
    callbacks = options.get("callbacks") or []
    defaults: dict[str, Any] = {
        "max_epochs": -1,
        # Processes that are forked cannot use a GPU, and most machines have one at most.
        "accelerator": "cpu" if "ddp" in str(options.get("strategy")) else ACCELERATOR,
        "devices": 1,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**defaults, **options})


def regression_batches(count: int, size: int = 8) -> DataLoader:
    """Draw batches of three numbers and three times their sum, the same every time."""
    x = torch.randn(count * size, 3, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, 3 * x.sum(1, keepdim=True)), batch_size=size)


def replay_data(**options: Any) -> ReplayDataModule:
    """Make a datamodule of two counting environments that learns from a small memory."""
    defaults: dict[str, Any] = {
        "env_id": "Counting-v0",
        "num_envs": 2,
        "total_steps": 120,
        "eval_every": 1000,
        "eval_episodes": 2,
        "learning_starts": 20,
        "steps_per_update": 2,
        "batch_size": 8,
        "buffer_size": 100,
    }
    return ReplayDataModule(**{**defaults, **options})


def rollout_data(**options: Any) -> RolloutDataModule:
    """Make a datamodule of two counting environments that learns from rollouts of eight steps."""
    defaults: dict[str, Any] = {
        "env_id": "Counting-v0",
        "num_envs": 2,
        "total_steps": 64,
        "eval_every": 32,
        "eval_episodes": 2,
        "rollout_steps": 8,
        "epochs": 2,
        "minibatches": 2,
        "seed": 5,
    }
    return RolloutDataModule(**{**defaults, **options})


def weights(module: nn.Module) -> Tensor:
    """Copy all parameters into one vector."""
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()
