"""What every agent shares: how it meets the data."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_gfs.agents.learner import Learner
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec
from lit_gfs.metrics.scores import human_normalized_score
from lit_gfs.networks import Network
from lit_gfs.utils.ranks import gather

_PROBE_SIZE = 256
"""Observations that monitors get to see."""


class ExperienceSource(Protocol):
    """What an agent asks of its datamodule."""

    env_steps: int
    """Environment steps (agent decisions) collected so far, summed over envs and ranks."""
    total_steps: int
    """Environment steps after which the run ends."""
    frame_skip: int
    """Simulator frames per environment step."""


class Evaluation(Protocol):
    """What a datamodule hands to an agent in the place of a batch, to be evaluated."""

    def play(self) -> TensorDictBase:
        """Play episodes; return ``episode_return`` and ``episode_length``, ``(episodes,)`` each, raw."""


class Agent(Learner):
    """Base of the agents: a thin LightningModule around pure losses.

    A datamodule drives the agent through four methods: `collection_policy` and `evaluation_policy` say how
    to act, `on_collection_start` and `on_collection_end` frame each piece of experience. What is reported is
    written against environment steps.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        compile: Whether ``torch.compile`` compiles the networks when fitting starts.
    """

    score: ClassVar[str] = "eval/episode_return"
    scores: ClassVar[tuple[str, ...]] = (
        "eval/episode_return",
        "eval/episode_return_std",
        "eval/episode_length",
        "eval/human_normalized_score",
    )
    """All that an evaluation may report, the last one of Atari games alone."""

    def __init__(self, env_spec: EnvSpec, compile: bool = False) -> None:
        super().__init__(env_spec, compile)
        self._episodes: list[tuple[float, float]] = []
        self._seen: deque[Tensor] = deque()
        self._seen_count = 0
        self._total_steps: int | None = None
        """How long a resumed run was to last when its checkpoint was written."""

    def networks(self) -> list[nn.Module]:
        """List encoder, trunk and what is on top of them, for every such network."""
        return [module for module in self.modules() if isinstance(module, Network)]

    # -- acting ------------------------------------------------------------------------------------------

    def collection_policy(self) -> Policy:
        """Return the exploring policy that gathers experience."""
        raise NotImplementedError

    def evaluation_policy(self) -> Policy:
        """Return the policy that is judged: greedy."""
        raise NotImplementedError

    def on_collection_start(self) -> None:
        """Do what is due before the next piece of experience, such as moving along a schedule."""

    def on_collection_end(self, experience: TensorDictBase) -> None:
        """Note the episodes that ended in a piece of experience, ``(num_envs, T)``."""
        following = experience["next"]
        ended = following["done"]
        if ended.any():
            returns = following["episode_return"][ended].tolist()
            lengths = following["episode_length"][ended].tolist()
            self._episodes.extend(zip(returns, lengths, strict=True))
            self.latest_return = sum(returns) / len(returns)
        # A copy: the collector writes the next piece over this one.
        self._seen.append(_spread(experience["observation"], _PROBE_SIZE).clone())
        self._seen_count += len(self._seen[-1])
        while self._seen_count - len(self._seen[0]) >= _PROBE_SIZE:
            self._seen_count -= len(self._seen.popleft())

    # -- learning ----------------------------------------------------------------------------------------

    def annealed(self, optimizer: Optimizer, interval: Literal["epoch", "step"]) -> OptimizerLRScheduler:
        """Let the learning rate fall to 0 over the run: a function of environment steps alone.

        Args:
            optimizer: The optimizer whose learning rate falls.
            interval: Whether it falls after each Lightning epoch or after each optimizer step.
        """
        schedule = LambdaLR(optimizer, lambda _: 1.0 - self.progress)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    @property
    def source(self) -> ExperienceSource:
        """The datamodule that counts environment steps."""
        return cast(ExperienceSource, cast(Any, self.trainer).datamodule)

    @property
    def env_steps(self) -> int:
        """Environment steps so far: the x axis of everything."""
        return self.source.env_steps

    @property
    def progress(self) -> float:
        """The share of the run that is done, from 0 to 1."""
        return min(1.0, self.env_steps / self.source.total_steps)

    @property
    def steps(self) -> int:
        """Environment steps so far."""
        return self.env_steps

    def probe_batch(self) -> Tensor | None:
        """Return up to 256 recent observations on the agent's device, or ``None`` before any were seen."""
        return torch.cat(list(self._seen))[-_PROBE_SIZE:].to(self.device) if self._seen else None

    # -- reporting ---------------------------------------------------------------------------------------

    def current_values(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return schedules, frames, and the episodes that ended since they were last written."""
        values = super().current_values(means)
        if episodes := self._episodes_of_all_ranks():
            returns, lengths = zip(*episodes, strict=True)
            values["train/episode_return"] = sum(returns) / len(returns)
            values["train/episode_length"] = sum(lengths) / len(lengths)
        self._episodes = []
        values["time/frames"] = float(self.env_steps * self.source.frame_skip)
        return values

    def _episodes_of_all_ranks(self) -> list[tuple[float, float]]:
        return [episode for episodes in gather(self._episodes) for episode in episodes]

    def on_train_epoch_end(self) -> None:
        """End the run on its step count."""
        self._stop_if_done()

    def on_train_start(self) -> None:
        """Leave a run alone that was resumed after its end; start the clock of the others.

        In the middle of its last epoch a run is not over, though all of its steps have been collected.
        """
        super().on_train_start()
        if self._total_steps not in (None, self.source.total_steps):
            # The rate that the checkpoint has is that of a run of another length: 0 if it had ended.
            for each in cast(Any, self.trainer).lr_scheduler_configs:
                each.scheduler.step()
        self._total_steps = None
        if not cast(Any, self.trainer).fit_loop.restarting:
            self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self.env_steps >= self.source.total_steps:
            self.trainer.should_stop = True

    # -- checkpoints -------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the episodes that were not yet reported, and the observations that monitors get to see."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["learner"] |= {
            "episodes": [list(episode) for episode in self._episodes_of_all_ranks()],
            "seen": torch.cat(list(self._seen))[-_PROBE_SIZE:].clone() if self._seen else None,
            "total_steps": self.source.total_steps,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on reporting where the checkpoint was written."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("learner", {})
        # Of all ranks, for one of them to go on with.
        pending = saved.get("episodes", []) if self.global_rank == 0 else []
        self._episodes = [(value, length) for value, length in pending]
        seen = saved.get("seen")
        self._seen = deque([] if seen is None else [seen])
        self._seen_count = sum(map(len, self._seen))
        self._total_steps = saved.get("total_steps")

    # -- evaluation --------------------------------------------------------------------------------------

    def validation_step(self, batch: Evaluation, batch_idx: int) -> None:
        """Play an evaluation's episodes; report raw returns and lengths over those of all ranks."""
        self._report_evaluation(batch.play())

    def test_step(self, batch: Evaluation, batch_idx: int) -> None:
        """Play and report episodes, as in validation."""
        self._report_evaluation(batch.play())

    def _report_evaluation(self, played: TensorDictBase) -> None:
        # In double precision, which returns near the end of float32 have a mean and a deviation in.
        of_each_rank = gather((played["episode_return"].double(), played["episode_length"].double()))
        returns, lengths = (torch.cat(parts) for parts in zip(*of_each_rank, strict=True))
        scores = {
            "eval/episode_return": returns.mean().float(),
            "eval/episode_return_std": returns.std(correction=0).float(),
            "eval/episode_length": lengths.mean().float(),
        }
        normalized = human_normalized_score(self.env_spec.env_id, float(scores["eval/episode_return"]))
        if normalized is not None:
            scores["eval/human_normalized_score"] = returns.new_tensor(normalized)
        self.report_evaluation(scores)


def _spread(observation: Tensor, most: int) -> Tensor:
    """Return up to so many of the latest observations ``(num_envs, T, *shape)``, of all environments alike.

    Of more environments than that, some are taken at even distances.
    """
    num_envs, steps = observation.shape[:2]
    if num_envs > most:
        return observation[torch.linspace(0, num_envs - 1, most).long(), -1]
    latest = observation[:, -min(steps, -(-most // num_envs)) :]
    return latest.transpose(0, 1).flatten(0, 1)[-most:]
