"""Base of the callbacks that scale gradients before the optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lit_gfs.callbacks.named_callback import NamedCallback
from lit_gfs.callbacks.nan_guard import NaNGuard
from lit_gfs.errors import UserError
from lit_gfs.gradients import LayerwiseScaling
from lit_gfs.gradients.optimizer_scaling import OptimizerScaling
from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.metrics.layer_scalars import write_measurement
from lit_gfs.metrics.module_protocol import layers_of, trained_parameters
from lit_gfs.steps.step_guard import forget_skip, require_whole_gradients, unscale_gradients
from lit_gfs.steps.step_skipper import MOST_UNREAD, StepSkipper
from lit_gfs.steps.step_witness import StepWitness


class GradientIntervention(NamedCallback):
    """Base of the callbacks that scale gradients, layer by layer, before each optimizer step.

    Each optimizer has its own algorithm, which scales the layers of this optimizer. Gradients are those of a
    whole step: accumulated, without loss scale, and averaged over the ranks under DDP, so all ranks apply the
    same factors. The host synchronizes with the device only on log steps, and every 50 steps if this callback
    skips non-finite steps.

    If any gradient is not finite, no gradient is scaled and no algorithm changes its state. The step is
    skipped, with a warning about the layers at the first, the tenth, the hundredth, ... of such steps.
    `lit_gfs.callbacks.NaNGuard` skips it if it is present; otherwise the last of these callbacks does.
    Gradients of parameters without a layer do not change.

    It writes ``intervention/<name>/*`` every ``Trainer(log_every_n_steps)`` steps.

    Args:
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.per_layer = False
        """Whether each layer has charts of its own."""
        self._parts: list[OptimizerScaling] = []
        self._skipper = StepSkipper(name)
        self._skips = False
        self._witness = StepWitness(type(self).__name__)

    def make_algorithm(self) -> LayerwiseScaling:
        """Build the algorithm for one optimizer."""
        raise NotImplementedError

    def scalars(self, layers: list[str], scales: Tensor, clipped: Tensor) -> dict[str, float]:
        """Return the logged values by their tags below ``intervention/<name>/``.

        Args:
            layers: Names of the L layers.
            scales: Mean factor of each layer since the last write, ``(L,)`` on the CPU.
            clipped: Share of steps with a factor below 1 for each layer, ``(L,)`` on the CPU.
        """
        raise NotImplementedError

    def layer_scalars(self, layers: list[str], scales: Tensor, clipped: Tensor) -> dict[str, float]:
        """Return values of single layers, as for `scalars`; they have charts if `per_layer` is true."""
        return {}

    # -- Hooks of Lightning ------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_gradients(trainer, type(self).__name__)
        if trainer.gradient_clip_val:
            raise MisconfigurationException(
                f"{type(self).__name__} and Trainer(gradient_clip_val={trainer.gradient_clip_val}) would "
                "both scale gradients, the Trainer last and unseen; expected trainer.gradient_clip_val null "
                "(TemporalGradientClipping with scope 'global' clips the global norm)"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is None and trainer.global_step > 0:
            self._restored = self.state_dict()  # the same Trainer continues to fit
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise UserError(
                f"{type(self).__name__} does not suit LBFGS, whose line search compares unscaled gradients; "
                "expected an optimizer that takes one gradient per step"
            )
        self._parts = [OptimizerScaling(self.make_algorithm()) for _ in trainer.optimizers]
        self._skipper.forget()
        callbacks = cast(Any, trainer).callbacks
        others = [each for each in callbacks if isinstance(each, GradientIntervention)]
        # Only the last intervention skips: a skipped step may have zero gradients, which others would scale.
        self._skips = others[-1] is self and not any(isinstance(each, NaNGuard) for each in callbacks)
        self._find_layers(trainer, pl_module)
        if not any(part.parameters for part in self._parts):
            raise UserError(
                f"{type(self).__name__} found no layer to work on: {type(pl_module).__name__} has no "
                "module with parameters that require gradients and belong to an optimizer"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._witness.begin(trainer)
        restored = self._take_restored(trainer)
        if restored is None:
            return
        for part, state in zip(self._parts, restored["algorithms"], strict=False):
            part.algorithm.load_state_dict(state)
        for part, gathered in zip(self._parts, restored["gathered"], strict=False):
            part.load_gathered(gathered)

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._witness.see()
        part = self._parts[trainer.optimizers.index(optimizer)]
        if [id(parameter) for parameter in trained_parameters(optimizer)] != part.trained:
            # A hook has frozen, unfrozen or added parameters since the optimizer's last step.
            self._find_layers(trainer, pl_module)
        if part.has_gradients and unscale_gradients(trainer, optimizer):
            part.apply(self._group(part.parameters))
        if self._skips:
            self._skipper.before_step(trainer, pl_module, optimizer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if len(self._skipper.unread) >= MOST_UNREAD:
            self._skipper.read(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._skipper.read(pl_module)
        self._witness.end(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._skips:
            for optimizer in trainer.optimizers:
                forget_skip(optimizer)

    # ----------------------------------------------------------------------------------------------------

    def _find_layers(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layers = layers_of(pl_module)
        for part, optimizer in zip(self._parts, trainer.optimizers, strict=True):
            trained = trained_parameters(optimizer)
            part.trained = [id(parameter) for parameter in trained]
            part.parameters = parameters_by_layer(layers, trained)

    def _group(self, parameters: Mapping[str, list[nn.Parameter]]) -> Mapping[str, list[nn.Parameter]]:
        """Group the parameters, given by layer; each group gets one factor. By default, groups are layers."""
        return parameters

    @override
    def _saved_state(self) -> dict[str, Any]:
        return {
            "algorithms": [part.algorithm.state_dict() for part in self._parts],
            "gathered": [part.gathered() for part in self._parts],
        }

    @override
    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._skipper.read(pl_module)
        layers, scales, clipped = [], [], []
        for part in self._parts:
            if part.steps:
                layers += part.algorithm.layers
                mean_scales, mean_clipped = part.totals.cpu() / part.steps  # a single transfer to the host
                scales.append(mean_scales)
                clipped.append(mean_clipped)
                part.forget()
        if not layers:
            return
        source, measured = f"intervention/{self.name}", (layers, torch.cat(scales), torch.cat(clipped))
        named, of_layers = (
            {f"{source}/{tag}": value for tag, value in values.items()}
            for values in (self.scalars(*measured), self.layer_scalars(*measured))
        )
        write_measurement(trainer, pl_module, source, named, of_layers, self.per_layer)
