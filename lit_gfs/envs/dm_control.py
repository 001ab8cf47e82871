"""Tasks of the DeepMind Control Suite."""

from __future__ import annotations

import importlib
import logging
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from types import FunctionType, MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torchrl.data import TensorSpec, Unbounded

from lit_gfs.envs.action_specs import continuous_action, discrete_action
from lit_gfs.envs.episodes import Outcome
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.envs.suites import Suite
from lit_gfs.errors import UserError, require_positive

# Without a display, dm_control may fail to import unless rendering is disabled. The value "disable" does not
# mean that the user decided against rendering: child processes inherit it from this line.
_GL_CHOSEN_BY_USER = os.environ.setdefault("MUJOCO_GL", "disable") != "disable"

import mujoco  # noqa: E402
from dm_control import _render, suite  # noqa: E402
from dm_control.rl.control import PhysicsError  # noqa: E402
from dm_control.utils import rewards  # noqa: E402

_PICTURE = (240, 320)
_MOST_ACTIONS = 1_000
_UNLIMITED = 1e10
"""The bound that dm_control has for an actuator without limits."""


def dm_control_tasks() -> dict[str, tuple[str, str]]:
    """Map ``dm_control/<domain>-<task>-v0`` to domain and task, for the whole suite."""
    return {f"dm_control/{domain}-{task}-v0": (domain, task) for domain, task in suite.ALL_TASKS}


class DMControlEnv(SerialEnv):
    """A task of the suite: flat float32 observations, actions in [-1, 1], episodes of 1,000 steps.

    Observations are concatenated in the suite's own order. Actions are clipped to [-1, 1] and scaled to the
    task's bounds; actuators without bounds take them unscaled. The end of an episode is a truncation if its
    discount in the suite is 1, and a termination if it is 0.

    Args:
        env_id: ``dm_control/<domain>-<task>-v0``.
        num_envs: Number of simulators.
        seed: Seed of the first reset; ``None`` draws one from the operating system.
        render: Whether to add ``pixels`` of the first camera, ``(num_envs, 240, 320, 3)``.
        action_repeat: Control steps per action; their rewards are summed.
        values_per_actuator: Makes actions discrete: the number of evenly spaced values of each actuator,
            both bounds included. Each combination of values is an action, with the last actuator varying
            fastest. 2 is bang-bang control; 3 adds rest (Seyde et al. 2021, arXiv 2111.02552).

    Raises:
        UserError: If an option is out of range, or OpenGL is needed and does not work here.
    """

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        render: bool = False,
        action_repeat: int = 1,
        values_per_actuator: int | None = None,
    ) -> None:
        require_positive(action_repeat=action_repeat)
        if values_per_actuator is not None and values_per_actuator < 2:
            raise UserError(
                f"values_per_actuator is {values_per_actuator}; expected null or a whole number of at least 2"
            )
        domain, task = dm_control_tasks()[env_id]
        if render:
            _enable_rendering(env_id)
        with _without_model_warnings():
            # Some tasks draw their model once (lqr). This seed makes it the same in every run.
            load = partial(suite.load, domain, task, task_kwargs={"random": 0})
            environments = [load() for _ in range(num_envs)]
        try:
            first = environments[0].reset()
            if render:
                environments[0].physics.render(*_PICTURE, camera_id=0)
        except RuntimeError as error:
            raise UserError(
                f"{env_id!r} needs OpenGL and it does not work here ({error}); "
                "set the environment variable MUJOCO_GL to 'egl', 'osmesa' or 'glfw'"
            ) from error
        size = sum(np.size(value) for value in first.observation.values())
        bounds = environments[0].action_spec()
        limited = np.abs([bounds.minimum, bounds.maximum]).max(axis=0) < _UNLIMITED
        low, high = np.where(limited, bounds.minimum, -1), np.where(limited, bounds.maximum, 1)
        ones = np.ones(bounds.shape, dtype=np.float32)
        action: TensorSpec = continuous_action(-ones, ones, num_envs)
        self._choices: NDArray[np.float32] | None = None
        if values_per_actuator is not None:
            self._choices = _combinations(env_id, values_per_actuator, len(ones))
            action = discrete_action(len(self._choices), num_envs)
        super().__init__(
            env_id,
            num_envs,
            {"observation": Unbounded((num_envs, size), dtype=torch.float32)},
            action,
            action_repeat,
            seed,
            (*_PICTURE, 3) if render else None,
        )
        self._simulators = [_Simulator(environment) for environment in environments]
        self._middle, self._half_width = (high + low) / 2, (high - low) / 2

    @property
    def time_limit(self) -> int | None:
        """Steps after which an episode is truncated."""
        limit = self._simulators[0].environment._step_limit
        return None if np.isinf(limit) else math.ceil(limit / self.frame_skip)

    def _simulate(self, action: NDArray[Any]) -> Outcome:
        if self._choices is not None:
            action = self._choices[action]
        return super()._simulate(self._middle + self._half_width * np.clip(action, -1, 1))

    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        simulator = self._simulators[index]
        total = 0.0
        for _ in range(self.frame_skip):
            reward, discount = simulator.step(action)
            total += reward
            if discount is not None:
                break
        simulator.observe(observation)
        return total, discount == 0, discount is not None and discount > 0

    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        simulator = self._simulators[index]
        if seed is not None:
            simulator.environment.task._random = np.random.RandomState(seed)
        simulator.reset()
        simulator.observe(observation)

    def _render_one(self, index: int) -> NDArray[np.uint8]:
        return self._simulators[index].environment.physics.render(*_PICTURE, camera_id=0)

    def close(self, *, raise_if_closed: bool = True) -> None:
        """Release the simulators."""
        for simulator in self._simulators:
            simulator.environment.close()
        super().close(raise_if_closed=raise_if_closed)


SUITE = Suite(ids=dm_control_tasks, env_class=lambda env_id: DMControlEnv)


def _combinations(env_id: str, values: int, actuators: int) -> NDArray[np.float32]:
    """Return every combination of values from -1 to 1, ``(values ** actuators, actuators)``."""
    if values**actuators > _MOST_ACTIONS:
        raise UserError(
            f"values_per_actuator is {values}, which makes {values**actuators:,} actions of the {actuators} "
            f"actuators of {env_id!r}; expected at most {_MOST_ACTIONS:,}"
        )
    return np.array(list(product(np.linspace(-1, 1, values), repeat=actuators)), dtype=np.float32)


class _Simulator:
    """Steps a task with the same results as `dm_control.rl.control.Environment`, bit for bit, but faster.

    It looks up the integrator, the MuJoCo structures behind their wrappers and the counters of warnings once
    in an episode instead of in every step. It makes observations only where they are needed, and computes
    rewards with `_tolerance`.

    Args:
        environment: The result of ``suite.load``.
    """

    def __init__(self, environment: Any) -> None:
        self.environment = environment
        self._task = environment.task
        self._physics = environment.physics
        self._reward = _with_light_tolerance(environment.task.get_reward)
        self._substeps = environment._n_sub_steps
        self._step_limit = environment._step_limit

    def reset(self) -> None:
        """Begin an episode."""
        self.environment.reset()
        physics = self._physics
        self._model, self._data = physics.model.ptr, physics.data.ptr
        self._runge_kutta = physics.model.opt.integrator == mujoco.mjtIntegrator.mjINT_RK4.value
        self._warnings = physics.data.warning.number
        self._known_warnings = self._warnings.tobytes()
        self._steps = 0

    def step(self, action: NDArray[Any]) -> tuple[float, float | None]:
        """Take one control step.

        Returns:
            The reward, and the discount if the episode ended, else ``None``.

        Raises:
            dm_control.rl.control.PhysicsError: If the simulation diverged.
        """
        self._task.before_step(action, self._physics)
        self._advance()
        self._task.after_step(self._physics)
        reward = self._reward(self._physics)
        self._steps += 1
        if self._steps >= self._step_limit:
            return reward, 1.0
        return reward, self._task.get_termination(self._physics)

    def _advance(self) -> None:
        # The order of dm_control's `legacy_step`, which updates positions and velocities at the end of a
        # control step, not at the beginning of the next one.
        if self._runge_kutta:
            mujoco.mj_step(self._model, self._data, self._substeps)
        else:
            mujoco.mj_step2(self._model, self._data)
            if self._substeps > 1:
                mujoco.mj_step(self._model, self._data, self._substeps - 1)
        mujoco.mj_step1(self._model, self._data)
        if self._warnings.tobytes() != self._known_warnings:
            raise PhysicsError("the simulation diverged: MuJoCo counted new warnings in this step")

    def observe(self, row: NDArray[Any]) -> None:
        """Write the task's observation into ``row``, one named part after the other."""
        start = 0
        for value in self._task.get_observation(self._physics).values():
            stop = start + value.size
            row[start:stop] = value if value.ndim < 2 else value.ravel()
            start = stop


def _tolerance(
    x: Any,
    bounds: tuple[float, float] = (0.0, 0.0),
    margin: float = 0.0,
    sigmoid: str = "gaussian",
    value_at_margin: float = rewards._DEFAULT_VALUE_AT_MARGIN,
) -> Any:
    """Return the same as `dm_control.utils.rewards.tolerance`, bit for bit.

    That function selects with arrays even where ``x`` is one number, which takes as long as the physics of a
    light model. This one takes a branch instead.
    """
    if not isinstance(x, float):
        return rewards.tolerance(x, bounds, margin, sigmoid, value_at_margin)
    lower, upper = bounds
    if lower <= x <= upper:
        return 1.0
    if margin == 0:
        return 0.0
    distance = (lower - x if x < lower else x - upper) / margin
    if sigmoid == "linear":
        scaled = float(distance) * (1 - value_at_margin)
        return 1 - scaled if abs(scaled) < 1 else 0.0
    return float(rewards._sigmoids(np.float64(distance), value_at_margin, sigmoid))


_LIGHT_REWARDS = SimpleNamespace(**{**vars(rewards), "tolerance": _tolerance})


def _with_light_tolerance(get_reward: Any) -> Any:
    """Return a copy of a task's reward method that calls `_tolerance`; the suite itself does not change."""
    function = get_reward.__func__
    names = function.__globals__
    if names.get("rewards") is not rewards:
        return get_reward
    light = FunctionType(
        function.__code__,
        {**names, "rewards": _LIGHT_REWARDS},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    return MethodType(light, get_reward.__self__)


@contextmanager
def _without_model_warnings() -> Iterator[None]:
    """Suppress warnings about the suite's own model files, one for each simulator."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _enable_rendering(env_id: str) -> None:
    """Bind dm_control to an OpenGL library, unless the user has made a choice."""
    if _GL_CHOSEN_BY_USER or _render.BACKEND not in (None, *_render.constants.NO_RENDERER):
        return
    os.environ["MUJOCO_GL"] = "egl"
    try:
        # dm_control binds the library on import. An earlier environment may have imported it without one.
        importlib.reload(_render)
    except Exception as error:
        os.environ["MUJOCO_GL"] = "disable"
        importlib.reload(_render)
        raise UserError(
            f"{env_id!r} cannot be rendered: no OpenGL library works here ({error}); "
            "set the environment variable MUJOCO_GL to 'egl', 'osmesa' or 'glfw'"
        ) from error
