"""Random masks that keep most weights at zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lit_gfs.errors import UserError
from lit_gfs.plasticity.weight_rule import Rate, WeightRule, Weights
from lit_gfs.utils.seeding import derive_seed


def erdos_renyi_densities(shapes: Mapping[str, Sequence[int]], sparsity: float) -> dict[str, float]:
    """Distribute a joint sparsity over weights by the Erdos-Renyi-kernel rule (Evci et al. 2020).

    The density of a weight is proportional to sum(shape) / prod(shape), so wide layers are sparser than
    narrow ones (arXiv 1911.11134, appendix). A weight whose density would exceed 1 stays dense, and the
    others make up for it.

    Args:
        shapes: Shapes of the weights by name.
        sparsity: Share of zeros among all of them, from 0 to below 1.

    Returns:
        Densities by name, from 0 to 1. Together they keep (1 - sparsity) of all weights.
    """
    sizes = {name: float(torch.Size(shape).numel()) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        wanted = (1 - sparsity) * sum(sizes.values()) - sum(sizes[name] for name in dense)
        share = sum(raw[name] * sizes[name] for name in rest)
        factor = wanted / share if share else 0.0
        full = {name for name in rest if factor * raw[name] > 1}
        if not full:
            return {name: 1.0 if name in dense else max(factor, 0.0) * raw[name] for name in shapes}
        dense |= full


class StaticSparsity(WeightRule):
    """Keeps a random part of all weights at zero, the same part from the first to the last step.

    This is one-shot random pruning at initialization (Ma et al. 2025, "Network sparsity unlocks the scaling
    potential of deep reinforcement learning", arXiv 2506.17204), with the densities of
    `erdos_renyi_densities`. A mask has the exact number of zeros. It depends on the seed and on the weight's
    name and shape, not on the device.

    Args:
        sparsity: Share of zeros, from 0 to below 1.
        seed: Seed of the masks; all ranks need the same.

    Raises:
        UserError: If ``sparsity`` is out of range.
    """

    def __init__(self, sparsity: float = 0.8, seed: int = 0) -> None:
        super().__init__()
        if not 0 <= sparsity < 1:
            raise UserError(f"sparsity is {sparsity}; expected a number from 0 to below 1")
        self.sparsity = sparsity
        self.seed = seed
        self._densities: dict[str, float] = {}

    @override
    def meet(self, weights: Weights) -> None:
        """Draw the masks of weights that the rule has not met; they share out the sparsity together."""
        new = {name: each.shape for name, each in weights.items() if name not in self.kept}
        if new:
            self._densities.update(erdos_renyi_densities(new, self.sparsity))
        super().meet(weights)

    @override
    def first_sight(self, name: str, weights: Weights) -> Tensor:
        """Return the mask: 0 and 1 in the weight's shape and type, as products are slow for other types."""
        weight = weights[name]
        generator = torch.Generator().manual_seed(derive_seed("static_sparsity", self.seed, name))
        order = torch.randperm(weight.numel(), generator=generator)
        mask = order < round(self._densities[name] * weight.numel())
        return mask.reshape(weight.shape).to(weight)

    @override
    def apply(self, weights: Weights, rates: Sequence[Rate]) -> dict[str, Tensor]:
        """Set the masked weights to zero."""
        torch._foreach_mul_(list(weights.values()), [self.kept[name] for name in weights])
        return {}

    def zeros(self) -> float:
        """Return the share of zeros in all masks."""
        sizes = sum(mask.numel() for mask in self.kept.values())
        return 1 - sum(int(mask.count_nonzero()) for mask in self.kept.values()) / sizes if sizes else 0.0

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"kept": {name: mask.bool() for name, mask in self.kept.items()}}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, mask in state["kept"].items():
            self.kept[name] = mask.to(self.kept[name]) if name in self.kept else mask.float()
