"""Scores what activation modules put out during a forward pass."""

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
)
"""The modules whose outputs are taken for activations, subclasses included."""

_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


class ActivationRecorder:
    """Scores, while attached, what each activation module puts out.

    Args:
        layers: The name of every layer with a weight matrix, ``None`` for one that is not reported.
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
        """Begin anew; leave passes without gradients, such as a target network's, out if asked to."""
        self.detach()
        self.scores, self.features, self._latest = {}, None, None
        self._only_with_gradients = only_with_gradients
        self._handles = [
            *(layer.register_forward_pre_hook(self._before_layer) for layer in self._layers),
            *(module.register_forward_hook(self._after_activation) for module in self._activations),
        ]

    def detach(self) -> None:
        """Stop recording; what was recorded stays."""
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
            # At once: what follows may write over it in place.
            units = output.detach()
            images = isinstance(self._latest, _CONVOLUTIONS) and units.ndim > 2
            self.scores[name] = dormancy_scores(units if images else _as_rows(units))


def _as_rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1])


def named_weight_layers(pl_module: LightningModule) -> dict[nn.Module, str | None]:
    """List all modules with a weight matrix: by name those to report, the others with ``None``."""
    names = {layer: name for name, layer in layers_of(pl_module).items()}
    weight_layers: dict[nn.Module, str | None] = {}
    for module in pl_module.modules():
        if isinstance(module, ParametrizationList):
            continue
        # A parametrized weight (spectral normalization ...) is owned by a module below the layer.
        owners = [module]
        if is_parametrized(module):
            owners += cast(nn.ModuleDict, module.parametrizations).values()
        if any(p.ndim >= 2 for owner in owners for p in owner.parameters(recurse=False)):
            weight_layers[module] = next((names[owner] for owner in owners if owner in names), None)
    return weight_layers
