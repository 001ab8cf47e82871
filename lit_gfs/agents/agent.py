"""The base of the agents: acting, episodes, evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.value_distributions import ValueDistribution, ValueLoss, value_distribution
from lit_gfs.metrics.recent_observations import RecentObservations
from lit_gfs.metrics.scores import human_normalized_score
from lit_gfs.networks import Network
from lit_gfs.utils.ranks import gather
from lit_gfs.utils.transfers import send

_PROBE_SIZE = 256
"""Observations that monitors probe the networks with."""


class ExperienceSource(Protocol):
    """The counts that an agent reads from its datamodule."""

    env_steps: int
    """Environment steps (agent decisions) collected so far, summed over envs and ranks."""
    total_steps: int
    """Environment steps after which the run ends."""
    frame_skip: int
    """Simulator frames per environment step."""


class Evaluation(Protocol):
    """The datamodule's batch in validation and test: an evaluation that the agent plays."""

    def play(self) -> TensorDictBase:
        """Play episodes; return ``episode_return`` and ``episode_length``, ``(episodes,)`` each, raw."""


class Agent(Learner):
    """Base of the agents.

    A datamodule drives the agent through four methods: `collection_policy` and `eval_policy` say how to act,
    `on_collection_start` and `on_collection_end` surround each rollout. Everything is reported against
    environment steps. A subclass computes its loss in `training_step`, and its optimizers in
    `configure_optimizers`.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
        gamma: Discount per environment step.
        reward_scale: Factor on the rewards that the learner sees, to bring values to the order of 1; reported
            returns stay raw.
        clip_reward: Whether the learner sees rewards, once scaled, clipped to [-1, 1].
        end_of_life_is_terminal: Whether a lost life cuts the bootstrap (Atari); the game goes on.
        anneal_learning_rate: Whether the learning rate falls linearly to 0 over the run.
        v_min: Lower end of the support of values, for the losses ``c51`` and ``hl_gauss`` alone; in units of
            the rewards that the learner sees. Targets beyond the support are clipped, see the tag
            ``loss/support_clipped``.
        v_max: Upper end of the support.
        atoms: Atoms of ``c51``, or bins of ``hl_gauss``.
        options: Networks and optimizer, see `Learner`.

    Raises:
        UserError: If the discount is not between 0 and 1, or the support of values is empty.
    """

    score: ClassVar[str] = "eval/episode_return"
    scores: ClassVar[tuple[str, ...]] = (
        "eval/episode_return",
        "eval/episode_return_std",
        "eval/episode_length",
        "eval/human_normalized_score",
    )
    """All that an evaluation may report, the last one of Atari games alone."""

    action_low: Tensor
    action_high: Tensor
    action_center: Tensor
    action_scale: Tensor

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        gamma: float = 0.99,
        reward_scale: float = 1.0,
        clip_reward: bool = False,
        end_of_life_is_terminal: bool = False,
        anneal_learning_rate: bool = False,
        v_min: float = -10.0,
        v_max: float = 10.0,
        atoms: int = 51,
        **options: Any,
    ) -> None:
        super().__init__(env_spec, **options)
        require_between(0, 1, gamma=gamma)
        self.gamma = gamma
        self.reward_scale = reward_scale
        self.clip_reward = clip_reward
        self.end_of_life_is_terminal = end_of_life_is_terminal
        self.anneal_learning_rate = anneal_learning_rate
        self.v_min, self.v_max, self.atoms = v_min, v_max, atoms
        self._episodes: list[tuple[float, float]] = []
        """Returns and lengths of episodes that were not reported yet."""
        self._observations = RecentObservations(_PROBE_SIZE)
        self._saved_total_steps: int | None = None
        """The length of the run when its checkpoint was written."""

    def register_action_bounds(self) -> None:
        """Keep the bounds of continuous actions, and the map of [-1, 1] onto them, as buffers ``(dim,)``.

        The map of a dimension without two bounds is the identity.
        """
        low, high = torch.tensor(self.env_spec.action_low), torch.tensor(self.env_spec.action_high)
        has_bounds = (high - low).isfinite()
        for name, value in (
            ("action_low", low),
            ("action_high", high),
            ("action_center", torch.where(has_bounds, low + (high - low) / 2, 0)),
            ("action_scale", torch.where(has_bounds, (high - low) / 2, 1)),
        ):
            self.register_buffer(name, value, persistent=False)

    def networks(self) -> list[nn.Module]:
        """List encoder, trunk and what is on top of them, for every such network."""
        return [module for module in self.modules() if isinstance(module, Network)]

    # -- acting ------------------------------------------------------------------------------------------

    def collection_policy(self) -> Policy:
        """Return the exploring policy that collects rollouts."""
        raise NotImplementedError

    def eval_policy(self) -> Policy:
        """Return the greedy policy that is evaluated."""
        raise NotImplementedError

    def on_collection_start(self) -> None:
        """Prepare for the next rollout, such as by announcing that targets change."""

    def on_collection_end(self, rollout: TensorDictBase) -> None:
        """Note the episodes that ended in a rollout ``(num_envs, T)``, and its latest observations."""
        next_ = rollout["next"]
        ended = next_["done"]
        if ended.any():
            returns = next_["episode_return"][ended].tolist()
            lengths = next_["episode_length"][ended].tolist()
            self._episodes.extend(zip(returns, lengths, strict=True))
            self.latest_return = sum(returns) / len(returns)
        self.show_observations(rollout["observation"])

    def take_statistics(self, observations: Iterable[Tensor]) -> None:
        """Learn running statistics of observations, if the agent has them, from experience that is complete.

        Args:
            observations: Parts of the experience, ``(part, *shape)`` each.
        """

    def show_observations(self, observation: Tensor) -> None:
        """Note observations ``(num_envs, T, *shape)`` with which monitors probe the networks."""
        self._observations.add(observation)

    # -- learning ----------------------------------------------------------------------------------------

    def annealed(self, optimizer: Optimizer, interval: Literal["epoch", "step"]) -> OptimizerLRScheduler:
        """Let the learning rate fall to 0 over the run, if ``anneal_learning_rate`` is true.

        The rate is a function of environment steps alone.

        Args:
            optimizer: The optimizer whose learning rate falls.
            interval: Whether it falls after each Lightning epoch or after each optimizer step.
        """
        if not self.anneal_learning_rate:
            return optimizer
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

    def value_distribution(self, loss: ValueLoss) -> ValueDistribution:
        """Return how the networks state values that are learned by a loss of this name."""
        return value_distribution(loss, self.v_min, self.v_max, self.atoms)

    def probe_batch(self) -> Tensor | None:
        """Return up to 256 recent observations on the agent's device, or ``None`` before the first."""
        observations = self._observations.latest()
        return None if observations is None else send(observations, self.device)

    # -- reporting ---------------------------------------------------------------------------------------

    def current_values(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return schedules, frames, and the episodes that ended since they were last written."""
        values = super().current_values(means)
        if episodes := self._episodes_of_all_ranks():
            returns, lengths = zip(*episodes, strict=True)
            values["train/episode_return"] = sum(returns) / len(returns)
            values["train/episode_length"] = sum(lengths) / len(lengths)
        self._episodes = []
        if (task := getattr(self.source, "task", None)) is not None:
            values["schedule/task"] = float(task)
        values["time/frames"] = float(self.env_steps * self.source.frame_skip)
        return values

    def _episodes_of_all_ranks(self) -> list[tuple[float, float]]:
        return [episode for episodes in gather(self._episodes) for episode in episodes]

    def on_train_epoch_end(self) -> None:
        """End the run on its step count."""
        self._stop_if_done()

    def on_train_start(self) -> None:
        """Adapt the learning rate to a run that was made longer; stop one that was resumed after its end.

        In the middle of its last epoch a run is not over, though all of its steps have been collected.
        """
        if self._saved_total_steps not in (None, self.source.total_steps):
            # The checkpoint's rate belongs to a run of another length: 0 if that run had ended.
            for each in cast(Any, self.trainer).lr_scheduler_configs:
                each.scheduler.step()
        self._saved_total_steps = None
        if not cast(Any, self.trainer).fit_loop.restarting:
            self._stop_if_done()

    def _stop_if_done(self) -> None:
        if self.env_steps >= self.source.total_steps:
            self.trainer.should_stop = True

    # -- checkpoints -------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the episodes that were not reported yet, and the observations for monitors."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["learner"] |= {
            "episodes": [list(episode) for episode in self._episodes_of_all_ranks()],
            "seen": self._observations.latest(),
            "total_steps": self.source.total_steps,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on reporting where the checkpoint was written."""
        super().on_load_checkpoint(checkpoint)
        saved = checkpoint.get("learner", {})
        # The episodes of all ranks; one rank reports them.
        pending = saved.get("episodes", []) if self.global_rank == 0 else []
        self._episodes = [(value, length) for value, length in pending]
        self._observations.restore(saved.get("seen"))
        self._saved_total_steps = saved.get("total_steps")

    # -- evaluation --------------------------------------------------------------------------------------

    def validation_step(self, batch: Evaluation, batch_idx: int) -> None:
        """Play an evaluation's episodes; report raw returns and lengths over those of all ranks."""
        self._report_evaluation(batch.play())

    def test_step(self, batch: Evaluation, batch_idx: int) -> None:
        """Play and report episodes, as in validation."""
        self._report_evaluation(batch.play())

    def evaluate_current(self, batch: Evaluation) -> None:
        """Play and report the same episodes with the weights that are trained, while an average is evaluated.

        The reports are ``eval_current/*`` beside ``eval/*``, those of the average.
        """
        self._report_evaluation(batch.play(), "eval_current")

    def _report_evaluation(self, played: TensorDictBase, prefix: str = "eval") -> None:
        # In double precision: float32 overflows on the squares of very large returns.
        of_each_rank = gather((played["episode_return"].double(), played["episode_length"].double()))
        returns, lengths = (torch.cat(parts) for parts in zip(*of_each_rank, strict=True))
        scores = {
            "episode_return": returns.mean().float(),
            "episode_return_std": returns.std(correction=0).float(),
            "episode_length": lengths.mean().float(),
        }
        normalized = human_normalized_score(self.env_spec.env_id, float(scores["episode_return"]))
        if normalized is not None:
            scores["human_normalized_score"] = returns.new_tensor(normalized)
        self.report_evaluation({f"{prefix}/{name}": value for name, value in scores.items()})


def require_normalizable(spec: EnvSpec, normalize_observation: bool) -> None:
    """Check that observations may be standardized by running statistics: they must be vectors.

    Raises:
        UserError: If they are images, and ``normalize_observation`` is true.
    """
    if normalize_observation and spec.is_pixels:
        raise UserError(
            f"normalize_observation is for vectors, but {spec.env_id!r} shows images; expected false"
        )
