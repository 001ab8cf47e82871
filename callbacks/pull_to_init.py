"""Callback for a decoupled pull of weights towards their initial values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from torch import nn
from typing_extensions import override

from lit_gfs.callbacks.weight_rule import WeightRuleIntervention
from lit_gfs.errors import require_one_of
from lit_gfs.plasticity import pull_to_init as algorithm

Parameters = Literal["all", "matrices", "vectors"]


class PullToInit(WeightRuleIntervention):
    """Pulls weights towards their initial values after each step, decoupled from the gradient.

    See `lit_gfs.plasticity.pull_to_init.PullToInit`. The initial values are part of the checkpoint. A run
    that is resumed without them pulls to the weights of the checkpoint.

    It writes ``intervention/<name>/share``: the mean share of the distance to the start that a step removes.

    Args:
        strength: Strength of the pull; a step removes the share rate * strength of the distance.
        parameters: ``all``; ``matrices`` (and kernels) alone; or ``vectors`` alone: biases, gains, offsets.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, or the module has no such parameters.

    Example::

        trainer = Trainer(callbacks=[PullToInit(strength=0.1)])
    """

    def __init__(
        self, strength: float = 0.01, parameters: Parameters = "all", name: str = "pull_to_init"
    ) -> None:
        require_one_of(get_args(Parameters), parameters=parameters)
        self.strength = strength
        self.parameters: Parameters = parameters
        super().__init__(name)

    @override
    def make_rule(self) -> algorithm.PullToInit:
        return algorithm.PullToInit(self.strength)

    @override
    def chooses(self, name: str, weights: Mapping[str, nn.Parameter]) -> bool:
        return self.parameters == "all" or (weights[name].ndim >= 2) == (self.parameters == "matrices")
