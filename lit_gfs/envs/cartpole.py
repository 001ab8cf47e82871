"""CartPole, for which gymnasium has a batched simulator."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data import Unbounded

from lit_gfs.envs.action_specs import discrete_action
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.episodes import Arrays, Outcome
from lit_gfs.envs.gymnasium import quietly
from lit_gfs.utils.seeding import generator_state, set_generator_state


def _accelerations(
    simulator: Any, state: NDArray[np.float64], force: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Solve the cart-pole equations (Barto, Sutton and Anderson, 1983).

    The operations are those of `CartPoleVectorEnv.step` in the same order, so results are equal bit for bit.

    Args:
        simulator: A `CartPoleVectorEnv`, for its constants.
        state: Position, velocity, angle and rate of every pole, ``(4, num_envs)``.
        force: On every cart, ``(num_envs,)``.

    Returns:
        Acceleration of the carts, and angular acceleration of the poles, ``(num_envs,)`` each.
    """
    angle, rate = state[2], state[3]
    cosine, sine = np.cos(angle), np.sin(angle)
    mass, moment = simulator.total_mass, simulator.polemass_length
    push = (force + moment * np.square(rate) * sine) / mass
    spin = (simulator.gravity * sine - cosine * push) / (
        simulator.length * (4.0 / 3.0 - simulator.masspole * np.square(cosine) / mass)
    )
    return push - moment * spin * cosine / mass, spin


class CartPoleEnv(BatchedEnv):
    """Gymnasium's `CartPoleVectorEnv`, with a new episode in the step that ends one.

    Gymnasium's class draws a new state one step after the end of an episode, and ignores the action of that
    step. This class draws it at once, from the same generator and bounds, so that every step counts. It also
    computes the dynamics itself, to the same numbers: the rest of gymnasium's step (checks, autoreset,
    copies) takes twice as long as the equations.

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
        picture_shape = (simulator.screen_height, simulator.screen_width, 3) if render else None
        action = discrete_action(2, num_envs)
        super().__init__(env_id, num_envs, observations, action, 1, seed, picture_shape)
        self._simulator = simulator
        self._forces = np.array([-simulator.force_mag, simulator.force_mag])
        self._bounds = np.array([[simulator.x_threshold], [simulator.theta_threshold_radians]])
        self._renders = render

    def _simulate(self, action: NDArray[Any]) -> Outcome:
        # A bitwise OR of all actions is 0 or 1 only if all of them are: other integers set other bits.
        if np.bitwise_or.reduce(action) not in (0, 1):
            raise ValueError(f"actions are {action.tolist()}; expected 0 (left) or 1 (right)")
        simulator = self._simulator
        state = simulator.state
        cart, pole = _accelerations(simulator, state, self._forces[action])
        if simulator.kinematics_integrator == "euler":
            change = np.empty_like(state)
            change[::2] = state[1::2]
            change[1], change[3] = cart, pole
            state += simulator.tau * change
        else:
            state[1] += simulator.tau * cart
            state[3] += simulator.tau * pole
            state[::2] += simulator.tau * state[1::2]
        fallen = np.abs(state[::2]) > self._bounds
        terminated = fallen[0] | fallen[1]
        simulator.steps += 1
        truncated = simulator.steps >= simulator.max_episode_steps
        reward = self._reward(terminated)
        observations = self._observe(state.T.astype(np.float32))
        (ended,) = (terminated | truncated).nonzero()
        return Outcome(observations, reward, terminated, truncated, self._draw(ended) if len(ended) else None)

    def _reward(self, terminated: NDArray[np.bool_]) -> NDArray[np.float32]:
        if self._simulator._sutton_barto_reward:
            return -terminated.astype(np.float32)
        return np.ones(self.num_envs, np.float32)

    def _restart(self, indices: NDArray[np.int64], seed: int | None) -> Arrays:
        if seed is not None:
            self._simulator.reset(seed=seed)
            return self._observe(self._simulator.state.T.astype(np.float32))
        return {key: values[indices] for key, values in self._draw(indices).items()}

    def _draw(self, indices: NDArray[np.int64]) -> Arrays:
        """Draw new states for some poles; return the observations of all poles."""
        simulator = self._simulator
        bounds = simulator.low, simulator.high
        simulator.state[:, indices] = simulator.np_random.uniform(*bounds, (4, len(indices)))
        simulator.steps[indices] = 0
        return self._observe(simulator.state.T.astype(np.float32))

    @property
    def time_limit(self) -> int:
        """Steps after which an episode is truncated."""
        return int(self._simulator.max_episode_steps)

    def _save_simulators(self) -> dict[str, Any]:
        simulator = self._simulator
        return {
            "state": torch.from_numpy(simulator.state.copy()),
            "steps": torch.from_numpy(simulator.steps.copy()),
            "generator": generator_state(simulator.np_random),
        }

    def _load_simulators(self, state: dict[str, Any]) -> None:
        simulator = self._simulator
        simulator.reset(seed=0)  # creates the generator, and the surfaces for pictures
        simulator.state, simulator.steps = state["state"].numpy().copy(), state["steps"].numpy().copy()
        set_generator_state(simulator.np_random, state["generator"])
        self._episodes.observations = self._observe(simulator.state.T.astype(np.float32))
        self._episodes.lengths = simulator.steps.astype(np.int64)

    def _observe(self, observation: NDArray[np.float32]) -> Arrays:
        if not self._renders:
            return {"observation": observation}
        return {"observation": observation, "pixels": np.stack(self._simulator.render())}

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Release the simulator."""
        self._simulator.close()
        super().close(raise_if_closed=raise_if_closed)
