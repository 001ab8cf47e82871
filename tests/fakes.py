"""Environments whose every outcome is known beforehand, a logger that can be read, and a small CIFAR-10."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers.logger import Logger
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from lit_gfs.utils import checksummed_files


class Records(Logger):
    """A logger that keeps what it is given, by step."""

    name = "records"
    version = 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
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


def write_cifar10(folder: Path, counts: tuple[int, ...] = (64,)) -> bytes:
    """Write files of CIFAR-10's binary format, of so many images each, and return what is in the first."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, count in enumerate(counts, start=1):
        pixels = torch.randint(256, (count, 3073), generator=torch.Generator().manual_seed(number))
        pixels[:, 0] %= 10
        written.append(bytes(pixels.flatten().tolist()))
        (folder / f"data_batch_{number}.bin").write_bytes(written[-1])
    return written[0]


def killed_while(function: Callable[[], Any], moment: int) -> int | None:
    """Run ``function`` in a process that kills itself before it writes, syncs or renames for the n-th time.

    Returns:
        The signal that ended it, or None if it came to its end before that moment.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None

    moments = 0

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal moments
            moments += 1
            if moments == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return wrapped

    # All of it is this process's own: nothing has to be put back.
    checksummed_files._HashingFile.write = killing(checksummed_files._HashingFile.write)  # type: ignore[method-assign]
    os.fsync = killing(os.fsync)
    Path.replace = killing(Path.replace)  # type: ignore[method-assign]
    try:
        function()
    finally:
        os._exit(0)
