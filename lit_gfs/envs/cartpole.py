"""CartPole, whose simulator is batched by itself."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import MultiDiscrete
from numpy.typing import NDArray
from torchrl.data import Unbounded

from lit_gfs.envs.base import Arrays, BatchedEnv, Outcome, discrete_action
from lit_gfs.envs.gymnasium import quietly


class _Pushes(MultiDiscrete):
    """Gymnasium's action space of ``num_envs`` poles, with a cheaper check, which every step makes."""

    def __init__(self, num_envs: int) -> None:
        super().__init__([2] * num_envs)

    def contains(self, x: Any) -> bool:
        """Return whether every pole is pushed left (0) or right (1)."""
        # Any other integer, negative ones included, has bits that remain in the bitwise disjunction of all.
        return x.shape == self.shape and np.bitwise_or.reduce(x) in (0, 1)


class CartPoleEnv(BatchedEnv):
    """Gymnasium's `CartPoleVectorEnv`, whose next episodes begin in the step that ends one.

    That class draws a new state one step after the end and drops the action of that step. Here the new state
    is drawn at once, from the same generator and bounds, so that no step is lost.

    Args:
        env_id: ``CartPole-v0`` or ``CartPole-v1``.
        num_envs: Number of poles.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels``, ``(num_envs, 400, 600, 3)``.
        options: Arguments of `CartPoleVectorEnv`.
    """

    def __init__(
        self, env_id: str, num_envs: int, *, seed: int | None = None, render: bool = False, **options: Any
    ) -> None:
        if render:
            options["render_mode"] = "rgb_array"
        with quietly():
            simulator: Any = gymnasium.make_vec(
                env_id, num_envs, vectorization_mode="vector_entry_point", **options
            )
        observations = {"observation": Unbounded((num_envs, 4), dtype=torch.float32)}
        if render:
            shape = (simulator.screen_height, simulator.screen_width, 3)
            observations["pixels"] = Unbounded((num_envs, *shape), dtype=torch.uint8)
        super().__init__(env_id, num_envs, observations, discrete_action(2, num_envs), 1, seed)
        simulator.action_space = _Pushes(num_envs)
        self._simulator = simulator
        self._renders = render

    def _simulate(self, action: NDArray[Any]) -> Outcome:
        simulator = self._simulator
        observation, reward, terminated, truncated, _ = simulator.step(action)
        observations = self._show(observation)
        (ended,) = simulator.prev_done.nonzero()
        restarted = self._draw(ended) if len(ended) else None
        return Outcome(observations, reward, terminated, truncated, restarted)

    def _restart(self, indices: NDArray[np.int64], seed: int | None) -> Arrays:
        if seed is not None:
            self._simulator.reset(seed=seed)
            return self._show(self._simulator.state.T.astype(np.float32))
        return {key: values[indices] for key, values in self._draw(indices).items()}

    def _draw(self, indices: NDArray[np.int64]) -> Arrays:
        """Draw new states for some poles, and return what all poles show then."""
        simulator = self._simulator
        bounds = simulator.low, simulator.high
        simulator.state[:, indices] = simulator.np_random.uniform(*bounds, (4, len(indices)))
        simulator.steps[indices] = 0
        # Or the next step would begin their episodes once more.
        simulator.prev_done[indices] = False
        return self._show(simulator.state.T.astype(np.float32))

    def _show(self, observation: NDArray[np.float32]) -> Arrays:
        if not self._renders:
            return {"observation": observation}
        return {"observation": observation, "pixels": np.stack(self._simulator.render())}

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Release the simulator."""
        self._simulator.close()
        super().close(raise_if_closed=raise_if_closed)
