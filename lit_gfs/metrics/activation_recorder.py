"""Recorder of dormancy scores and features during a forward pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized
from torch.utils.hooks import RemovableHandle

from lit_gfs.metrics.module_protocol import layers_of
from lit_gfs.metrics.representation import dormancy_scores
from lit_gfs.networks.components import CReLU, FourierFeatures

ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    CReLU,
    FourierFeatures,
)
"""The activation modules, including their subclasses."""

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class ActivationRecorder:
    """Computes dormancy scores of the outputs of activation modules while it is attached.

    Args:
        layers: The name of each layer with a weight matrix; ``None`` for an unreported layer.
        activations: The activation modules.
    """

    def __init__(self, layers: Mapping[nn.Module, str | None], activations: Iterable[nn.Module]) -> None:
        self.scores: dict[str, Tensor] = {}
        """Dormancy scores ``(units,)`` by layer name."""
        self.features: Tensor | None = None
        """Input of the reported layer that ran last, ``(rows, width)``."""
        self._layers = layers
        self._activations = list(activations)
        self._handles: list[RemovableHandle] = []
        self._latest: nn.Module | None = None
        self._only_with_gradients = False

    def attach(self, only_with_gradients: bool = False) -> None:
        """Start a new recording.

        Args:
            only_with_gradients: Whether to ignore passes without gradients, such as those of target networks.
        """
        self.detach()
        self.scores, self.features, self._latest = {}, None, None
        self._only_with_gradients = only_with_gradients
        self._handles = [
            *(layer.register_forward_pre_hook(self._before_layer) for layer in self._layers),
            *(module.register_forward_hook(self._after_activation) for module in self._activations),
        ]

    def detach(self) -> None:
        """Stop recording; `scores` and `features` remain."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _before_layer(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        if self._only_with_gradients and not torch.is_grad_enabled():
            return
        self._latest = layer
        if self._layers[layer] is not None and args and isinstance(args[0], Tensor):
            rows = args[0].detach()
            self.features = rows.flatten(1) if isinstance(layer, _CONVOLUTIONS) else _as_rows(rows)

    def _after_activation(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self._only_with_gradients and not torch.is_grad_enabled():
            return
        name = None if self._latest is None else self._layers[self._latest]
        if name is not None:
            # Compute the scores now, because a later in-place operation may overwrite the output.
            units = output.detach()
            images = isinstance(self._latest, _CONVOLUTIONS) and units.ndim > 2
            self.scores[name] = dormancy_scores(units if images else _as_rows(units))


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def named_weight_layers(pl_module: LightningModule) -> dict[nn.Module, str | None]:
    """Return all modules with a weight matrix: layers with their names, other modules with ``None``."""
    names = {layer: name for name, layer in layers_of(pl_module).items()}
    weight_layers: dict[nn.Module, str | None] = {}
    for module in pl_module.modules():
        if isinstance(module, ParametrizationList):
            continue
        # A submodule of the layer owns the parameters of a parametrized weight (spectral normalization).
        owners = [module]
        if is_parametrized(module):
            owners += cast(nn.ModuleDict, module.parametrizations).values()
        if any(p.ndim >= 2 for owner in owners for p in owner.parameters(recurse=False)):
            weight_layers[module] = next((names[owner] for owner in owners if owner in names), None)
    return weight_layers
