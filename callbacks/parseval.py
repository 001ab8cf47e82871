"""Callback for weight matrices that stay near orthogonal ones."""

from __future__ import annotations

import math

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from typing_extensions import override

from lit_gfs.callbacks.auxiliary_loss import AuxiliaryLoss
from lit_gfs.errors import UserError, require_between
from lit_gfs.functional.auxiliary_losses import parseval_penalty
from lit_gfs.metrics.module_protocol import example_of, optimized_parameters
from lit_gfs.networks.layers import own_parameters
from lit_gfs.networks.noise import sigmas_of
from lit_gfs.optim.layer_positions import is_matrix, layer_positions


class ParsevalRegularization(AuxiliaryLoss):
    """Keeps weight matrices near multiples of orthogonal ones (Chung et al. 2024, arXiv 2412.07224).

    So gradients pass layers without growing or shrinking, however long the network has been trained. The term
    is `lit_gfs.functional.auxiliary_losses.parseval_penalty` of the matrices. A convolution's kernel counts
    as a matrix with a row for each output channel; a parametrized weight counts as it is computed. Matrices
    that ``forward`` does not run, or that no optimizer holds, are left out.

    The module must set Lightning's ``example_input_array`` as the input of its forward.

    Args:
        coefficient: Weight of the term.
        scale: The square of the singular values; 2 is that of orthogonal initialization with gain sqrt(2).
        first: Whether matrices that read the input belong to the term.
        last: Whether heads belong to the term.
        name: Name in tags and in the checkpoint; must differ between all auxiliary losses.

    Raises:
        UserError: If an argument is out of range, or the module has no ``example_input_array`` or no such
            matrix.

    Example::

        trainer = Trainer(callbacks=[ParsevalRegularization(coefficient=1e-3)])
    """

    def __init__(
        self,
        coefficient: float = 1e-3,
        scale: float = 2.0,
        first: bool = True,
        last: bool = False,
        name: str = "parseval",
    ) -> None:
        super().__init__(name, coefficient)
        require_between(0, math.inf, scale=scale)
        self.scale = scale
        self.first = first
        self.last = last
        self._matrices: list[tuple[nn.Module, str]] = []
        """The layers, with the names of their attributes."""

    @override
    def term(self) -> Tensor:
        return parseval_penalty([getattr(*matrix) for matrix in self._matrices], self.scale)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        example = example_of(trainer, pl_module, type(self).__name__)
        with trainer.precision_plugin.forward_context():
            positions = layer_positions(pl_module, example)
        kinds = {"hidden"} | ({"first"} if self.first else set()) | ({"last"} if self.last else set())
        held = set(optimized_parameters(trainer, pl_module).values())
        self._matrices = [
            (layer, attribute)
            for layer, position in positions.items()
            if position.kind in kinds and held.intersection(own_parameters(layer))
            for attribute in _matrices_of(layer)
        ]
        if not self._matrices:
            raise UserError(
                f"{type(self).__name__} found no matrix in {type(pl_module).__name__} that is "
                f"{' or '.join(sorted(kinds))}; expected a layer with one, or first and last true"
            )


def _matrices_of(layer: nn.Module) -> list[str]:
    """Return the names of a layer's attributes that are weight matrices."""
    sigmas = set(sigmas_of(layer))
    names = [name for name, p in layer.named_parameters(recurse=False) if is_matrix(p) and p not in sigmas]
    if is_parametrized(layer):
        computed: nn.ModuleDict = layer.parametrizations  # type: ignore[assignment]
        names += [name for name in computed if is_matrix(getattr(layer, name))]
    return names
