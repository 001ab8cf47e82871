"""Base of the callbacks that reset single units of hidden layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from lit_gfs.callbacks.reset_intervention import (
    ResetIntervention,
    tell_averages,
)
from lit_gfs.callbacks.weight_intervention import SteppedLayers
from lit_gfs.errors import UserError, require_between
from lit_gfs.metrics.module_protocol import example_of, layers_of
from lit_gfs.optim.moments import reset_moments_
from lit_gfs.plasticity.fresh_weights import can_redraw
from lit_gfs.plasticity.unit_layers import UnitLayer, UnitMap, map_units
from lit_gfs.plasticity.unit_resets import reset_units_
from lit_gfs.steps.skipped_steps import listed


class UnitResets(ResetIntervention):
    """Base of the callbacks that reset units with a low score: new incoming weights, no outgoing ones.

    See `lit_gfs.plasticity.unit_resets.reset_units_` for what a reset does, and
    `lit_gfs.plasticity.unit_layers.map_units` for the layers whose units can be reset. At the start one line
    names the others. The optimizer forgets the moments of the weights that were reset, and averages of the
    weights (`lit_gfs.callbacks.EMAWeights`) take them over. Target networks are left to their own pace. No
    shift of the objective is announced, because the outputs hardly change.

    It writes below ``intervention/<name>/``: ``reset_units``, the number of units that were reset;
    ``reset_share``, their share among the units that can be. Values are means over the resets since the last
    point.

    Args:
        every_n_steps: Optimizer steps between two resets.
        tau: Largest score of a unit that is reset.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.
    """

    def __init__(self, every_n_steps: int, tau: float, name: str) -> None:
        super().__init__(name)
        require_between(1, float("inf"), every_n_steps=every_n_steps)
        require_between(0, 1, tau=tau)
        self.every_n_steps = every_n_steps
        self.tau = tau
        self.units = UnitMap({}, {})
        """The layers whose units can be reset, and the others."""

    def scores(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        part: SteppedLayers,
        layers: Mapping[str, UnitLayer],
    ) -> dict[str, Tensor]:
        """Return the scores ``(units,)`` of layers, the same on all ranks; a score of NaN resets nothing.

        Args:
            trainer: The Trainer.
            pl_module: Its module.
            part: The optimizer that trains the layers.
            layers: The layers by name. Those without scores are left as they are.
        """
        raise NotImplementedError

    @override
    def begin(self, trainer: Trainer, pl_module: LightningModule, parts: list[SteppedLayers]) -> None:
        self.units = self._find_units(trainer, pl_module)
        name = type(self).__name__
        if not self.units.layers:
            reasons = (
                "; ".join(dict.fromkeys(self.units.left_out.values())) or "no hidden layer has an activation"
            )
            raise UserError(f"{name} found no units to reset in {type(pl_module).__name__}: {reasons}")
        if self.units.left_out:
            reasons = "; ".join(dict.fromkeys(self.units.left_out.values()))
            rank_zero_warn(f"{name} resets no units of {listed(list(self.units.left_out))}: {reasons}")
        self.warn_of_kept_memory()

    @override
    def is_due(self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers) -> bool:
        return part.steps % self.every_n_steps == 0

    @override
    def reset(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        trained = set(part.trained)
        # An optimizer may have frozen or given up parameters since the start.
        layers = {
            name: layer
            for name, layer in self.units.layers.items()
            if all(id(parameter) in trained for parameter in layer.parameters())
        }
        scores = self.scores(trainer, pl_module, part, layers)
        if not scores:
            return {}
        chosen = {name: each <= self.tau for name, each in scores.items()}
        drawn = [each for name in chosen for each in _modules_that_lead_in(pl_module, layers[name])]
        entries = reset_units_(layers, chosen, self.fresh_weights(trainer, pl_module, part, drawn))
        reset_moments_(part.optimizer, entries)
        tell_averages(trainer, pl_module, entries)
        every = torch.cat(list(chosen.values())).float()
        return {"reset_units": every.sum(), "reset_share": every.mean()}

    def _find_units(self, trainer: Trainer, pl_module: LightningModule) -> UnitMap:
        example = example_of(trainer, pl_module, type(self).__name__)
        found = map_units(pl_module, example, layers_of(pl_module))
        split = [
            name
            for name, layer in found.layers.items()
            if not any({id(p) for p in layer.parameters()} <= set(part.trained) for part in self._parts)
        ]
        left_out = dict.fromkeys(split, "no single optimizer trains all of their weights")
        for name, layer in found.layers.items():
            if not all(map(can_redraw, _modules_that_lead_in(pl_module, layer))):
                left_out.setdefault(name, "a normalization has no reset_parameters()")
        kept = {name: layer for name, layer in found.layers.items() if name not in left_out}
        return UnitMap(kept, {**found.left_out, **left_out})


def _modules_that_lead_in(pl_module: LightningModule, layer: UnitLayer) -> list[nn.Module]:
    """Return a layer and the normalizations between it and its activation."""
    norms = {id(share.parameter) for share in layer.norms}
    owners = [
        each for each in pl_module.modules() if any(id(p) in norms for p in each.parameters(recurse=False))
    ]
    return [layer.layer, *owners]
