"""Curvature: the trace and the largest eigenvalue of a loss's Hessian, from Hessian-vector products.

The Hessian is that of a scalar loss with respect to a list of parameters on one device, as a single vector.
It is never stored. A product with a vector is another backward pass through the graph of the gradients, which
`loss_gradients` builds once (Pearlmutter 1994, "Fast exact multiplication by the Hessian"). Vectors are lists
of tensors with the shapes of the parameters. All results stay on the device of the parameters.
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
    """Rayleigh quotient q = v.Hv of the last unit vector v, ``()``, with the sign of the eigenvalue."""
    residual: Tensor
    """``||Hv - qv||``, ``()``: at least one eigenvalue lies within this distance from q."""


def loss_gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Compute the gradients of a loss with a graph for further differentiation.

    Args:
        loss: The loss ``()``, with its graph.
        parameters: Tensors that require gradients.

    Returns:
        One gradient per parameter, of the same shape and with its own graph; zeros for a parameter that does
        not affect the loss. ``.grad`` does not change.

    Raises:
        RuntimeError: If the loss is not differentiable, or is marked as differentiable only once.
    """
    _refuse_once_differentiable(loss)
    return list(torch.autograd.grad(loss, parameters, create_graph=True, materialize_grads=True))


def hessian_vector_product(gradients: Vector, parameters: Sequence[Tensor], vector: Vector) -> list[Tensor]:
    """Multiply the Hessian by a vector.

    Args:
        gradients: Gradients from `loss_gradients`; their graph is kept for further products.
        parameters: The parameters of these gradients.
        vector: One tensor per parameter, of the same shape.

    Returns:
        The product, one tensor per parameter, of the same shape.

    Raises:
        RuntimeError: If an operation of the loss cannot be differentiated twice.
    """
    # The product is the derivative of g.v. A constant gradient has no graph: its rows of H are zero.
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
    """Estimate the trace of the Hessian as the mean of z.Hz over random probes z with entries -1 and 1.

    The estimate is unbiased. The variance of one probe is ``2 * sum(H[i, j] ** 2 for i != j)``, so the trace
    of a diagonal Hessian is exact (Hutchinson 1990, "A stochastic estimator of the trace of the influence
    matrix").

    Args:
        gradients: Gradients from `loss_gradients`.
        parameters: The parameters of these gradients.
        samples: Number of probes, at least 1; each costs one Hessian-vector product.
        generator: Random generator on the parameters' device; ``None`` uses the global one of PyTorch.

    Returns:
        The mean over the probes and its standard error.
    """
    values = []
    for _ in range(samples):
        probe = [_random_signs(parameter, generator) for parameter in parameters]
        values.append(_dot(probe, hessian_vector_product(gradients, parameters, probe)))
    traces = torch.stack(values)
    std = traces.std() if samples > 1 else torch.full_like(traces[0], torch.nan)
    return TraceEstimate(traces.mean(), std / samples**0.5)


@torch.no_grad()
def largest_eigenvalue(
    gradients: Vector,
    parameters: Sequence[Tensor],
    iterations: int = 20,
    generator: torch.Generator | None = None,
) -> EigenvalueEstimate:
    """Estimate the Hessian's eigenvalue of largest magnitude, with its sign, by power iteration.

    The result may be negative. The iteration converges slowly if the two largest magnitudes are close, and
    not at all if two eigenvalues have the same magnitude and opposite signs. The residual shows both.

    Args:
        gradients: Gradients from `loss_gradients`.
        parameters: The parameters of these gradients.
        iterations: Number of Hessian-vector products, at least 1.
        generator: Random generator on the parameters' device; ``None`` uses the global one of PyTorch.

    Returns:
        The Rayleigh quotient of the last vector and its residual, both 0 for a zero Hessian.
    """
    product = [
        torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype, device=parameter.device)
        for parameter in parameters
    ]
    # v <- Hv / ||Hv|| turns v towards the eigenvector of the largest magnitude.
    for _ in range(iterations):
        vector = _normalized(product)
        product = hessian_vector_product(gradients, parameters, vector)
    eigenvalue = _dot(vector, product)
    residual = torch._foreach_sub(product, torch._foreach_mul(vector, eigenvalue))
    return EigenvalueEstimate(eigenvalue, _norm(residual))


_ONCE_DIFFERENTIABLE = once_differentiable(lambda ctx: None).__code__
"""Code of the wrapper by which functions marked with ``once_differentiable`` are recognized."""


def _refuse_once_differentiable(loss: Tensor) -> None:
    """Raise an error if an operation in the graph of a loss is marked as ``once_differentiable``."""
    # PyTorch raises its own error only in a backward pass to the leaves. With chosen inputs, it would
    # silently treat the second derivative as zero.
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
    """Scale a vector to norm 1; zero stays zero, and a non-finite vector becomes NaN."""
    # Divide by the largest entry first. The squares of very small or large entries, as in a collapsed or
    # diverged network, would otherwise underflow or overflow.
    largest = torch.stack(torch._foreach_norm(list(vector), torch.inf)).amax()
    scaled = _divided(vector, largest)
    return _divided(scaled, _norm(scaled))


def _divided(vector: Vector, size: Tensor) -> list[Tensor]:
    return list(torch._foreach_div(list(vector), torch.where(size == 0, torch.ones_like(size), size)))
