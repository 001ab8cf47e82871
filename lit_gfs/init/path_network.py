"""Runs a module's own forward on path energies instead of signals.

A path leads from an input to an output through one weight of every layer that it crosses; its energy is the
product of those weights' squares. At initialization signs are random, so that the energies of all paths add
up to the squared size of the output, and their derivatives to squared gradients. With absolute instead of
squared weights this is the saliency of SynFlow (Tanaka et al. 2020, arXiv 2006.05467).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from lit_gfs.errors import UserError

_LINEAR = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
_RECTIFIERS = ("relu", "relu6", "leaky_relu", "rrelu", "prelu", "threshold")
_SMOOTH = ("gelu", "silu", "elu", "selu", "celu", "mish", "softplus")
_SQUASHING = ("tanh", "sigmoid", "hardtanh", "hardsigmoid", "hardswish")
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
"""Stands in for a mean of energies that is 0, where a branch is shut."""


class Origin(NamedTuple):
    """The layer whose output a tensor is, and the activation it went through since, if any."""

    weight: nn.Parameter
    activation: str | None = None


class Energy(Tensor):
    """Marks the tensors that hold path energies."""

    depth: int = 0
    """The most layers that a path to here crosses."""
    origin: Origin | None = None
    parts: tuple[Tensor, ...] = ()
    """What was concatenated into this one, over features."""


class Reading(NamedTuple):
    """What one call of a layer reads."""

    weight: nn.Parameter
    origin: Origin | None
    parts: tuple[Tensor, ...]
    factor: Tensor
    """A factor of 1 on what it puts out; a shared layer has one for each call."""


class End(NamedTuple):
    """Where energies are summed: at an output, or before they are normalized or concatenated."""

    kind: Literal["output", "norm", "cat"]
    total: Tensor


class PathNetwork(TorchFunctionMode):
    """Reinterprets, while a module runs, functions of signals as functions of path energies.

    - Linear maps and convolutions have their weight squared, and no bias.
    - An activation halves: what the gain sqrt(2) of the layer before it makes good.
    - A normalization divides by the mean. While ``cuts`` is ``None`` it does nothing.
    - A concatenation needs all that it joins. Paths go on from the part that the longest one leads to, and
      end at the others.
    - Constants multiply squared, and add nothing. All else works on energies as on signals.

    A *cut* is a normalization or concatenation that all paths cross. It hides from what follows how large the
    energies were; paths end there, and new ones begin.

    Args:
        factors: The layers' weights, and for each the factor ``()`` on its energies.
        cuts: Which normalizations and concatenations, in order of their calls, are cuts.
        bend: Whether smooth activations count half in derivatives: scaling what they read does not scale what
            they return, which sets the layers before them apart.
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
        """A factor of 1 on what each normalization or concatenation passes on."""
        self.ends: list[End] = []
        """Where paths end: at outputs and cuts."""
        self.readings: list[Reading] = []
        self.outputs: list[Energy] = []
        self.half = torch.full((), 0.5, dtype=torch.float64, requires_grad=True)
        """What an activation passes on."""
        rules = (
            (self._linear, _LINEAR),
            (self._rectifier, _RECTIFIERS),
            (self._smooth, _SMOOTH + _SQUASHING),
            (self._norm, _NORMS),
            (self._same, _CASTS + _LIMITS + _DROPOUTS),
            (self._view, _VIEWS),
            (self._product, _PRODUCTS + _CONTRACTIONS),
            (self._sum, _SUMS),
            (self._concatenation, _CONCATENATIONS),
        )
        self._rules = {name: rule for rule, names in rules for name in names}

    def run(self, module: nn.Module, example_input: Any) -> PathNetwork:
        """Run the module on energies of 1; parameters, buffers and generators are left as they are.

        Args:
            module: Any module.
            example_input: What its forward takes: a tensor, a tuple of arguments or a dict of keywords, of
                which only the shapes matter. One example is enough.

        Returns:
            This object.

        Raises:
            UserError: If the forward does not run on energies.
        """
        with _evaluating(module), torch.enable_grad(), self:
            try:
                output = _call(module, tree_map(partial(_ones, device=_device(module)), example_input))
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

    # -- one rule each -----------------------------------------------------------------------------------

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
        return result

    def _rectifier(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        result: Any = energy * self.half.to(energy.device)
        if energy.origin is not None and energy.origin.activation is None:
            result.origin = Origin(energy.origin.weight, func.__name__.strip("_"))
        return result

    def _smooth(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        result = self._rectifier(func, energy)
        if not self.bend:
            return result
        bent = _energy((_plain(result) + _plain(result).detach()) / 2)
        bent.origin = result.origin
        return bent

    def _norm(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        result: Any = self._join("norm", energy)[0]
        if self.cuts is not None:
            result = result / result.mean().clamp(min=_TINY)
        result.origin = energy.origin
        return result

    def _same(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        return energy

    def _view(self, func: Callable[..., Any], energy: Energy, *args: Any, **kwargs: Any) -> Any:
        result = func(energy, *args, **kwargs)
        result.origin = energy.origin
        return result

    def _product(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return func(*tree_map(self._squared, args), **kwargs)

    def _sum(self, func: Callable[..., Any], first: Any, second: Any, **kwargs: Any) -> Any:
        second = second if isinstance(second, Energy) else second * 0
        if func.__name__ in ("add_", "sub_"):
            return first.add_(second)
        return torch.add(first if isinstance(first, Energy) else first * 0, second)

    def _concatenation(self, func: Callable[..., Any], tensors: Iterable[Tensor], dim: int = 0) -> Any:
        parts = [part if isinstance(part, Energy) else _energy(part.double() * 0) for part in tensors]
        result: Energy = func(self._join("cat", *parts), dim)
        result.parts = tuple(parts)
        return result

    # ----------------------------------------------------------------------------------------------------

    def _join(self, kind: Literal["norm", "cat"], *energies: Energy) -> list[Energy]:
        """Pass on what is normalized or concatenated, and note it."""
        joint, tensors = len(self.joints), [_plain(energy) for energy in energies]
        needed = tensors[0].new_ones((), requires_grad=True)
        self.joints.append(needed)
        noted = [End(kind, tensor.sum()) for tensor in tensors]
        if self.cuts is not None and joint in self.cuts:
            self.ends += noted
            return [_energy(tensor.detach() / tensor.detach().mean().clamp(min=_TINY)) for tensor in tensors]
        if kind == "norm":
            return [_energy(tensors[0] * needed)]
        if self.cuts is None:
            self.ends += noted
        longest = max(range(len(energies)), key=lambda index: energies[index].depth)
        total = noted[longest].total
        needed = needed * total / total.detach().clamp(min=_TINY)
        return [_energy(tensor.detach() * needed) for tensor in tensors]

    def _squared(self, constant: Any) -> Any:
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
    """Find which modules a module's forward calls, and which weights it reads.

    Args:
        module: Any module; nothing of it changes.
        example_input: What its forward takes.
        factors: The weights to look for, each with a factor of 1.
    """
    called: set[nn.Module] = set()
    handles = [each.register_forward_pre_hook(lambda m, _: called.add(m)) for each in module.modules()]
    try:
        network = PathNetwork(factors).run(module, example_input)
    finally:
        for handle in handles:
            handle.remove()
    return called, {reading.weight for reading in network.readings}


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, then each of its submodules back into the mode it was in."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def _call(module: nn.Module, example_input: Any) -> Any:
    """Call a module with a tensor, a tuple of arguments or a dict of keywords."""
    if isinstance(example_input, dict):
        return module(**example_input)
    return module(*example_input) if isinstance(example_input, tuple) else module(example_input)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(Tensor)


def _energy(tensor: Tensor) -> Energy:
    return tensor.as_subclass(Energy)


def _device(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


def _ones(value: Any, device: torch.device) -> Any:
    if not isinstance(value, Tensor):
        return value
    return _energy(torch.ones(value.shape, dtype=torch.float64, device=device))
