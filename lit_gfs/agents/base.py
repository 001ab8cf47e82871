"""What every agent shares: how it meets the data, and how it reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Protocol, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError
from lit_gfs.init import orthogonal_
from lit_gfs.metrics.scores import human_normalized_score
from lit_gfs.networks import Encoder, NatureCNN, Trunk, VectorEncoder, named_layers
from lit_gfs.objective_shift import announce_objective_shift

EncoderFactory = Callable[[tuple[int, ...]], Encoder]
"""Builds an encoder for an observation shape; in YAML a ``class_path`` with ``init_args``."""

TrunkFactory = Callable[[int], Trunk]
"""Builds a trunk for the encoder's feature count; in YAML a ``class_path`` with ``init_args``."""

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Builds an optimizer over parameters; in YAML any optimizer's ``class_path`` with ``init_args``."""

Initialization = Literal["orthogonal", "torch"]
"""``orthogonal``: gain sqrt(2), zero biases; ``torch``: what each PyTorch layer does by itself."""


class ExperienceSource(Protocol):
    """What an agent asks of its datamodule."""

    env_steps: int
    """Environment steps (agent decisions) collected so far, summed over envs and ranks."""
    total_steps: int
    """Environment steps after which the run ends."""
    frame_skip: int
    """Simulator frames per environment step."""


class Policy(TensorDictModuleBase):
    """Adapts a function of observations to what a TorchRL collector calls.

    The function's networks are deliberately not registered as submodules: collector and agent live in one
    process and share their weights, so there is nothing to copy.

    Args:
        act: Maps observations ``(num_envs, *shape)`` to named outputs ``(num_envs, ...)``, one of
            them ``action``.
        out_keys: The names of those outputs.
    """

    def __init__(self, act: Callable[[Tensor], Mapping[str, Tensor]], out_keys: Iterable[str]) -> None:
        super().__init__()
        self.in_keys = ["observation"]
        self.out_keys = list(out_keys)
        self._act = act

    @torch.no_grad()
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the outputs for ``observation`` into the tensordict."""
        for key, value in self._act(tensordict.get("observation")).items():
            tensordict.set(key, value)
        return tensordict


class Network(nn.Module):
    """Encoder, trunk and a linear head in a row.

    Args:
        spec: The environment, for the observation shape.
        encoder: Builds the encoder; ``None`` picks Nature CNN for pixels and a flat vector otherwise.
        trunk: Builds the trunk.
        initialization: How weights start.
    """

    def __init__(
        self,
        spec: EnvSpec,
        encoder: EncoderFactory | None,
        trunk: TrunkFactory,
        initialization: Initialization,
    ) -> None:
        super().__init__()
        if encoder is None:
            encoder = NatureCNN if spec.is_pixels else VectorEncoder
        self.encoder = encoder(spec.observation_shape)
        self.trunk = trunk(self.encoder.out_features)
        if initialization == "orthogonal":
            orthogonal_(self)

    @property
    def out_features(self) -> int:
        """The width of the features that heads read."""
        return self.trunk.out_features

    def features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to features ``(*batch, out_features)``."""
        return self.trunk(self.encoder(observation))

    def forward(self, observation: Tensor) -> Tensor:
        """Return the features, unless a subclass adds a head."""
        return self.features(observation)


class Agent(LightningModule):
    """Base of the agents: a thin LightningModule around pure losses.

    A datamodule drives the agent through four methods: `collection_policy` and `evaluation_policy` say how
    to act, `on_collection_start` and `on_collection_end` frame each piece of experience. Callbacks read
    `trunk`, `named_layers`, `policy_features`, `policy_head`, `loss`, `probe_batch` and `env_steps`.
    Quantities are gathered on the device with `record` and written every ``Trainer(log_every_n_steps)``
    optimizer steps, against environment steps.

    Args:
        env_spec: The environment's spaces; the command line fills it in from the datamodule.
    """

    def __init__(self, env_spec: EnvSpec) -> None:
        super().__init__()
        self.env_spec = env_spec
        # Lightning's name for an input that `forward` takes, for what measures the network.
        self.example_input_array = torch.zeros(1, *env_spec.observation_shape)
        self.latest_return: float | None = None
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._episodes: list[tuple[float, float]] = []
        self._clock: tuple[float, int] | None = None
        self._written_at = 0
        self._validation_began: float | None = None
        self._probe: Tensor | None = None

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
        seen = experience["observation"].flatten(0, 1)[-256:].clone()
        self._probe = seen if self._probe is None else torch.cat([self._probe, seen])[-256:]

    # -- learning ----------------------------------------------------------------------------------------

    def make_optimizer(self, build: OptimizerFactory, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Build an optimizer.

        Raises:
            UserError: If it refuses its arguments, or is known not to resume.
        """
        try:
            optimizer = build(parameters)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.optimizer: {error}") from error
        kind = type(optimizer)
        # By name: importing that library takes half a second, which most runs need not pay.
        if kind.__name__ == "Kron" and kind.__module__.startswith("pytorch_optimizer."):
            raise UserError(
                "model.optimizer is pytorch_optimizer.Kron, which draws differently in every process and "
                "after a resume; expected lit_gfs.optim.Kron"
            )
        return optimizer

    def annealed(self, optimizer: Optimizer, interval: Literal["epoch", "step"]) -> OptimizerLRScheduler:
        """Let the learning rate fall to 0 over the run: a function of environment steps alone.

        Args:
            optimizer: The optimizer whose learning rate falls.
            interval: Whether it falls after each Lightning epoch or after each optimizer step.
        """
        schedule = LambdaLR(optimizer, lambda _: 1.0 - self.progress)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": interval}}

    # -- what callbacks read -----------------------------------------------------------------------------

    @property
    def trunk(self) -> nn.Module:
        """The part of the network whose depth and width are studied."""
        raise NotImplementedError

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
    def policy_head(self) -> nn.Module:
        """The last layer of what decides on actions: its outputs' largest, or their value, is the action."""
        raise NotImplementedError

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to what `policy_head` reads, ``(*batch, out_features)``."""
        raise NotImplementedError

    def loss(self, batch: TensorDictBase) -> Tensor:
        """Return the loss ``()`` that training minimizes on a batch; it leaves no trace in the agent."""
        raise NotImplementedError

    def named_layers(self) -> dict[str, nn.Module]:
        """Layers by name: every trained module that owns parameters directly."""
        return named_layers(self)

    def probe_batch(self) -> Tensor | None:
        """Return up to 256 recent observations on the agent's device, or ``None`` before any were seen."""
        return None if self._probe is None else self._probe.to(self.device)

    def announce_objective_shift(self, reason: str) -> None:
        """Tell callbacks that the objective has changed, before the first step on the new one."""
        announce_objective_shift(self.trainer, self, reason)

    # -- reporting ---------------------------------------------------------------------------------------

    def record(self, values: Mapping[str, Tensor]) -> None:
        """Add scalars to the running means that are written next, without a host synchronization."""
        for tag, value in values.items():
            value = value.detach()
            self._sums[tag] = self._sums[tag] + value if tag in self._sums else value
            self._counts[tag] = self._counts.get(tag, 0) + 1

    def schedule_values(self) -> dict[str, float]:
        """Return the schedules' current values, for ``schedule/*``."""
        optimizer = cast(Any, self.optimizers(use_pl_optimizer=False))
        return {"schedule/learning_rate": optimizer.param_groups[0]["lr"]}

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int) -> None:
        """Write what was recorded, on log steps."""
        every, step = cast(Any, self.trainer).log_every_n_steps, self.trainer.global_step
        # A batch is not always a step: gradients may be accumulated, the rest of a rollout skipped.
        if every and step % every == 0 and step > self._written_at:
            self._written_at = step
            self._write()

    def on_train_epoch_end(self) -> None:
        """End the run on its step count."""
        self._stop_if_done()

    def on_train_start(self) -> None:
        """Leave a run alone that was resumed after its end; start the clock of the others."""
        self._clock = (time.monotonic(), self.env_steps)
        self._written_at = self.trainer.global_step
        self._stop_if_done()

    def on_validation_end(self) -> None:
        """Leave the time of evaluations out of the steps per second."""
        if self._clock is not None and self._validation_began is not None:
            self._clock = (self._clock[0] + time.monotonic() - self._validation_began, self._clock[1])

    def on_validation_start(self) -> None:
        """Note when an evaluation begins."""
        self._validation_began = time.monotonic()

    def on_train_end(self) -> None:
        """Write what the last log step left."""
        if self._sums:
            self._write()

    def _stop_if_done(self) -> None:
        if self.env_steps >= self.source.total_steps:
            self.trainer.should_stop = True

    def _write(self) -> None:
        steps = self.env_steps
        scalars: dict[str, float] = {}
        if self._sums:
            tags = sorted(self._sums)
            means = torch.stack([self._sums[tag].float() / self._counts[tag] for tag in tags]).tolist()
            scalars.update(zip(tags, means, strict=True))
        if self._episodes:
            returns, lengths = zip(*self._episodes, strict=True)
            scalars["train/episode_return"] = sum(returns) / len(returns)
            scalars["train/episode_length"] = sum(lengths) / len(lengths)
        scalars.update(self.schedule_values())
        scalars["time/frames"] = float(steps * self.source.frame_skip)
        now = time.monotonic()
        if self._clock is not None and steps > self._clock[1]:
            scalars["time/steps_per_second"] = (steps - self._clock[1]) / max(now - self._clock[0], 1e-9)
        if self._clock is None or steps > self._clock[1]:
            self._clock = (now, steps)
        self._sums, self._counts, self._episodes = {}, {}, []
        for logger in self.trainer.loggers:
            logger.log_metrics(scalars, step=steps)

    # -- evaluation --------------------------------------------------------------------------------------

    def validation_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Report finished evaluation episodes: raw returns and lengths, ``(episodes,)`` each."""
        self._report_evaluation(batch)

    def test_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """Report finished evaluation episodes, as in validation."""
        self._report_evaluation(batch)

    def _report_evaluation(self, episodes: TensorDictBase) -> None:
        returns = episodes["episode_return"].float()
        scores = {
            "eval/episode_return": returns.mean(),
            "eval/episode_return_std": returns.std(correction=0),
            "eval/episode_length": episodes["episode_length"].float().mean(),
        }
        normalized = human_normalized_score(self.env_spec.env_id, float(scores["eval/episode_return"]))
        if normalized is not None:
            scores["eval/human_normalized_score"] = returns.new_tensor(normalized)
        # Lightning would log against optimizer steps; checkpoints still need the value under its name.
        self.log_dict(scores, logger=False, batch_size=1, sync_dist=True)
        if self.trainer.validating:
            for logger in self.trainer.loggers:
                logger.log_metrics({tag: float(value) for tag, value in scores.items()}, step=self.env_steps)
