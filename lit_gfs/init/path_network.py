"""Execution of a module's forward on path energies instead of signals.

A path leads from an input to an output through one weight of every layer that it crosses. Its energy is the
product of the squares of these weights. Signs are random at initialization. So the sum of all path energies
is the expected squared output, and its derivatives give the expected squared gradients. With absolute instead
of squared weights this is the saliency of SynFlow (Tanaka et al. 2020, arXiv 2006.05467).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lit_gfs.errors import UserError
from lit_gfs.networks.example_run import call, device_of, evaluating

_LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_RECTIFIERS = ("relu", "relu6", "leaky_relu", "rrelu", "prelu", "threshold")
_SMOOTH = ("gelu", "silu", "elu", "selu", "celu", "mish", "softplus")
_SQUASHING = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "hardswish", "sin", "cos")
_NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "normalize")
_CASTS = ("float", "double", "half", "bfloat16", "to", "type", "type_as", "contiguous", "clone", "detach")
_LIMITS = ("clamp", "clip", "neg", "abs", "softmax", "log_softmax")
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d")
_VIEWS = ("flatten", "reshape", "view", "squeeze", "unsqueeze")
_PRODUCTS = ("mul", "imul", "rmul", "multiply", "div", "idiv", "divide", "truediv", "itruediv", "true_divide")
_CONTRACTIONS = ("matmul", "rmatmul", "mm", "bmm", "einsum")
_SUMS = ("add", "iadd", "radd", "sub", "isub", "rsub", "subtract")
_CONCATENATIONS = ("cat", "concat", "concatenate")

_TINY = 1e-30
"""Lower bound of a mean energy in a division; energies are 0 where a branch is shut."""


class Origin(NamedTuple):
    """The layer that computed a tensor, and the activation applied since, if any."""

    weight: nn.Parameter
    activation: str | None = None
    slope: float = 0.0
    """Slope of a rectifier below 0."""


class BranchEnd(NamedTuple):
    """The end of a branch, or of what may be one: the last layer, and what scales its output."""

    layer: nn.Parameter
    """The weight of the last layer."""
    scale: nn.Parameter
    """The parameter that multiplies the output last: the weight of the layer, or of a normalization after
    it."""


class Energy(Tensor):
    """A tensor of path energies."""

    depth: int = 0
    """Largest number of layers on a path to this tensor."""
    origin: Origin | None = None
    """The layer that computed this tensor."""
    parts: tuple[Tensor, ...] = ()
    """The tensors that were concatenated along features into this one."""
    end: BranchEnd | None = None
    """The layer that computed this tensor, with nothing but views, products with constants and normalizations
    since: if the scale is 0, so is the tensor, and gradients still reach the scale."""


class Reading(NamedTuple):
    """The input of one call of a layer."""

    weight: nn.Parameter
    """The layer's weight."""
    origin: Origin | None
    """The layer that computed the input."""
    parts: tuple[Tensor, ...]
    """The concatenated parts of the input."""
    factor: Tensor
    """A factor of 1 on the output of the call; its derivatives measure the call's share of energy."""


class End(NamedTuple):
    """A place where paths end: an output, or the input of a normalization or concatenation."""

    kind: Literal["output", "norm", "cat"]
    total: Tensor
    """The sum ``()`` of the energies there."""


class PathNetwork(TorchFunctionMode):
    """Replaces functions of signals by functions of path energies while a module runs.

    - Linear maps and convolutions use the squared weight and no bias.
    - An activation halves the energy. The gain sqrt(2) of the layer before it compensates for that. A leaky
      rectifier with the slope s passes on (1 + s^2) / 2; it counts as the power of 1/2 that equals that.
    - A normalization divides by the mean. While ``cuts`` is ``None``, it is the identity.
    - A concatenation continues the paths of the part with the longest path, and ends those of the others.
    - A product with a constant multiplies by the square of the constant. A sum ignores constants.
    - All other functions work on energies as on signals.

    A *cut* is a normalization or concatenation that all paths cross. The scale of the energies before it does
    not affect the energies after it. So paths end at a cut, and new paths begin.

    Args:
        factors: The layers' weights, each with a factor ``()`` on its squared weight.
        cuts: The normalizations and concatenations that are cuts, as indices in the order of their calls.
        bend: Whether derivatives through smooth activations are halved. A smooth activation does not scale
            its output with its input, so the layers before it must form chains of their own.
    """

    def __init__(
        self,
        factors: Mapping[nn.Parameter, Tensor],
        cuts: frozenset[int] | None = None,
        bend: bool = False,
    ) -> None:
        super().__init__()
        self.factors = factors
        self.cuts = cuts
        self.bend = bend
        self.joints: list[Tensor] = []
        """A factor of 1 on the output of each normalization or concatenation, to measure shares of energy."""
        self.ends: list[End] = []
        """The places where paths end: outputs and cuts."""
        self.readings: list[Reading] = []
        """The inputs of all layers, in the order of their calls."""
        self.outputs: list[Energy] = []
        """The energies that the module returned."""
        self.branch_ends: list[BranchEnd] = []
        """The ends of all branches, in the order in which they are added to a stream."""
        self.half = torch.full((), 0.5, dtype=torch.float64, requires_grad=True)
        """The factor of every activation; derivatives by it count the activations on a path."""
        rules = (
            (self._linear, _LINEAR),
            (self._rectifier, _RECTIFIERS),
            (self._smooth, _SMOOTH + _SQUASHING),
            (self._norm, _NORMS),
            (self._same, _CASTS + _DROPOUTS),
            (self._limit, _LIMITS),
            (self._view, _VIEWS),
            (self._product, _PRODUCTS + _CONTRACTIONS),
            (self._sum, _SUMS),
            (self._concatenation, _CONCATENATIONS),
        )
        self._rules = {name: rule for rule, names in rules for name in names}

    def run(self, module: nn.Module, example_input: Any) -> PathNetwork:
        """Run the module on input energies of 1, without changing parameters, buffers or generators.

        Args:
            module: Any module.
            example_input: Input of its forward: a tensor, a tuple of arguments or a dict of keywords. Only
                the shapes matter; a batch of one example is enough.

        Returns:
            This object.

        Raises:
            UserError: If the forward does not run on energies.
        """
        with evaluating(module), torch.enable_grad(), self:
            try:
                output = call(module, tree_map(partial(_ones, device=device_of(module)), example_input))
            except (RuntimeError, TypeError, ValueError, NotImplementedError) as error:
                raise UserError(
                    f"{type(module).__name__} does not run on path energies, which path-sensitive "
                    f"initialization needs: {str(error).splitlines()[0]}; expected linear and convolutional "
                    "layers without attention, recurrence or embeddings"
                ) from error
            self.outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Energy)]
            self.ends += [End("output", _plain(leaf).sum()) for leaf in self.outputs]
        return self

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(issubclass(kind, Energy) for kind in types):
            return func(*args, **kwargs)
        rule = self._rules.get(getattr(func, "__name__", "").strip("_"))
        result = func(*args, **kwargs) if rule is None else rule(func, *args, **kwargs)
        depth = max(leaf.depth for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Energy))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Energy):
                leaf.depth = max(leaf.depth, depth)
        return result

    # -- One rule for each kind of function -------------------------------------------------------------

    def _linear(
        self,
        func: Callable[..., Any],
        energy: Energy,
        weight: Tensor,
        bias: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> Any:
        result = func(energy, self._squared(weight), None, *rest, **kwargs)
        if isinstance(weight, nn.Parameter) and weight in self.factors:
            factor = _plain(energy).new_ones((), requires_grad=True)
            result = result * factor
            self.readings.append(Reading(weight, energy.origin, energy.parts, factor))
            result.origin, result.depth = Origin(weight), energy.depth + 1
            result.end = BranchEnd(weight, weight)
        return result

    def _rectifier(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        name = func.__name__.strip("_")
        slope = _negative_slope(name, *args, **kwargs)
        half = self.half.to(energy.device)
        result: Any = energy * (half if slope == 0 else half ** (1 - math.log2(1 + slope**2)))
        # Only the first activation after a layer becomes a part of the origin.
        if energy.origin is not None and energy.origin.activation is None:
            result.origin = Origin(energy.origin.weight, name, slope)
        return result

    def _smooth(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        result = self._rectifier(func, energy)
        if not self.bend:
            return result
        # The value is unchanged, but only half of it carries a gradient.
        bent = _energy((_plain(result) + _plain(result).detach()) / 2)
        bent.origin = result.origin
        return bent

    def _norm(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        result: Any = self._join("norm", energy)[0]
        if self.cuts is not None:
            result = result / result.mean().clamp(min=_TINY)
        result.origin = energy.origin
        # The layer before a normalization cannot scale the output: a tiny weight has a unit output.
        scale = kwargs.get("weight")
        if energy.end is not None and isinstance(scale, nn.Parameter):
            result.end = BranchEnd(energy.end.layer, scale)
        return result

    def _same(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        return energy

    def _limit(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        if energy.end is None:
            return energy
        result = _energy(_plain(energy) * 1)
        result.origin, result.parts = energy.origin, energy.parts
        return result

    def _view(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        result = func(energy, *args, **kwargs)
        result.origin, result.end = energy.origin, energy.end
        return result

    def _product(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        result = func(*tree_map(self._squared, args), **kwargs)
        energies = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Energy)]
        if len(energies) == 1 and func.__name__.strip("_") in _PRODUCTS:
            result.end = energies[0].end
        return result

    def _sum(self, func: Callable[..., Any], first: Any, second: Any, **kwargs: Any) -> Any:
        # Energies add up in differences, too: signs are random.
        energies = [each for each in (first, second) if isinstance(each, Energy)]
        end = energies[0].end if len(energies) == 1 else None
        if len(energies) == 2:
            self._note_branch(*energies)
        second = second if isinstance(second, Energy) else second * 0
        if func.__name__ in ("add_", "sub_"):
            result = first.add_(second)
            # The tensor itself changed: it is no longer the output of a layer.
            result.origin, result.parts = (first.origin, first.parts) if len(energies) == 1 else (None, ())
        else:
            result = torch.add(first if isinstance(first, Energy) else first * 0, second)
        result.end = end
        return result

    def _note_branch(self, first: Energy, second: Energy) -> None:
        """Note the end of a branch: the summand with more layers on its longest path.

        The other summand goes around the branch: it is the stream, or a layer that projects the stream.
        """
        branch = max(first, second, key=lambda summand: summand.depth)
        if first.depth != second.depth and branch.end is not None:
            self.branch_ends.append(branch.end)

    def _concatenation(self, func: Callable[..., Any], tensors: Iterable[Tensor], dim: int = 0) -> Any:
        parts = [part if isinstance(part, Energy) else _energy(part.double() * 0) for part in tensors]
        result: Energy = func(self._join("cat", *parts), dim)
        result.parts = tuple(parts)
        return result

    # ----------------------------------------------------------------------------------------------------

    def _join(self, kind: Literal["norm", "cat"], *energies: Energy) -> list[Energy]:
        """Apply a normalization or concatenation to energies, and record it as a joint."""
        joint, tensors = len(self.joints), [_plain(energy) for energy in energies]
        factor = tensors[0].new_ones((), requires_grad=True)
        self.joints.append(factor)
        ends = [End(kind, tensor.sum()) for tensor in tensors]
        if self.cuts is not None and joint in self.cuts:
            # Paths end here. New ones begin with a mean energy of 1.
            self.ends += ends
            return [_energy(tensor.detach() / tensor.detach().mean().clamp(min=_TINY)) for tensor in tensors]
        if kind == "norm":
            return [_energy(tensors[0] * factor)]
        if self.cuts is None:
            self.ends += ends
        # All parts keep their values, but derivatives reach only the part with the longest path.
        longest = max(range(len(energies)), key=lambda index: energies[index].depth)
        total = ends[longest].total
        factor = factor * total / total.detach().clamp(min=_TINY)
        return [_energy(tensor.detach() * factor) for tensor in tensors]

    def _squared(self, constant: Any) -> Any:
        """Square a constant; the square of a layer's weight is multiplied by the layer's factor."""
        if isinstance(constant, Energy):
            return constant
        if isinstance(constant, Tensor):
            square = constant.detach().double().square()
            known = isinstance(constant, nn.Parameter) and constant in self.factors
            return square * self.factors[constant] if known else square  # type: ignore[index]
        return constant**2 if isinstance(constant, (int, float)) else constant


def modules_run(
    module: nn.Module, example_input: Any, factors: Mapping[nn.Parameter, Tensor]
) -> tuple[set[nn.Module], set[nn.Parameter]]:
    """Find the submodules that a module's forward calls, and the layer weights that it reads.

    Args:
        module: Any module; it does not change.
        example_input: Input of its forward.
        factors: The weights to search for, each with a factor of 1.
    """
    called: set[nn.Module] = set()
    handles = [each.register_forward_pre_hook(lambda m, _: called.add(m)) for each in module.modules()]
    try:
        network = PathNetwork(factors).run(module, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return called, {reading.weight for reading in network.readings}


def _negative_slope(name: str, slope: Any = 0.01, *args: Any, **kwargs: Any) -> float:
    """Return the slope of a leaky rectifier below 0, the root mean square over channels; 0 of others."""
    if name == "leaky_relu":
        return float(kwargs.get("negative_slope", slope))
    if name == "prelu":
        return float(kwargs.get("weight", slope).detach().double().square().mean().sqrt())
    return 0.0


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def _energy(tensor: Tensor) -> Energy:
    return tensor.as_subclass(Energy)


def _ones(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _energy(torch.ones(value.shape, dtype=torch.float64, device=device))
