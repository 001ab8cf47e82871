"""Callback that draws the last layers anew now and then (against the primacy bias)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lit_gfs.callbacks.reset_intervention import (
    ResetIntervention,
    path_init_of,
    tell_averages,
)
from lit_gfs.callbacks.weight_intervention import SteppedLayers
from lit_gfs.errors import UserError, require_between
from lit_gfs.metrics.module_protocol import example_of, layers_of, unit_of, x_axis
from lit_gfs.optim.kron import Kron
from lit_gfs.optim.layer_positions import last_layers
from lit_gfs.optim.moments import forget_
from lit_gfs.plasticity.fresh_weights import can_redraw
from lit_gfs.steps.objective_shift import announce_initialization, announce_objective_shift
from lit_gfs.steps.skipped_steps import listed


class LayerResets(ResetIntervention):
    """Draws the last layers anew every so many steps (Nikishin et al. 2022, arXiv 2205.07802).

    Deep-RL agents overfit to their first experience. Layers that start again, while the replay memory stays,
    learn from all experience. The paper resets the last layer of SPR on Atari every 20,000 steps (the
    default), the last 3 of 7 layers of DrQ, and all layers of SAC every 200,000 steps.

    Weights and biases are drawn as they were initialized: by `PathSensitiveInit` if the run has it, else
    orthogonal or by ``reset_parameters``. The optimizer forgets these parameters, as if they had not been
    stepped. Averages of the weights (`lit_gfs.callbacks.EMAWeights`) take the new values over. Then the
    module's method ``on_weights_initialized`` is called, if it has one: DQN copies its target network. Last,
    the objective shift ``layer_reset`` is announced, so clipping by history re-opens its statistics and
    `AdamResets` acts.

    It writes below ``intervention/layer_resets/``: ``layers``, the number of layers that were drawn anew.

    Args:
        every: Steps between two resets, on the x axis: environment steps, or optimizer steps where the module
            has no ``env_steps``.
        layers: Number of layers with a matrix, counted from the outputs on the longest path; heads are the
            first. ``all`` takes all layers that can be drawn, normalizations included.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, the module has no ``example_input_array``, or a chosen
            layer cannot be drawn anew.

    Example::

        trainer = Trainer(callbacks=[LayerResets(every=20_000)])
    """

    def __init__(
        self, every: int = 20_000, layers: int | Literal["all"] = 1, name: str = "layer_resets"
    ) -> None:
        super().__init__(name)
        require_between(1, float("inf"), every=every)
        count: Any = layers  # as users may write anything
        if count != "all" and not (isinstance(count, int) and count >= 1):
            raise UserError(f"layers is {count!r}; expected a whole number of at least 1, or 'all'")
        self.every = every
        self.layers = layers
        self.chosen: dict[str, nn.Module] = {}
        """The layers that are drawn anew, by name."""
        self._reset_at: list[int] = []
        """For each optimizer, where on the x axis it was looked at last."""

    @override
    def begin(self, trainer: Trainer, pl_module: LightningModule, parts: list[SteppedLayers]) -> None:
        self._reset_at = [x_axis(trainer, pl_module)] * len(parts)
        self.chosen = self._find_layers_to_reset(trainer, pl_module)
        unfit = [name for name, layer in self.chosen.items() if not can_redraw(layer)]
        if unfit and self.layers != "all":
            raise UserError(
                f"LayerResets cannot draw {listed(unfit)} anew; expected layers with reset_parameters() for "
                "all parameters, and without parametrizations"
            )
        if unfit:
            rank_zero_warn(
                f"LayerResets leaves {listed(unfit)} as they are: they have no reset_parameters() for all of "
                "their parameters"
            )
            self.chosen = {name: layer for name, layer in self.chosen.items() if name not in unfit}
        if any(isinstance(part.optimizer, Kron) for part in parts):
            rank_zero_warn("LayerResets draws weights anew, but Kron keeps its preconditioners of them")
        how = "their own initialization" if path_init_of(trainer) is None else "PathSensitiveInit"
        rank_zero_info(
            f"LayerResets draws {listed(list(self.chosen))} anew every {self.every:,} "
            f"{unit_of(pl_module)}s, by {how}"
        )

    @override
    def is_due(self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers) -> bool:
        return True  # `reset` decides, at the end of the batch, when the Trainer has counted the step

    @override
    def reset(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        index, now = self._parts.index(part), x_axis(trainer, pl_module)
        is_due = now // self.every > self._reset_at[index] // self.every
        self._reset_at[index] = now
        return self._draw(trainer, pl_module, part) if is_due else {}

    @override
    def saved(self) -> dict[str, Any]:
        return {"reset_at": list(self._reset_at)}

    @override
    def restore(self, saved: dict[str, Any]) -> None:
        self._reset_at[: len(saved["reset_at"])] = saved["reset_at"]

    def _draw(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        """Draw those of the layers anew that an optimizer trains."""
        trained = set(part.trained)
        layers = [
            layer
            for layer in self.chosen.values()
            if any(id(parameter) in trained for parameter in layer.parameters(recurse=False))
        ]
        parameters = [
            parameter
            for layer in layers
            for parameter in layer.parameters(recurse=False)
            if id(parameter) in trained
        ]
        if not parameters:
            return {}
        fresh = self.fresh_weights(trainer, pl_module, part, layers)
        for parameter in parameters:
            parameter.copy_(fresh[parameter])
        forget_(part.optimizer, parameters)
        every = {parameter: torch.ones_like(parameter, dtype=torch.bool) for parameter in parameters}
        tell_averages(trainer, pl_module, every)
        announce_initialization(pl_module)
        announce_objective_shift(trainer, pl_module, "layer_reset")
        return {"layers": torch.tensor(float(len(layers)))}

    def _find_layers_to_reset(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, nn.Module]:
        named = layers_of(pl_module)
        if self.layers == "all":
            return named
        example = example_of(trainer, pl_module, "LayerResets")
        with trainer.precision_plugin.forward_context():
            last = set(last_layers(pl_module, example, self.layers))
        return {name: layer for name, layer in named.items() if layer in last}
