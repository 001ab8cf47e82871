"""The policy of a checkpoint, as a function from observations of plain gymnasium to actions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from lit_gfs.collectors.policy import Policy
from lit_gfs.configuration.saved_agent import build_saved_agent
from lit_gfs.envs import EnvSpec
from lit_gfs.envs.activity import Misconduct
from lit_gfs.envs.auto_reset import AutoResetEnv
from lit_gfs.envs.closing import close_env
from lit_gfs.envs.gymnasium import GymnasiumEnv
from lit_gfs.errors import UserError
from lit_gfs.runs.checkpoints import find_checkpoint
from lit_gfs.runs.checkpoints import reason_of as first_reason
from lit_gfs.runs.layout import CONFIG_NAME, LAST, directory_of, find_run, latest_run
from lit_gfs.runs.resume_checks import require_same_class
from lit_gfs.utils.checksummed_files import read_checksummed
from lit_gfs.utils.library_noise import silence_library_noise
from lit_gfs.utils.seeding import isolated_generators

_GREEDY = {"eval_epsilon": 0.0, "sample_in_evaluation": False}
"""Attributes of agents that make their evaluation explore, with the values that do not."""

_CPU = torch.device("cpu")


class LoadedPolicy:
    """A trained policy: call it with an observation, or with a batch of them.

    Args:
        agent: The agent.
        env: An environment of the kind that it was trained in; it may be closed.
        device: Where the networks run.
    """

    def __init__(self, agent: Any, env: AutoResetEnv, device: torch.device = _CPU) -> None:
        self.agent = agent.to(device).eval().requires_grad_(False)
        """The agent, for its networks."""
        self.env_spec = EnvSpec.from_env(env)
        """The spaces that the networks see."""
        self._device = device
        self._act: Policy = agent.eval_policy()
        self._shape: tuple[int, ...] | None = self.env_spec.observation_shape
        self._write: Callable[[Any, NDArray[Any]], None] = self._write_array
        self._read: Callable[[Any], Any] = lambda action: action
        if isinstance(env, GymnasiumEnv):
            self._shape = env.shown_space.shape
            self._write, self._read = env.write_observation, env.read_action

    @torch.no_grad()
    def __call__(self, observation: Any) -> Any:
        """Choose actions.

        Args:
            observation: One observation as the environment shows it, or a batch of them, with one more axis
                in front. Observations of several parts (dictionaries, tuples) come one by one.

        Returns:
            The action as the environment takes it; for a batch, an array with an action per observation.

        Raises:
            UserError: If the observation is not of the environment's space.
        """
        is_batch = self._shape is not None and np.ndim(observation) == len(self._shape) + 1
        rows = self._rows(observation if is_batch else [observation])
        actions = self._act.act(torch.from_numpy(rows).to(self._device))["action"].cpu().numpy()
        return np.array([self._read(each) for each in actions]) if is_batch else self._read(actions[0])

    def _rows(self, observations: Any) -> NDArray[Any]:
        spec = self.env_spec
        rows = np.empty((len(observations), *spec.observation_shape), dtype=spec.observation_dtype)
        for observation, row in zip(observations, rows, strict=True):
            try:
                self._write(observation, row)
            except (Misconduct, TypeError, ValueError, KeyError) as error:
                expected = spec.observation_shape if self._shape is None else self._shape
                raise UserError(
                    f"the observation is not one of {spec.env_id!r}: {error}; expected shape {expected}, or "
                    "a batch of such"
                ) from error
        return rows

    def _write_array(self, observation: Any, row: NDArray[Any]) -> None:
        array = np.asarray(observation)
        if array.shape != row.shape:
            raise Misconduct(f"its shape is {array.shape}")
        row[...] = array


def load_policy(
    checkpoint: str | Path, *, greedy: bool = True, device: torch.device | str = _CPU
) -> LoadedPolicy:
    """Load the policy of a checkpoint, to act in plain gymnasium or elsewhere.

    The run's ``config.yaml`` beside the checkpoint says how to build the agent. It is trusted as on the
    command line: classes of other packages than Lightning, torch, torchrl, tensordict and lit_gfs are
    refused, unless the program has called ``lit_gfs.trust("my_package")``. The environment is made once, for
    its spaces. The run's replay is not needed.

    The policy holds all that lies between an observation and an action: conversion of gymnasium's spaces,
    encoder, running normalization, scaling of continuous actions. These suites have more than that in the
    environment:

    - Atari: observations are stacks of 4 gray frames, ``(4, 84, 84)`` uint8. ``gymnasium.wrappers`` has them:
      ``FrameStackObservation(AtariPreprocessing(gymnasium.make("ALE/Pong-v5", frameskip=1)), 4)``.
    - MinAtar: observations are boards ``(channels, 10, 10)`` bool; the ``minatar`` package has the channels
      last.
    - dm_control: observations are flat vectors in the suite's order, and actions lie in [-1, 1].

    Args:
        checkpoint: A checkpoint such as ``runs/dqn_CartPole-v1/version_0/best.ckpt``. A directory stands for
            its newest intact checkpoint, ``"last"`` for that of the latest run.
        greedy: Whether the policy always takes the best action; otherwise it acts as in the run's
            evaluations, with their epsilon, or with samples.
        device: Where the networks run.

    Returns:
        A function of observations, ``policy(observation)``.

    Raises:
        UserError: If the checkpoint is missing or damaged, there is no run's ``config.yaml`` beside it, or
            that names something untrusted or another agent.

    Example::

        policy = load_policy("runs/dqn_CartPole-v1/version_0/best.ckpt")
        observation, _ = gymnasium.make("CartPole-v1").reset()
        action = policy(observation)
    """
    silence_library_noise()
    name = str(latest_run()) if str(checkpoint) == LAST else str(checkpoint)
    path = find_checkpoint(name, with_replay=False, option="checkpoint")
    run = find_run(directory_of(str(path)))
    if run is None:
        raise UserError(
            f"checkpoint {name!r} has no {CONFIG_NAME} of a run beside it; expected that of its run"
        )
    with isolated_generators(_CPU):
        agent, env = build_saved_agent(run / CONFIG_NAME)
    try:
        _load_weights(agent, path)
        if not hasattr(agent, "eval_policy"):
            raise UserError(f"checkpoint {name!r} is of {type(agent).__name__}, which does not act")
        for attribute, value in _GREEDY.items() if greedy else ():
            if hasattr(agent, attribute):
                setattr(agent, attribute, value)
        return LoadedPolicy(agent, env, torch.device(device))
    finally:
        close_env(env)


def _load_weights(agent: Any, path: Path) -> None:
    content = read_checksummed(path)
    saved = content.get("learner")
    require_same_class(agent, cast(dict[str, Any], saved or {}).get("class"))
    try:
        agent.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise UserError(
            f"checkpoint {str(path)!r} does not fit the {CONFIG_NAME} beside it: {first_reason(error)}"
        ) from error
