"""The callbacks of lit_gfs around a LightningModule of your own, with Lightning's own Trainer.

The module knows nothing of lit_gfs, but for three things that it offers to callbacks:

- ``example_input_array``: an input of ``forward``, for `PathSensitiveInit` and `LayerwiseLearningRates`;
- ``env_steps``: the x axis of all curves; without it, that is optimizer steps;
- one call of ``announce_objective_shift`` when the target network changes, so that
  `TemporalGradientClipping` adapts instead of clipping.

It writes TensorBoard events to ``lightning_logs/``, gradient norms and a heat map among them::

    python examples/own_lightning_dqn.py
    tensorboard --logdir lightning_logs
"""

from __future__ import annotations

import argparse
import copy
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from lit_gfs.callbacks import (
    GradientFlowMonitor,
    GradientNormalization,
    LayerwiseLearningRates,
    NaNGuard,
    PathSensitiveInit,
    TemporalGradientClipping,
)
from lit_gfs.steps.objective_shift import announce_objective_shift

Transition = tuple[np.ndarray, int, np.float32, np.ndarray, bool]


class OwnDQN(LightningModule):
    """A DQN as one writes it: environment, replay memory and loss in one module."""

    def __init__(self, hidden_layers: int = 6, width: int = 64, steps_per_update: int = 4) -> None:
        super().__init__()
        hidden = [layer for _ in range(hidden_layers) for layer in (nn.Linear(width, width), nn.ReLU())]
        self.network = nn.Sequential(nn.Linear(4, width), nn.ReLU(), *hidden, nn.Linear(width, 2))
        self.target = copy.deepcopy(self.network).requires_grad_(False)
        self.example_input_array = torch.zeros(1, 4)
        self.steps_per_update = steps_per_update
        self.env = gymnasium.make("CartPole-v1")
        self.memory: deque[Transition] = deque(maxlen=20_000)
        self.env_steps = 0
        self.returns: list[float] = []
        self._observation = self.env.reset(seed=0)[0]
        self._total = 0.0

    def forward(self, observation: Tensor) -> Tensor:
        """Map observations to action values."""
        return self.network(observation)

    def on_weights_initialized(self) -> None:
        """Copy the weights to the target again: `PathSensitiveInit` calls this method if there is one."""
        self.target.load_state_dict(self.network.state_dict())

    def play(self, steps: int) -> None:
        """Take steps in the environment."""
        for _ in range(steps):
            epsilon = max(0.04, 1 - self.env_steps / 4_000)
            if random.random() < epsilon:
                action = random.randrange(2)
            else:
                with torch.no_grad():
                    values = self.network(torch.from_numpy(self._observation).to(self.device))
                action = int(values.argmax())
            following, reward, terminated, truncated, _ = self.env.step(action)
            self.memory.append((self._observation, action, np.float32(reward), following, terminated))
            self._observation = following
            self._total += float(reward)
            self.env_steps += 1
            if terminated or truncated:
                self.returns.append(self._total)
                self._observation, self._total = self.env.reset()[0], 0.0

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch of transitions."""
        if batch_idx % 100 == 0:
            self.target.load_state_dict(self.network.state_dict())
            announce_objective_shift(self.trainer, self, "target_sync")
        states, actions, rewards, next_states, ended = batch
        with torch.no_grad():
            goal = rewards + 0.99 * self.target(next_states).amax(1) * ~ended
        chosen = self.network(states).gather(1, actions[:, None]).squeeze(1)
        return nn.functional.smooth_l1_loss(chosen, goal)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Train the network, not its target."""
        return torch.optim.Adam(self.network.parameters(), lr=1e-3)


class Replay(IterableDataset[Any]):
    """Plays, then draws transitions, as often as the loader asks."""

    def __init__(self, agent: OwnDQN, updates: int, batch_size: int) -> None:
        self.agent, self.updates, self.batch_size = agent, updates, batch_size

    def __iter__(self) -> Iterator[Transition]:
        """Yield the transitions of one batch after the other."""
        self.agent.play(500)
        for _ in range(self.updates):
            self.agent.play(self.agent.steps_per_update)
            yield from random.sample(self.agent.memory, self.batch_size)


def main(arguments: Sequence[str] | None = None) -> OwnDQN:
    """Train; return the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=12_000, help="environment steps after the first 500")
    options = parser.parse_args(arguments)
    seed_everything(0)
    torch.set_num_threads(1)

    agent = OwnDQN()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
        callbacks=[  # they see the gradients in this order
            GradientFlowMonitor(every_n_steps=20),
            NaNGuard(),
            PathSensitiveInit(mirrored="auto", first_bias=0.5),
            LayerwiseLearningRates(),
            TemporalGradientClipping(),
            GradientNormalization(strength=1.0, reference="spectral", block=48),
        ],
    )
    batch_size = 64
    replay = Replay(agent, options.steps // agent.steps_per_update, batch_size)
    trainer.fit(agent, DataLoader(replay, batch_size))
    if agent.returns:
        mean = np.mean(agent.returns[-10:])
        print(f"{agent.env_steps:,} steps; mean return of the last 10 episodes {mean:.1f}")
    return agent


if __name__ == "__main__":
    main()
