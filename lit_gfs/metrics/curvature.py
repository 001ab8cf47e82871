"""Curvature: the trace and the largest eigenvalue of a loss's Hessian, from products with vectors alone.

The Hessian is that of a scalar loss with respect to a list of parameters on one device, taken together as one
vector. It is never built: a product with a vector is one more backward pass through the gradients' own graph,
which `loss_gradients` makes once (Pearlmutter 1994, "Fast exact multiplication by the Hessian"). Vectors are
lists of tensors of the parameters' shapes. Every result stays on the parameters' device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Vector = Sequence[Tensor]


class TraceEstimate(NamedTuple):
    """An estimate of the Hessian's trace."""

    trace: Tensor
    """Mean over the probes, ``()``."""
    error: Tensor
    """Standard error of that mean, ``()``; NaN for a single probe."""


class EigenvalueEstimate(NamedTuple):
    """An estimate of the Hessian's eigenvalue of largest magnitude."""

    eigenvalue: Tensor
    """Rayleigh quotient q = v.Hv of the last unit vector v, ``()``; it has the eigenvalue's sign."""
    residual: Tensor
    """``||Hv - qv||``, ``()``: some eigenvalue is no further than this from q, and 0 means that q is one."""


def loss_gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Differentiate a loss so that its gradients can be differentiated again.

    Args:
        loss: The loss ``()``, with its graph.
        parameters: What to differentiate by; tensors that require gradients.

    Returns:
        One gradient per parameter, of its shape, with a graph of its own; zeros where the loss does not
        depend on the parameter. ``.grad`` is left alone.

    Raises:
        RuntimeError: If the loss cannot be differentiated, or is known not to be twice.
    """
    _refuse_once_differentiable(loss)
    return list(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True))


def hessian_vector_product(gradients: Vector, parameters: Sequence[Tensor], vector: Vector) -> list[Tensor]:
    """Multiply the Hessian by a vector.

    Args:
        gradients: From `loss_gradients`; their graph is kept for the next product.
        parameters: The same as there.
        vector: One tensor per parameter, of its shape.

    Returns:
        The product, one tensor per parameter, of its shape.

    Raises:
        RuntimeError: If an operation of the loss cannot be differentiated twice.
    """
    # A gradient that does not depend on any parameter has no graph: its rows of the Hessian are zero.
    varying = [(g, v) for g, v in zip(gradients, vector, strict=True) if g.requires_grad]
    if not varying:
        return [torch.zeros_like(parameter) for parameter in parameters]
    outputs, directions = zip(*varying, strict=True)
    products = torch.autograd.grad(outputs, parameters, directions, retain_graph=True, materialize_grads=True)
    return list(products)


@torch.no_grad()
def hutchinson_trace(
    gradients: Vector,
    parameters: Sequence[Tensor],
    samples: int = 50,
    generator: torch.Generator | None = None,
) -> TraceEstimate:
    """Estimate the trace of the Hessian by random probes z with entries -1 and 1: the mean of z.Hz.

    It is unbiased; a probe's variance is ``2 * sum(H[i, j] ** 2 for i != j)``, so a diagonal Hessian's trace
    comes out exactly (Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix").

    Args:
        gradients: From `loss_gradients`.
        parameters: The same as there.
        samples: Number of probes, at least 1; each costs one Hessian-vector product.
        generator: Draws the probes, on the parameters' device; ``None`` takes PyTorch's global one.

    Returns:
        The mean over the probes and its standard error.
    """
    values = []
    for _ in range(samples):
        probe = [_random_signs(parameter, generator) for parameter in parameters]
        values.append(_dot(probe, hessian_vector_product(gradients, parameters, probe)))
    drawn = torch.stack(values)
    spread = drawn.std() if samples > 1 else torch.full_like(drawn[0], torch.nan)
    return TraceEstimate(drawn.mean(), spread / samples**0.5)


@torch.no_grad()
def largest_eigenvalue(
    gradients: Vector,
    parameters: Sequence[Tensor],
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> EigenvalueEstimate:
    """Estimate the Hessian's eigenvalue of largest magnitude, sign kept, by power iteration.

    Where the most negative eigenvalue outweighs the most positive one, the result is negative. The closer the
    two largest magnitudes, the more iterations it takes, and a pair of opposite sign and equal magnitude is
    never told apart: look at the residual.

    Args:
        gradients: From `loss_gradients`.
        parameters: The same as there.
        iterations: Number of Hessian-vector products, at least 1.
        generator: Draws the first vector, on the parameters' device; ``None`` takes PyTorch's global one.

    Returns:
        The Rayleigh quotient of the last vector and its residual, both 0 for a zero Hessian.
    """
    product = [
        torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype, device=parameter.device)
        for parameter in parameters
    ]
    for _ in range(iterations):
        vector = _normalized(product)
        product = hessian_vector_product(gradients, parameters, vector)
    eigenvalue = _dot(vector, product)
    remainder = torch._foreach_sub(product, torch._foreach_mul(vector, eigenvalue))
    return EigenvalueEstimate(eigenvalue, _norm(remainder))


_ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx: None).__code__


def _refuse_once_differentiable(loss: Tensor) -> None:
    # PyTorch would take the second derivative of such a function for zero: what it raises instead in a
    # backward pass to the leaves does not lie on the way to chosen inputs.
    nodes, seen = [loss.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        backward = getattr(getattr(type(node), "_forward_cls", None), "backward", None)
        if getattr(backward, "__code__", None) is _ONCE_DIFFERENTIABLE:
            raise RuntimeError(f"{node.name()} is marked as once_differentiable")
        nodes.extend(following for following, _ in node.next_functions)


def _random_signs(like: Tensor, generator: torch.Generator | None) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=generator, dtype=like.dtype, device=like.device)
    return bits.mul_(2).sub_(1)


def _dot(a: Vector, b: Vector) -> Tensor:
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()


def _norm(vector: Vector) -> Tensor:
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(vector))))


def _normalized(vector: Vector) -> list[Tensor]:
    """Scale a vector to norm 1; zero stays zero, and one that is not finite becomes NaN."""
    # By the largest entry first: a collapsed or diverged network's curvature, squared for the norm, would
    # vanish or overflow.
    largest = torch.stack(torch._foreach_norm(list(vector), torch.inf)).amax()
    scaled = _divided(vector, largest)
    return _divided(scaled, _norm(scaled))


def _divided(vector: Vector, size: Tensor) -> list[Tensor]:
    return list(torch._foreach_div(list(vector), torch.where(size == 0, torch.ones_like(size), size)))
