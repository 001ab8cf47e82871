"""Callback for normalizing the updates of any optimizer."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from typing_extensions import override

from lit_gfs.callbacks.update_rule import UpdateRuleIntervention
from lit_gfs.networks.layers import is_hidden_matrix
from lit_gfs.plasticity import update_normalization as algorithm


class UpdateNormalization(UpdateRuleIntervention):
    """Evens out the spectrum of the update that an optimizer makes to a hidden matrix, and sets its length.

    See `lit_gfs.plasticity.update_normalization.UpdateNormalization`. `GradientNormalization` with a spectral
    reference does this to the gradient of one batch; an optimizer averages gradients before it makes an
    update, so here noise has less weight. Hidden matrices are told by their shape
    (`lit_gfs.networks.is_hidden_matrix`). First layers, layers that read a whole image, heads and vectors
    keep the optimizer's updates. A module with nothing else gets a warning.

    Put it before all other callbacks that change weights, because their changes would count as the
    optimizer's. It writes ``intervention/<name>/scale``, the mean factor on the norm of an update in a step.

    Args:
        size: Root mean square of the new update, in units of the learning rate, at most.
        lengthen: Whether the new update may be longer than the optimizer's.
        block: Rows of a matrix that are orthogonalized together; ``None`` for all rows, at a higher price.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, or the module has no layers.

    Example::

        trainer = Trainer(callbacks=[UpdateNormalization(block=48)])
    """

    def __init__(
        self,
        size: float = 0.1,
        lengthen: bool = False,
        block: int | None = None,
        name: str = "update_normalization",
    ) -> None:
        self.size = size
        self.lengthen = lengthen
        self.block = block
        super().__init__(name)

    @override
    def make_rule(self) -> algorithm.UpdateNormalization:
        return algorithm.UpdateNormalization(self.size, self.lengthen, self.block)

    @override
    def chooses(self, name: str, weights: Mapping[str, nn.Parameter]) -> bool:
        return is_hidden_matrix(weights[name])

    @override
    def found_none(self, pl_module: LightningModule) -> None:
        # A recipe that is made for deep networks may also train the small one beside them.
        rank_zero_warn(
            f"UpdateNormalization has no effect: {type(pl_module).__name__} has no hidden matrix, only first "
            "layers, heads or vectors"
        )
