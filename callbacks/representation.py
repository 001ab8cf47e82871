"""Monitor of a network's representation: dormant units, rank of the features, and policy churn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from typing_extensions import override

from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.action_distributions import logits_by_part
from lit_gfs.metrics.activation_recorder import ACTIVATIONS, ActivationRecorder, named_weight_layers
from lit_gfs.metrics.layer_scalars import write_measurement
from lit_gfs.metrics.module_protocol import trains_policy
from lit_gfs.metrics.pace import Interval, Pace, interval_in
from lit_gfs.metrics.representation import (
    dormant_share,
    effective_rank,
    feature_norm,
    greedy_churn,
    mean_action_churn,
    singular_values,
    srank,
)

_MAX_STATES = 256
"""Largest number of states of a training batch for the rank of the features; equals the size of a probe
batch."""

_OF_LAYERS = "representation/dormant/"


class _Agent(Protocol):
    """Interface of modules whose policy can be measured."""

    env_spec: Any
    """Has ``is_discrete``, and for actions of several parts ``action_choices``."""
    policy_head: nn.Module

    def probe_batch(self) -> Tensor | None: ...

    def policy_features(self, observation: Tensor) -> Tensor: ...


@dataclass
class _PolicyBefore:
    """The policy before an optimizer step, on B states."""

    probe: Tensor
    """Observations ``(B, *shape)``."""
    features: Tensor
    """Input of the policy head, ``(B, width)``."""
    outputs: Tensor
    """Output of the policy head, ``(B, n)``."""
    head: dict[str, Tensor]
    """Copies of the head's parameters and buffers."""


class RepresentationMonitor(Callback):
    """Logs dormant units, the rank of the features, and the policy churn of one optimizer step.

    It writes to all loggers at the first optimizer step, and then every ``every_n_steps`` steps:

    - ``representation/dormant_share``: share of dormant units over all layers with an activation;
    - ``representation/srank``, ``representation/effective_rank``, ``representation/feature_norm``: of the
      features of up to 256 states;
    - ``policy/churn``: share of states whose greedy action changes by the optimizer step; for continuous
      actions, the mean absolute change of the mean action;
    - ``policy/churn_representation``, ``policy/churn_head``: churn of the new features with the old head, and
      of the old features with the new head.

    With ``per_layer`` it also writes ``representation/dormant/<layer>``, the share of dormant units after the
    layer's activation. Otherwise TensorBoard's event file has these numbers as a tensor without a chart.

    A module with ``probe_batch()``, ``policy_features(observation)``, ``policy_head`` and ``env_spec`` (such
    as the agents of this package) is measured on its probe batch, in evaluation mode and before the step.
    Features are its ``policy_features``. The measurement does not affect training, and it waits until there
    is a probe batch. Any other module is measured on the forward pass of the training batch, as far as
    gradients flow. Features are the input of the last layer that ran, and there is no churn. Layers are those
    of the module's ``named_layers()`` if it has this method, else all modules with trainable parameters.

    An activation is the output of an activation module such as ``nn.ReLU``; functional calls are invisible.
    It has the name of the last layer with a weight matrix that ran before it, also if a normalization ran in
    between. If a layer runs several times, the last run counts.

    Steps are counted by the Trainer's ``global_step``. With several optimizers, the one with parameters of
    the policy head is measured; churn includes all changes until the end of the batch. Under DDP, rank zero
    measures; sharded strategies are not supported. The x axis is the module's ``env_steps`` if it has them,
    else ``global_step``.

    Args:
        every_n_steps: Optimizer steps between two measurements; ``auto`` measures about 100 times in a run,
            but at most in every 20th step.
        tau: A unit is dormant if its mean absolute activation is at most this share of its layer's mean.
        per_layer: Whether each layer has a chart of its own.

    Raises:
        UserError: If an argument is out of range, or the module has no layer or no activation module.

    Example::

        trainer = Trainer(callbacks=[RepresentationMonitor(every_n_steps=500)])
    """

    pace: ClassVar[Pace] = Pace(points=100, least=20, otherwise=1_000)
    """What an interval of ``auto`` stands for."""

    def __init__(self, every_n_steps: Interval = "auto", tau: float = 0.025, per_layer: bool = False) -> None:
        if every_n_steps != "auto":
            require_between(1, float("inf"), every_n_steps=every_n_steps)
        require_between(0, 1, tau=tau)
        self.every_n_steps = every_n_steps
        self.tau = tau
        self.per_layer = per_layer
        self.interval = 1
        """Optimizer steps between two measurements of the run."""
        self._recorder = ActivationRecorder({}, [])
        self._measured_at: int | None = None
        self._values: dict[str, Tensor] = {}
        self._before: _PolicyBefore | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers = named_weight_layers(pl_module)
        activations = [module for module in pl_module.modules() if isinstance(module, ACTIVATIONS)]
        name = type(pl_module).__name__
        if not any(layers.values()):
            raise UserError(
                f"{name} has no trainable layer: expected at least one module with a weight matrix that "
                "requires gradients"
            )
        if not activations:
            raise UserError(
                f"{name} has no activation module: expected at least one, such as nn.ReLU; functional calls "
                "cannot be watched"
            )
        self._recorder = ActivationRecorder(layers, activations)
        self._values, self._before = {}, None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interval = interval_in(trainer, self.every_n_steps, self.pace)

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer) and _agent_of(pl_module) is None:
            self._recorder.attach(only_with_gradients=True)

    @override
    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # The backward pass may run layers again, as with activation checkpointing.
        self._recorder.detach()

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        if not self._is_due(trainer) or not trains_policy(pl_module):
            return
        agent = _agent_of(pl_module)
        if agent is None:
            if self._recorder.features is not None:
                self._measure(trainer, self._recorder.features[:_MAX_STATES])
        elif len(trainer.optimizers) == 1 or _holds(optimizer, agent.policy_head):
            self._probe_policy(trainer, pl_module, agent)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        self._recorder.detach()  # a manual ``loss.backward()`` does not call on_before_backward
        if not self._values:
            return
        agent = _agent_of(pl_module)
        if agent is not None and self._before is not None:
            with _side_effects_undone(trainer, pl_module):
                self._values |= _churn(agent, self._before)
        stacked = torch.stack([value.to(pl_module.device).float() for value in self._values.values()])
        scalars = dict(zip(self._values, stacked.tolist(), strict=True))  # a single transfer to the host
        self._values, self._before = {}, None
        of_layers = {tag: scalars.pop(tag) for tag in list(scalars) if tag.startswith(_OF_LAYERS)}
        write_measurement(trainer, pl_module, "representation", scalars, of_layers, self.per_layer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._recorder.detach()

    @override
    def state_dict(self) -> dict[str, Any]:
        # The step alone does not determine this: a measurement waits for a probe batch and its optimizer.
        return {"measured_at": self._measured_at}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured_at = state_dict["measured_at"]

    def _is_due(self, trainer: Trainer) -> bool:
        if not trainer.is_global_zero:
            return False
        period = trainer.global_step // self.interval
        return self._measured_at is None or period != self._measured_at // self.interval

    def _probe_policy(self, trainer: Trainer, pl_module: LightningModule, agent: _Agent) -> None:
        probe = agent.probe_batch()
        if probe is None:
            return
        probe = trainer.precision_plugin.convert_input(probe)
        with _side_effects_undone(trainer, pl_module):
            self._recorder.attach()
            try:
                features = agent.policy_features(probe)
            finally:
                self._recorder.detach()
            outputs = agent.policy_head(features)
        named_tensors = (*agent.policy_head.named_parameters(), *agent.policy_head.named_buffers())
        head = {name: tensor.detach().clone() for name, tensor in named_tensors}
        self._before = _PolicyBefore(probe, features, outputs, head)
        self._measure(trainer, features)

    def _measure(self, trainer: Trainer, features: Tensor) -> None:
        """Compute the scalars, on the device, from features ``(B, width)`` and the recorded activations."""
        self._measured_at = trainer.global_step
        values = singular_values(features)
        self._values = {
            "representation/srank": srank(values),
            "representation/effective_rank": effective_rank(values),
            "representation/feature_norm": feature_norm(features),
        }
        scores = self._recorder.scores
        if scores:
            all_scores = torch.cat([layer.to(features.device) for layer in scores.values()])
            self._values["representation/dormant_share"] = dormant_share(all_scores, self.tau)
        for name, layer in scores.items():
            self._values[_OF_LAYERS + name] = dormant_share(layer, self.tau)


def _agent_of(pl_module: LightningModule) -> _Agent | None:
    """Return the module if it has the interface of an agent, else ``None``."""
    needed = ("probe_batch", "policy_features", "policy_head", "env_spec")
    return cast(_Agent, pl_module) if all(hasattr(pl_module, name) for name in needed) else None


def _holds(optimizer: Optimizer, module: nn.Module) -> bool:
    """Return whether the optimizer has a parameter of the module."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return any(id(parameter) in held for parameter in module.parameters())


@contextmanager
def _side_effects_undone(trainer: Trainer, pl_module: LightningModule) -> Iterator[None]:
    """Run in evaluation mode and without gradients; restore the mode and the random states on exit."""
    training = [module for module in pl_module.modules() if module.training]
    for module in training:
        module.training = False
    try:
        with (
            # Compiled networks do not call hooks.
            torch.compiler.set_stance("force_eager"),
            isolate_rng(),
            torch.no_grad(),
            trainer.precision_plugin.forward_context(),
        ):
            yield
    finally:
        for module in training:
            module.training = True


def _churn(agent: _Agent, before: _PolicyBefore) -> dict[str, Tensor]:
    """Compute the churn of the whole policy, of its features, and of its head; the other part stays fixed."""
    head, churn = agent.policy_head, _churn_metric(agent.env_spec)
    features = agent.policy_features(before.probe)
    outputs = {
        "policy/churn": head(features),
        "policy/churn_representation": functional_call(head, before.head, (features,)),
        "policy/churn_head": head(before.features),
    }
    return {tag: churn(before.outputs, after) for tag, after in outputs.items()}


def _churn_metric(spec: Any) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the churn for a kind of actions; all parts of an action have the same weight."""
    if choices := getattr(spec, "action_choices", None):
        return lambda before, after: greedy_churn(
            logits_by_part(before, choices), logits_by_part(after, choices)
        )
    return greedy_churn if spec.is_discrete else mean_action_churn
