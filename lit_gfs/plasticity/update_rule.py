"""Base of the rules that change an optimizer's update after its step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_gfs.plasticity.weight_rule import WeightRule, Weights


class UpdateRule(WeightRule):
    """Base of the rules that change the update w - w_before, which an optimizer has just made to a weight.

    Momentum, weight decay and the division of an adaptive optimizer are part of the update. Call `remember`
    before each step.
    """

    @override
    def first_sight(self, name: str, weights: Weights) -> Tensor:
        """Return a buffer for the weight before each step."""
        return weights[name].detach().clone()

    def remember(self, weights: Weights) -> None:
        """Copy weights before an optimizer step."""
        torch._foreach_copy_([self.kept[name] for name in weights], list(weights.values()))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"kept": {}}  # the buffers mean nothing between steps
