"""Environments whose every outcome is known beforehand, and a logger that can be read."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.loggers.logger import Logger
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase


class Records(Logger):
    """A logger that keeps what it is given.

    Args:
        about: Beginning of the tags to keep; what has no such tag is among the `others`.

    Attributes:
        rows: What was logged, by step.
        calls: What was logged, call by call.
        others: Steps and values of calls about something else.
    """

    name = "records"
    version = 0

    def __init__(self, about: str = "") -> None:
        super().__init__()
        self.about = about
        self.rows: dict[int, dict[str, float]] = {}
        self.calls: list[dict[str, float]] = []
        self.others: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if not any(tag.startswith(self.about) for tag in metrics):
            self.others.append((step, dict(metrics)))
            return
        assert step is not None
        self.calls.append(dict(metrics))
        self.rows.setdefault(step, {}).update(metrics)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


class CountingEnv(EnvBase):
    """Episodes of known length: env i ends after ``lengths[i]`` steps, terminated if i is even, or truncated.

    The observation is ``[steps in the episode, a number drawn at reset]``; the reward is the step's number.
    """

    env_id = "Counting-v0"
    frame_skip = 1

    def __init__(self, lengths: list[int]) -> None:
        super().__init__(batch_size=[len(lengths)])
        count = len(lengths)
        self.lengths = torch.tensor(lengths)
        self.steps = torch.zeros(count, dtype=torch.int64)
        self.totals = torch.zeros(count)
        self.marks = torch.zeros(count)
        self.resets = 0
        self.generator = torch.Generator()
        self.observation_spec = Composite(
            observation=Unbounded((count, 2)),
            episode_return=Unbounded((count, 1)),
            episode_length=Unbounded((count, 1), dtype=torch.int64),
            shape=(count,),
        )
        self.action_spec = Categorical(2, shape=(count,), dtype=torch.int64)
        self.reward_spec = Unbounded((count, 1))
        self.full_done_spec = Composite(
            {
                key: Binary(1, shape=(count, 1), dtype=torch.bool)
                for key in ("done", "terminated", "truncated")
            },
            shape=(count,),
        )

    def _set_seed(self, seed: int | None) -> None:
        self.generator.manual_seed(seed or 0)

    def _observe(self) -> dict[str, Tensor]:
        return {
            "observation": torch.stack([self.steps.float(), self.marks], dim=1),
            "episode_return": self.totals.unsqueeze(1).clone(),
            "episode_length": self.steps.unsqueeze(1).clone(),
        }

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs: object) -> TensorDict:
        mask = torch.ones(len(self.lengths), dtype=torch.bool)
        if tensordict is not None and "_reset" in tensordict:
            mask = tensordict["_reset"].squeeze(-1)
        else:
            self.resets += 1
        self.steps[mask] = 0
        self.totals[mask] = 0
        self.marks[mask] = torch.rand(int(mask.sum()), generator=self.generator)
        flags = {
            key: torch.zeros(len(mask), 1, dtype=torch.bool) for key in ("done", "terminated", "truncated")
        }
        return TensorDict({**self._observe(), **flags}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        self.steps += 1
        self.totals += self.steps.float()
        ended = self.steps >= self.lengths
        even = torch.arange(len(ended)) % 2 == 0
        return TensorDict(
            {
                **self._observe(),
                "reward": self.steps.float().unsqueeze(1),
                "done": ended.unsqueeze(1),
                "terminated": (ended & even).unsqueeze(1),
                "truncated": (ended & ~even).unsqueeze(1),
            },
            self.batch_size,
        )


class MatchingEnv(CountingEnv):
    """Pays 1 for choosing the action whose number is shown, 0 otherwise; episodes last 20 steps."""

    env_id = "Matching-v0"

    def __init__(self, num_envs: int) -> None:
        super().__init__([20] * num_envs)

    def _observe(self) -> dict[str, Tensor]:
        self.shown = torch.randint(2, (len(self.lengths),), generator=self.generator)
        return {**super()._observe(), "observation": torch.nn.functional.one_hot(self.shown, 2).float()}

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        reward = (tensordict["action"] == self.shown).float()
        self.totals += reward - self.steps - 1  # the parent adds the step's number
        return super()._step(tensordict).set("reward", reward.unsqueeze(1))


class FollowingEnv(CountingEnv):
    """Shows a number x from -1 to 1, and takes actions from -2 to 4; episodes last 20 steps.

    It pays -(a - x)^2 for an action a, scaled to [-1, 1]. The best constant action, the middle, gets -1/3 on
    average, and a uniformly random one -2/3.
    """

    env_id = "Following-v0"

    def __init__(self, num_envs: int) -> None:
        super().__init__([20] * num_envs)
        self.action_spec = Bounded(-2.0, 4.0, shape=(num_envs, 1), dtype=torch.float32)

    def _observe(self) -> dict[str, Tensor]:
        self.shown = 2 * torch.rand(len(self.lengths), generator=self.generator) - 1
        nothing = torch.zeros_like(self.shown)
        return {**super()._observe(), "observation": torch.stack([self.shown, nothing], 1)}

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        reward = -((tensordict["action"].squeeze(-1) - 1) / 3 - self.shown).square()
        self.totals += reward - self.steps - 1  # the parent adds the step's number
        return super()._step(tensordict).set("reward", reward.unsqueeze(1))
