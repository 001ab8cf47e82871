"""Base of the callbacks that change weights after the optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from lit_gfs.callbacks.named_callback import NamedCallback
from lit_gfs.errors import UserError
from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.metrics.module_protocol import layers_of, trained_parameters, write_scalars
from lit_gfs.plasticity.taken_steps import has_gradients, skip_flag, undone_where
from lit_gfs.steps.step_guard import require_whole_gradients


@dataclass
class SteppedLayers:
    """The layers that one optimizer trains.

    Attributes:
        optimizer: The optimizer.
        parameters: The layers' parameters, those that it trains alone.
        trained: The ids of all parameters that it trains.
        steps: Its steps since the beginning of training, without skipped ones. A step that is skipped on
            a GPU counts, because the host does not know of it.
    """

    optimizer: Optimizer
    parameters: dict[str, list[nn.Parameter]] = field(default_factory=dict)
    trained: list[int] = field(default_factory=list)
    steps: int = 0

    def weights(self) -> list[Tensor]:
        """Return the parameters of all layers."""
        return [parameter for owned in self.parameters.values() for parameter in owned]


class WeightIntervention(NamedCallback):
    """Base of the callbacks that change weights after each optimizer step.

    A hook of each optimizer calls `intervene` after the optimizer's step, so accumulated gradients count as
    one step, and manual optimization works too. Whatever follows sees the changed weights: averages of the
    weights, target networks, evaluations, checkpoints. All ranks have the same weights under DDP, and must
    change them in the same way. Changes are in place, because CUDA graphs and compiled networks hold the
    memory of the weights.

    No weight changes in a step that is skipped, by the NaN guard or by the loss scaler of 16-bit mixed
    precision. If a fused optimizer skips a step on a GPU, the change is undone there; the host does not wait.

    It writes the means of what `intervene` returns, as ``intervention/<name>/*``, every
    ``Trainer(log_every_n_steps)`` steps.

    Args:
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._parts: list[SteppedLayers] = []
        self._hooks: list[RemovableHandle] = []
        self._tags: list[str] = []
        self._sums = torch.zeros(0)
        """Sums over steps ``(S,)`` of what `intervene` returned."""
        self._summed = 0
        """Number of steps in the sums."""

    @property
    def is_running(self) -> bool:
        """Whether training has begun and goes on."""
        return bool(self._hooks)

    # -- for subclasses ----------------------------------------------------------------------------------

    def begin(self, trainer: Trainer, pl_module: LightningModule, parts: list[SteppedLayers]) -> None:
        """Prepare for training; the weights are those before the first step, or those of a checkpoint.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            parts: The layers by optimizer, in the order of ``trainer.optimizers``.
        """

    def layers_changed(self, pl_module: LightningModule, part: SteppedLayers) -> None:
        """Adapt to other parameters of an optimizer: a hook has frozen, unfrozen or added some."""

    def before_step(self, pl_module: LightningModule, part: SteppedLayers) -> None:
        """Act before an optimizer step. Do not change weights here, because the step may be skipped."""

    def intervene(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        """Change weights in place, under ``no_grad``, after an optimizer step.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            part: The optimizer with its layers; ``part.steps`` counts this step.

        Returns:
            Scalars ``()`` by their tags below ``intervention/<name>/``, on the device; the tags are the same
            in all steps that have any. Their means are written.
        """
        raise NotImplementedError

    def saved(self) -> dict[str, Any]:
        """Return the state of the subclass for a checkpoint: numbers, strings, lists, dicts and tensors."""
        return {}

    def restore(self, saved: dict[str, Any]) -> None:
        """Take the state of a checkpoint back; called after `begin`. Tensors are on the CPU."""

    # -- Hooks of Lightning ------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            require_whole_gradients(trainer, type(self).__name__, "weights")

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()
        if self._restored is None and trainer.global_step > 0:
            self._restored = self.state_dict()  # the same Trainer continues to fit
        self._parts = [SteppedLayers(optimizer) for optimizer in trainer.optimizers]
        for part in self._parts:
            self._find_layers(pl_module, part)
        if not any(part.parameters for part in self._parts):
            raise UserError(
                f"{type(self).__name__} found no layer to work on: {type(pl_module).__name__} has no "
                "module with parameters that require gradients and belong to an optimizer"
            )

    @override
    @torch.no_grad()
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not when fitting starts: initializations act then, and the optimizer's state is restored later.
        restored = self._take_restored(trainer)
        self._tags, self._sums, self._summed = [], torch.zeros(0), 0
        self.begin(trainer, pl_module, self._parts)
        if restored is not None:
            for part, steps in zip(self._parts, restored["steps"], strict=False):
                part.steps = steps
            gathered = restored["gathered"]
            self._tags, self._sums, self._summed = gathered["tags"], gathered["sums"], gathered["steps"]
            self.restore(restored["state"])
        for part in self._parts:
            before = partial(self._before_step, pl_module, part)
            after = partial(self._after_step, trainer, pl_module, part)
            if type(self).before_step is not WeightIntervention.before_step:
                self._hooks.append(part.optimizer.register_step_pre_hook(before))
            self._hooks.append(part.optimizer.register_step_post_hook(after))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove_hooks()
        super().on_train_end(trainer, pl_module)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove_hooks()

    # ----------------------------------------------------------------------------------------------------

    def _find_layers(self, pl_module: LightningModule, part: SteppedLayers) -> None:
        trained = trained_parameters(part.optimizer)
        part.trained = [id(parameter) for parameter in trained]
        part.parameters = parameters_by_layer(layers_of(pl_module), trained)

    @torch.no_grad()
    def _before_step(self, pl_module: LightningModule, part: SteppedLayers, *step: Any) -> None:
        self._follow(pl_module, part)
        if part.parameters:
            self.before_step(pl_module, part)

    @torch.no_grad()
    def _after_step(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers, *step: Any
    ) -> None:
        flag = skip_flag(part.optimizer)
        is_skipped = flag is not None and flag.device.type == "cpu" and bool(flag)
        if is_skipped or not has_gradients(trained_parameters(part.optimizer)):
            return
        self._follow(pl_module, part)
        part.steps += 1
        if part.parameters:
            with undone_where(flag, part.weights()):
                values = self.intervene(trainer, pl_module, part)
            self._add(values)

    def _follow(self, pl_module: LightningModule, part: SteppedLayers) -> None:
        """Find the layers anew if a hook has frozen, unfrozen or added parameters."""
        if [id(parameter) for parameter in trained_parameters(part.optimizer)] != part.trained:
            self._find_layers(pl_module, part)
            self.layers_changed(pl_module, part)

    def _add(self, values: Mapping[str, Tensor]) -> None:
        if not values:
            return
        stacked = torch.stack([value.float() for value in values.values()])
        if list(values) != self._tags:
            self._tags, self._sums, self._summed = list(values), torch.zeros_like(stacked), 0
        self._sums = self._sums.to(stacked.device) + stacked
        self._summed += 1

    @override
    def _saved_state(self) -> dict[str, Any]:
        return {
            "steps": [part.steps for part in self._parts],
            "gathered": {"tags": list(self._tags), "sums": self._sums.clone(), "steps": self._summed},
            "state": self.saved(),
        }

    @override
    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._summed:
            return
        means = (self._sums / self._summed).tolist()  # a single transfer to the host
        self._sums, self._summed = torch.zeros_like(self._sums), 0
        tagged = {f"intervention/{self.name}/{tag}": v for tag, v in zip(self._tags, means, strict=True)}
        write_scalars(trainer, pl_module, tagged)

    def _remove_hooks(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
