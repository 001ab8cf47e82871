"""Gradient normalization: even out the norms of all layers' gradients, or the spectrum of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_gfs.errors import require_between, require_one_of, require_unused
from lit_gfs.functional.spectrum import (
    STEPS,
    dtype_of_products,
    in_blocks,
    largest_singular_value,
    lifted_spectrum,
    polar_factor,
)
from lit_gfs.functional.stacks import stacked, stacks_of, unstack_
from lit_gfs.gradients.layerwise import LayerwiseScaling, ScaledGradients
from lit_gfs.metrics.gradient_flow import LayerGradients, layer_norms
from lit_gfs.networks.layers import is_hidden_matrix

Reference = Literal["running", "instant", "unit", "weight"]
"""Reference norm: the running or the current geometric mean over the layers, 1, or the norm of the layer's
parameters."""

SpectralReference = Literal["spectral", "spectral_norm"]
"""What a gradient's spectrum is brought to: all singular values 1, or the largest of them 1."""

_MAX_FACTOR = 1e8
"""Largest factor before the exponent. A gradient smaller than this allows consists of rounding errors."""


class GradientNormalizer(LayerwiseScaling):
    """Scales the gradient g_l of each layer l towards a reference norm: g_l <- g_l (r / n_l)^strength.

    n_l is the norm of layer l's gradient and r is the reference. At strength 1 every layer has the norm r
    (block-normalized gradient, Yu et al. 2017, arXiv 1707.04822); at 0 the gradients are unchanged.
    References:

    - ``running``: the geometric mean over the layers; its logarithm is averaged over time. At a strength
      above 0, the gradient of the whole network varies less over time than before.
    - ``instant``: the geometric mean over the layers at this step. Scaling does not change it.
    - ``unit``: 1.
    - ``weight``: the norm of the layer's parameters, so all layers change by a similar relative amount (LARS,
      You et al. 2017, arXiv 1708.03888, without the trust coefficient). Layers whose parameters are all zero
      stay unchanged.

    Args:
        strength: From 0 (off) to 1 (full equalization).
        reference: The reference norm.
        decay: Decay of the running reference, per step.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(self, strength: float = 0.5, reference: Reference = "running", decay: float = 0.99) -> None:
        super().__init__()
        require_between(0, 1, strength=strength, decay=decay)
        require_one_of(get_args(Reference), reference=reference)
        self.strength = strength
        self.reference = reference
        self.decay = decay
        self.needs_weights = reference == "weight"

    def factors(self, norms: Tensor, usable: Tensor, weight_norms: Tensor | None = None) -> Tensor:
        """Return (r / n_l)^strength, at most 1e8."""
        if self.reference == "unit":
            target = torch.ones_like(norms)
        elif self.reference == "weight":
            assert weight_norms is not None
            target = torch.where(weight_norms > 0, weight_norms.to(norms), norms)
        else:
            target = self._geometric_mean(norms, usable)
        return (target / norms).clamp(max=_MAX_FACTOR) ** self.strength

    def _geometric_mean(self, norms: Tensor, usable: Tensor) -> Tensor:
        """Return the geometric mean ``()`` over the usable layers, and update its running average."""
        count = usable.sum()
        # Mean of log n_l; unusable layers contribute log 1 = 0.
        instant = torch.where(usable, norms, 1.0).log().sum() / count.clamp(min=1)
        if self.reference == "instant":
            return instant.exp()
        mean, steps = self.state["log_reference"], self.state["steps"]
        has_layers = count > 0
        # A plain average over the first steps has no bias; later it is an exponential moving average.
        weight = (steps + 1).reciprocal().clamp(min=1 - self.decay) * has_layers
        mean += weight * (instant - mean)
        steps += has_layers
        return mean.exp()

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        keys = ("log_reference", "steps") if self.reference == "running" else ()
        return {key: norms.new_zeros(()) for key in keys}


class SpectralNormalizer(LayerwiseScaling):
    """Evens out the spectrum of each hidden layer's gradient matrix: all its singular values become 1.

    The gradient of a deep layer usually points in few directions: a few singular values are orders of
    magnitude larger than the others. A step then learns from those directions alone. With ``spectral`` the
    gradient G becomes its polar factor U V' (see `lit_gfs.functional.spectrum.polar_factor`); at a strength
    below 1 it becomes the mixture (1 - strength) G + strength U V'. With ``spectral_norm`` it becomes
    G / ||G||_2^strength, whose largest singular value is 1 at full strength.

    Hidden matrices are told by their shape (`lit_gfs.networks.is_hidden_matrix`); convolutions count as
    matrices. First layers, layers that read a whole image, heads and vectors keep their gradients, so
    clipping can act on them.

    If the gradient of a small batch is mostly noise, an even spectrum gives noise the weight of what the
    batches agree on. Two options keep noise small:

    - With ``lift``, the smallest singular values of G / ||G||_F grow by that factor, and the order of all of
      them stays; see `lit_gfs.functional.spectrum.lifted_spectrum`. It takes fewer steps.
    - With ``momentum``, the running mean of the gradients, M <- momentum M + (1 - momentum) G, takes the
      place of G, as in Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon). M begins at
      zero. Where a gradient is zero, it stays so, and M does not change.

    Args:
        strength: From 0 (off) to 1.
        reference: ``spectral`` evens out the whole spectrum; ``spectral_norm`` is cheaper, and scales it.
        block: Rows of a matrix that are orthogonalized together; ``None`` for all rows. With b rows, the
            price grows with b instead of with the matrix.
        steps: Newton-Schulz steps of ``spectral`` without ``lift``.
        momentum: Decay of the running mean of gradients, below 1; 0 takes each gradient alone.
        lift: Factor on the smallest singular values with ``spectral``, at least 1; ``None`` makes all of them
            1.

    Raises:
        UserError: If an argument is out of range, or has no effect with this reference.
    """

    def __init__(
        self,
        strength: float = 1.0,
        reference: SpectralReference = "spectral",
        block: int | None = None,
        steps: int = STEPS,
        momentum: float = 0.0,
        lift: float | None = None,
    ) -> None:
        super().__init__()
        require_one_of(get_args(SpectralReference), reference=reference)
        if reference == "spectral_norm":
            why = (
                "it has no effect with reference 'spectral_norm'; leave it out, or take reference 'spectral'"
            )
            require_unused(why, block=block, lift=lift)
        require_between(0, 1, strength=strength)
        require_between(0, 0.9999, momentum=momentum)
        require_between(1, 99, steps=steps)
        require_between(1, float("inf"), block=block)
        require_between(1, 1e6, lift=lift)
        self.strength = strength
        self.reference = reference
        self.block = block
        self.steps = steps
        self.momentum = momentum
        self.lift = lift
        self.means: dict[str, Tensor] = {}
        """Running means of the gradients of hidden matrices, by layer and position in it."""
        self._stacked: dict[tuple[str, ...], Tensor] = {}
        """The same means, those of equal shape as one tensor."""

    @torch.no_grad()
    def apply(self, gradients: LayerGradients, weights: LayerGradients | None = None) -> ScaledGradients:
        """Normalize gradients in place; see `LayerwiseScaling.apply`.

        The returned factors are the ratios of the layers' norms.
        """
        norms = layer_norms(gradients)
        self.layers = list(gradients)
        usable = (norms < torch.inf).all()
        if norms.device.type == "cpu" and not usable:
            return ScaledGradients(norms, torch.ones_like(norms))
        for stack in stacks_of(_hidden(gradients)):
            matrices = stacked(list(stack.values()))
            changes = usable
            if self.momentum:
                changes = usable & (torch.linalg.vector_norm(matrices.flatten(1), dim=1) > 0)[:, None, None]
            # A host need not wait for a device if masks decide there.
            mask = None if norms.device.type == "cpu" and changes.all() else changes
            means = self._averaged(stack, matrices, mask) if self.momentum else matrices
            if self.momentum and mask is None:
                means = matrices.copy_(means)  # nobody needs the gradients any more, so their memory is free
            even = self._normalized(means, overwrite=mask is None)
            unstack_(even if mask is None else torch.where(mask, even, matrices), list(stack.values()))
        changed = usable & (norms > 0)
        scales = torch.where(changed, layer_norms(gradients) / torch.where(changed, norms, 1.0), 1.0)
        return ScaledGradients(norms, scales)

    def _averaged(self, stack: dict[str, Tensor], matrices: Tensor, mask: Tensor | None) -> Tensor:
        """Add gradients to their running means, and return these means ``(matrices, rows, columns)``.

        Args:
            stack: The gradients by layer and position.
            matrices: The same gradients ``(matrices, rows, columns)``.
            mask: Which of them count, ``(matrices, 1, 1)``; ``None`` for all.
        """
        means = self._means_of(stack, matrices)
        if mask is None:
            return means.lerp_(matrices, 1 - self.momentum)
        return means.copy_(torch.where(mask, means.lerp(matrices, 1 - self.momentum), means))

    def _means_of(self, stack: dict[str, Tensor], matrices: Tensor) -> Tensor:
        """Return the running means of a stack as one tensor, whose parts `means` keeps by name."""
        names = tuple(stack)
        means = self._stacked.get(names)
        kind = (matrices.shape, matrices.dtype, matrices.device)
        if means is None or (means.shape, means.dtype, means.device) != kind:
            means = torch.zeros_like(matrices)
            for mean, (name, gradient) in zip(means, stack.items(), strict=True):
                known = self.means.get(name)
                if known is not None and known.shape == gradient.shape:
                    mean.copy_(known.flatten(1))
                self.means[name] = mean.view_as(gradient)
            # A matrix belongs to one stack at a time.
            others = {key: kept for key, kept in self._stacked.items() if not set(key) & set(names)}
            self._stacked = {**others, names: means}
        return means

    def state_dict(self) -> dict[str, Any]:
        """Return the state as strings and tensors."""
        return {**super().state_dict(), "means": {name: mean.clone() for name, mean in self.means.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved state; the running mean of a matrix that it does not know begins at zero."""
        super().load_state_dict(state)
        means = state.get("means", {}) if self.momentum else {}
        self.means = {name: mean.clone() for name, mean in means.items()}
        self._stacked = {}

    def _normalized(self, matrices: Tensor, overwrite: bool) -> Tensor:
        """Return normalized matrices, which may take the place of the given ones."""
        if self.reference == "spectral_norm":
            sizes = largest_singular_value(matrices)[:, None, None]
            factors = (1 / sizes).clamp(max=_MAX_FACTOR) ** self.strength
            return matrices * torch.where(sizes > 0, factors, 1.0)
        blocks, dtype = in_blocks(matrices, self.block), dtype_of_products(matrices)
        overwrite = overwrite and self.strength == 1  # otherwise the mixture needs them once more
        if self.lift is None:
            even = polar_factor(blocks, self.steps, dtype, overwrite)
        else:
            even = lifted_spectrum(blocks, self.lift, dtype, overwrite)
        even = even.reshape(matrices.shape)
        return even if self.strength == 1 else matrices.lerp(even, self.strength)


def _hidden(gradients: LayerGradients) -> dict[str, Tensor]:
    """Return the gradients of hidden matrices, by layer and position in it."""
    return {
        f"{name}.{position}": gradient
        for name, layer in gradients.items()
        for position, gradient in enumerate(layer)
        if gradient is not None and is_hidden_matrix(gradient)
    }
