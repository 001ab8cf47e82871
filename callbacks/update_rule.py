"""Base of the interventions that change an optimizer's update after its step."""

from __future__ import annotations

from lightning.pytorch import LightningModule
from typing_extensions import override

from lit_gfs.callbacks.weight_intervention import SteppedLayers
from lit_gfs.callbacks.weight_rule import WeightRuleIntervention
from lit_gfs.plasticity.update_rule import UpdateRule


class UpdateRuleIntervention(WeightRuleIntervention):
    """Base of the callbacks that apply a rule to updates: they remember the weights before each step.

    Put them before all other callbacks that change weights, because their changes would count as the
    optimizer's.
    """

    rule: UpdateRule

    @override
    def make_rule(self) -> UpdateRule:
        raise NotImplementedError

    @override
    def before_step(self, pl_module: LightningModule, part: SteppedLayers) -> None:
        if weights := self._weights[id(part)]:
            self.rule.remember(weights)
