"""The interventions in a training loop of your own: DQN on CartPole in plain PyTorch, without Lightning.

It shows the algorithms of `lit_gfs` as functions and small objects:

- `path_sensitive_` initializes the network, from one run of its forward;
- `rate_factors` and `scale_rates_` give hidden matrices a quarter of the learning rate;
- `ZScoreClipper` and `SpectralNormalizer` change the gradients between backward and step, by `scale_`;
- `reopen` tells the clipper that the target network, and so the objective, has changed.

Run it twice, to compare the deep network with and without interventions::

    python examples/plain_torch_dqn.py
    python examples/plain_torch_dqn.py --plain
"""

from __future__ import annotations

import argparse
import copy
import random
from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from lit_gfs.gradients import SpectralNormalizer, ZScoreClipper
from lit_gfs.init import path_sensitive_
from lit_gfs.optim.layer_positions import layer_positions
from lit_gfs.optim.layer_rates import rate_factors, scale_rates_

GAMMA = 0.99
BATCH = 64
LEARNING_STARTS = 500  # steps
STEPS_PER_UPDATE = 4
SYNC_EVERY = 500  # steps
HIDDEN_LAYERS, WIDTH = 8, 64


def make_network(observations: int, actions: int) -> nn.Sequential:
    """Build a deep plain network: the kind that a baseline loses."""
    widths = [observations, *[WIDTH] * HIDDEN_LAYERS]
    hidden = [
        layer for inputs, outputs in pairwise(widths) for layer in (nn.Linear(inputs, outputs), nn.ReLU())
    ]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, actions))


def sample(memory: deque[tuple[np.ndarray, int, float, np.ndarray, bool]]) -> list[Tensor]:
    """Draw a batch: observations, actions, rewards, next observations, terminations."""
    columns = zip(*random.sample(memory, BATCH), strict=True)
    return [torch.as_tensor(np.array(column)) for column in columns]


def main(arguments: Sequence[str] | None = None) -> list[float]:
    """Train; return the returns of all episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--steps", type=int, default=15_000, help="environment steps")
    parser.add_argument("--plain", action="store_true", help="without interventions")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.manual_seed(options.seed)
    random.seed(options.seed)
    torch.set_num_threads(1)

    env = gymnasium.make("CartPole-v1")
    network = make_network(4, 2)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)

    # -- interventions before training -----------------------------------------------------------------------
    clipper, normalizer = ZScoreClipper(), SpectralNormalizer(block=48)
    if not options.plain:
        example = torch.zeros(1, 4)
        path_sensitive_(network, example, mirrored="auto", first_bias=0.5)
        scale_rates_(optimizer, rate_factors(network, layer_positions(network, example)))
    target = copy.deepcopy(network).requires_grad_(False)

    memory: deque[tuple[np.ndarray, int, float, np.ndarray, bool]] = deque(maxlen=20_000)
    observation, _ = env.reset(seed=options.seed)
    returns, total = [], 0.0
    for step in range(1, options.steps + 1):
        epsilon = max(0.04, 1 - step / (0.3 * options.steps))
        if random.random() < epsilon:
            action = random.randrange(2)
        else:
            with torch.no_grad():
                action = int(network(torch.from_numpy(observation)).argmax())
        following, reward, terminated, truncated, _ = env.step(action)
        memory.append((observation, action, float(reward), following, terminated))
        observation, total = following, total + float(reward)
        if terminated or truncated:
            returns.append(total)
            observation, total = env.reset()[0], 0.0

        if step % SYNC_EVERY == 0:
            target.load_state_dict(network.state_dict())
            clipper.reopen()
        if step < LEARNING_STARTS or step % STEPS_PER_UPDATE:
            continue
        states, actions, rewards, next_states, ended = sample(memory)
        with torch.no_grad():
            goal = rewards.float() + GAMMA * target(next_states).amax(1) * ~ended
        chosen = network(states).gather(1, actions[:, None]).squeeze(1)
        optimizer.zero_grad()
        nn.functional.smooth_l1_loss(chosen, goal).backward()
        # -- interventions in each step ----------------------------------------------------------------------
        if options.plain:
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        else:
            clipper.scale_(network)
            normalizer.scale_(network)
        optimizer.step()
        if step % (options.steps // 5) == 0 and returns:
            print(f"step {step:,}: mean return of the last 10 episodes {np.mean(returns[-10:]):.1f}")
    return returns


if __name__ == "__main__":
    main()
