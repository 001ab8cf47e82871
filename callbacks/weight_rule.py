"""Base of the interventions that apply a rule of `lit_gfs.plasticity` to weights after each step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lit_gfs.callbacks.weight_intervention import SteppedLayers, WeightIntervention
from lit_gfs.errors import UserError
from lit_gfs.metrics.module_protocol import example_of, layers_of
from lit_gfs.networks.noise import sigmas_of
from lit_gfs.optim.layer_positions import layer_positions
from lit_gfs.plasticity.weight_rule import Rate, WeightRule, layer_of, named_weights


class WeightRuleIntervention(WeightIntervention):
    """Base of the callbacks that apply a rule to chosen weights after each optimizer step.

    A weight that a parametrization computes (weight or spectral normalization of PyTorch) is left alone. So
    are the sigmas of noisy layers.

    Args:
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.
        first_layer: Whether layers that read no other layer are changed too.
        last_layer: Whether layers that no other layer reads are changed too.
    """

    def __init__(self, name: str, first_layer: bool = True, last_layer: bool = True) -> None:
        super().__init__(name)
        self.first_layer = first_layer
        self.last_layer = last_layer
        self.rule = self.make_rule()
        """The rule with its state; a new one for each fit."""
        self._left: set[int] = set()
        """The ids of modules that are left alone because of their position."""
        self._weights: dict[int, dict[str, nn.Parameter]] = {}
        """The chosen weights, by the id of their optimizer's part."""
        self._groups: dict[int, list[int]] = {}
        """The indices of their parameter groups."""

    def make_rule(self) -> WeightRule:
        """Build the rule; this also checks its options."""
        raise NotImplementedError

    def chooses(self, name: str, weights: Mapping[str, nn.Parameter]) -> bool:
        """Return whether the rule applies to a weight; matrices and kernels by default.

        Args:
            name: Name of the weight, ``<layer>.<parameter>``.
            weights: All weights of the optimizer by name.
        """
        return weights[name].ndim >= 2

    # ----------------------------------------------------------------------------------------------------

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        self.rule = self.make_rule()
        self._left, self._weights, self._groups = set(), {}, {}
        if not (self.first_layer and self.last_layer):
            self._left = self._excluded(trainer, pl_module)
        for part in self._parts:
            self._choose(pl_module, part)
        if not any(self._weights.values()):
            self.found_none(pl_module)

    def found_none(self, pl_module: LightningModule) -> None:
        """React to a module with layers of which none is chosen: raise a `UserError`."""
        raise UserError(
            f"{type(self).__name__} found no weight to work on in {type(pl_module).__name__}: expected a "
            "trained layer with a matrix, at a position that is not left out"
        )

    @override
    def begin(self, trainer: Trainer, pl_module: LightningModule, parts: list[SteppedLayers]) -> None:
        for part in parts:
            self.layers_changed(pl_module, part)  # a callback may have split parameter groups since

    @override
    def layers_changed(self, pl_module: LightningModule, part: SteppedLayers) -> None:
        self._choose(pl_module, part)
        self.rule.meet(self._weights[id(part)])

    @override
    def intervene(
        self, trainer: Trainer, pl_module: LightningModule, part: SteppedLayers
    ) -> Mapping[str, Tensor]:
        weights = self._weights[id(part)]
        return self.rule.apply(weights, self._rates(part)) if weights else {}

    @override
    def saved(self) -> dict[str, Any]:
        return self.rule.state_dict()

    @override
    def restore(self, saved: dict[str, Any]) -> None:
        self.rule.load_state_dict(saved)

    # ----------------------------------------------------------------------------------------------------

    def _choose(self, pl_module: LightningModule, part: SteppedLayers) -> None:
        layers = layers_of(pl_module)
        weights = {
            name: weight
            for name, weight in named_weights(layers, part.parameters).items()
            if id(layers[layer_of(name)]) not in self._left
            and not any(weight is sigma for sigma in sigmas_of(layers[layer_of(name)]))
        }
        chosen = {name: weight for name, weight in weights.items() if self.chooses(name, weights)}
        groups = part.optimizer.param_groups
        index = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
        self._weights[id(part)] = chosen
        self._groups[id(part)] = [index[id(weight)] for weight in chosen.values()]

    def _rates(self, part: SteppedLayers) -> list[Rate]:
        groups = part.optimizer.param_groups
        return [groups[index]["lr"] for index in self._groups[id(part)]]

    def _excluded(self, trainer: Trainer, pl_module: LightningModule) -> set[int]:
        if pl_module.example_input_array is None:
            raise UserError(
                f"{type(self).__name__} runs {type(pl_module).__name__}'s forward to find first and last "
                "layers, but its example_input_array is None; expected an example of what forward takes, "
                "such as torch.zeros(1, 8), or first_layer and last_layer true"
            )
        example = example_of(trainer, pl_module, type(self).__name__)
        with trainer.precision_plugin.forward_context():
            positions = layer_positions(pl_module, example)
        kinds = {"first": self.first_layer, "last": self.last_layer, "hidden": True}
        return {id(layer) for layer, position in positions.items() if not kinds[position.kind]}


def has_matrix(name: str, weights: Mapping[str, nn.Parameter]) -> bool:
    """Return whether a weight's layer has a matrix, as linear layers and convolutions do."""
    layer = layer_of(name)
    return any(layer_of(other) == layer and weight.ndim >= 2 for other, weight in weights.items())
