"""Resets of single units: new incoming weights, and no outgoing ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lit_gfs.plasticity.unit_layers import Share, UnitLayer

Entries = dict[nn.Parameter, Tensor]
"""Which entries of parameters have changed: boolean tensors of the parameters' shapes."""


@torch.no_grad()
def reset_units_(
    layers: Mapping[str, UnitLayer], chosen: Mapping[str, Tensor], fresh: Mapping[nn.Parameter, Tensor]
) -> Entries:
    """Reset the chosen units of layers in place, as ReDo does (Sokar et al. 2023, arXiv 2302.12902).

    The outgoing weights of a chosen unit become 0, so the network computes what it would compute without the
    unit. Its incoming weights and its bias become fresh ones, and the scale and shift of a normalization in
    between become 1 and 0. A weight from one chosen unit to another is drawn, not 0: the reader leads nowhere
    either, and so a layer of dormant units behind another one can learn again.

    Nothing is read from the device, so the host does not wait.

    Args:
        layers: Layers by name, from `lit_gfs.plasticity.unit_layers.map_units`.
        chosen: By layer, which units to reset: boolean ``(units,)`` on the layer's device.
        fresh: New values of the parameters of these layers, of which the chosen units get theirs.

    Returns:
        The entries that were set, for optimizers and averages of the weights.
    """
    entries: Entries = {}
    for name, is_chosen in chosen.items():
        for share in layers[name].outgoing:
            is_reset = _of_units(share, is_chosen)[None, :].expand(share.parameter.shape[:2])
            _set(entries, share.parameter, _expanded(is_reset, share.parameter), 0.0)
    # Incoming weights come last, so that they win where a unit leads into another one.
    for name, is_chosen in chosen.items():
        for parameter in layers[name].layer.parameters():
            _set(entries, parameter, _expanded(is_chosen, parameter), fresh[parameter])
        for share in layers[name].norms:
            _set(entries, share.parameter, _of_units(share, is_chosen), fresh[share.parameter])
    return entries


def _set(entries: Entries, parameter: nn.Parameter, is_reset: Tensor, value: Tensor | float) -> None:
    parameter.copy_(torch.where(is_reset, value, parameter))
    known = entries.get(parameter)
    entries[parameter] = is_reset if known is None else known | is_reset


def _of_units(share: Share, is_chosen: Tensor) -> Tensor:
    """Return which entries along the share's dimension belong to a chosen unit."""
    return torch.cat([is_chosen, is_chosen.new_zeros(1)])[share.units]


def _expanded(is_reset: Tensor, parameter: Tensor) -> Tensor:
    """Repeat flags of the first dimensions over the others of a parameter."""
    missing = parameter.ndim - is_reset.ndim
    return is_reset.reshape(*is_reset.shape, *[1] * missing).expand(parameter.shape)
