"""Hyperparameters of CleanRL's scripts, as options of ``fit`` over the shipped configurations.

Values are the defaults of the scripts' own arguments, https://github.com/vwxyzjn/cleanrl at commit fe8d8a0.
A trunk has one width, so two layers of 104 units replace their 120 and 84: the nearest multiple of 8 with at
least as many multiply-adds (11,440 instead of 10,728 with CartPole's 4 inputs and 2 outputs).
"""

from __future__ import annotations

from typing import Any

Options = dict[str, Any]

UNEQUAL_WIDTHS = 104
"""Units of each of two equal layers that replace layers of 120 and 84 units."""

_DQN: Options = {
    "model.optimizer": "torch.optim.Adam",
    "model.optimizer.eps": 1e-8,
    "model.initialization": "torch",
    "model.gamma": 0.99,
    "model.double": False,
    "model.loss": "mse",
    "model.epsilon_start": 1.0,
    "model.anneal_learning_rate": False,
    "data.num_envs": 1,
    "trainer.gradient_clip_val": None,
}

_ROLLOUTS: Options = {
    "model.optimizer.lr": 2.5e-4,
    "model.gamma": 0.99,
    "model.anneal_learning_rate": True,
    "model.reward_scale": 1.0,
    "data.rollout_steps": 128,
    "data.epochs": 4,
    "data.minibatches": 4,
}

_PPO: Options = {
    **_ROLLOUTS,
    "model.optimizer.eps": 1e-5,
    "model.lambda_": 0.95,
    "model.value_coefficient": 0.5,
    "model.entropy_coefficient": 0.01,
    "model.normalize_advantage": True,
    "trainer.gradient_clip_val": 0.5,
}

_PQN: Options = {
    **_ROLLOUTS,
    "model.lambda_": 0.65,
    "model.loss": "mse",
    "model.epsilon_start": 1.0,
    "trainer.gradient_clip_val": 10.0,
}

_ATARI: Options = {
    "model.trunk.depth": 1,
    "model.trunk.width": 512,
    "model.clip_reward": True,
    "model.end_of_life_is_terminal": True,
    "data.env_options": {"repeat_action_probability": 0.0},
    "data.total_steps": 10_000_000,
}

PRESETS: dict[str, Options] = {
    "dqn": {
        **_DQN,
        "model.trunk.depth": 2,
        "model.trunk.width": UNEQUAL_WIDTHS,
        "model.optimizer.lr": 2.5e-4,
        "model.target_sync_every": 500,
        "model.epsilon_end": 0.05,
        "model.epsilon_decay_steps": 250_000,
        "data.total_steps": 500_000,
        "data.buffer_size": 10_000,
        "data.batch_size": 128,
        "data.learning_starts": 10_000,
        "data.steps_per_update": 10,
    },
    "dqn_atari": {
        **_DQN,
        **_ATARI,
        "model.optimizer.lr": 1e-4,
        "model.target_sync_every": 1_000,
        "model.epsilon_end": 0.01,
        "model.epsilon_decay_steps": 1_000_000,
        "data.buffer_size": 1_000_000,
        "data.batch_size": 32,
        "data.learning_starts": 80_000,
        "data.steps_per_update": 4,
    },
    "ppo": {
        **_PPO,
        "model.trunk.depth": 2,
        "model.trunk.width": 64,
        "model.trunk.activation": "tanh",
        "model.shared_network": False,
        "model.clip": 0.2,
        "model.clip_value": 0.2,
        "data.num_envs": 4,
        "data.total_steps": 500_000,
    },
    "ppo_atari_envpool": {
        **_PPO,
        **_ATARI,
        "model.shared_network": True,
        "model.clip": 0.1,
        "model.clip_value": 0.1,
        "data.num_envs": 8,
    },
    "pqn": {
        **_PQN,
        "model.trunk.depth": 2,
        "model.trunk.width": UNEQUAL_WIDTHS,
        "model.trunk.norm": "layer",
        "model.epsilon_end": 0.05,
        "model.epsilon_decay_steps": 250_000,
        "data.num_envs": 4,
        "data.total_steps": 500_000,
    },
    "pqn_atari_envpool": {
        **_PQN,
        **_ATARI,
        "model.trunk.norm": "layer",
        "model.epsilon_end": 0.01,
        "model.epsilon_decay_steps": 1_000_000,
        "data.num_envs": 8,
    },
}

CONFIGS: dict[str, tuple[str, str]] = {
    "dqn": ("quickstart", "dqn_breakout"),
    "ppo": ("ppo_cartpole", "ppo_breakout"),
    "pqn": ("pqn_cartpole", "pqn_breakout"),
}
"""The shipped configuration of each agent for vectors, and for Atari's frames."""

SCRIPTS: dict[str, tuple[str, str]] = {
    "dqn": ("dqn", "dqn_atari"),
    "ppo": ("ppo", "ppo_atari_envpool"),
    "pqn": ("pqn", "pqn_atari_envpool"),
}
"""CleanRL's script of each agent for vectors, and for Atari's frames."""
