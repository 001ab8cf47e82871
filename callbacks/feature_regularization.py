"""Callback for features that stay near those of the policy that collected the data."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.auxiliary_loss import AuxiliaryLoss
from lit_gfs.errors import UserError
from lit_gfs.functional.auxiliary_losses import mean_squared_change
from lit_gfs.metrics.feature_recorder import FeatureRecorder, last_activation
from lit_gfs.metrics.module_protocol import (
    observations_of,
    optimized_parameters,
    policy_features,
    policy_head,
    require_policy_features,
)
from lit_gfs.steps.parameter_snapshot import ParameterSnapshot
from lit_gfs.steps.second_pass import run_aside


class FeatureRegularization(AuxiliaryLoss):
    """Keeps features near those at collection time: proximal feature optimization (Moalla et al. 2024).

    The clipped loss of PPO limits how far probabilities move within the epochs of a rollout, but nothing
    limits the features. The term is the mean squared difference of the pre-activations of the last layer
    before the module's ``policy_head`` from those of earlier parameters, on the same observations: a further
    pass without gradients, in evaluation mode.

    The earlier parameters are those of the last shift of the objective that was announced
    (`lit_gfs.steps.objective_shift`), or of the first step. PPO and PQN announce each rollout before they
    collect it, so they are the parameters of the policy that acted. DQN announces a copy to its target
    network, and a classifier its new labels. They are part of the checkpoint.

    Args:
        coefficient: Weight of the term; 1 is the authors' on Atari.
        name: Name in tags and in the checkpoint; must differ between all auxiliary losses.

    Raises:
        UserError: If the coefficient is negative, the module lacks ``policy_head``, ``policy_features`` or an
            activation module, or a batch has no observations.

    Example::

        trainer = Trainer(callbacks=[FeatureRegularization(coefficient=1.0)])
    """

    def __init__(self, coefficient: float = 1.0, name: str = "feature_regularization") -> None:
        super().__init__(name, coefficient)
        self._earlier: ParameterSnapshot | None = None
        self._recorder: FeatureRecorder | None = None

    @override
    def term(self, module: LightningModule, batch: Any, pre_activations: Tensor) -> Tensor:
        observations = observations_of(batch, type(self).__name__)
        before = self._pre_activations_before(module, observations)
        if before.shape != pre_activations.shape:
            raise UserError(
                f"{type(self).__name__} compares features of shape {tuple(pre_activations.shape)} in "
                f"training_step with {tuple(before.shape)} of the batch's observations; expected one shape"
            )
        return mean_squared_change(pre_activations, before)

    @torch.no_grad()
    def _pre_activations_before(self, module: LightningModule, observations: Tensor) -> Tensor:
        assert self._earlier is not None
        assert self._recorder is not None
        with self._recorder.recording(only_with_gradients=False):
            run_aside(
                module, lambda states: policy_features(module, states), observations, self._earlier.values
            )
        assert self._recorder.pre_activations is not None
        return self._recorder.pre_activations

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        require_policy_features(pl_module, type(self).__name__)
        super().on_fit_start(trainer, pl_module)
        trunk = getattr(pl_module, "trunk", pl_module)
        self._recorder = FeatureRecorder(policy_head(pl_module, type(self).__name__), last_activation(trunk))
        self._earlier = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restored = self._restored
        super().on_train_start(trainer, pl_module)
        self._earlier = ParameterSnapshot(optimized_parameters(trainer, pl_module))
        if restored is not None:
            self._earlier.load_state_dict(restored["earlier"])

    def on_objective_shift(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        """Compare with the parameters of now; see `announce_objective_shift`."""
        if self._earlier is not None:
            self._earlier.take()

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None or self._earlier is None:
            return super().state_dict()
        return {**super().state_dict(), "earlier": self._earlier.state_dict()}
