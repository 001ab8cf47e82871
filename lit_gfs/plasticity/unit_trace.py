"""Execution of a module's forward that follows each unit from the layer that writes it to its readers.

Every tensor of the forward gets labels: integers of the same shape that say to which unit an entry belongs.
Functions that rearrange entries (views, concatenations) rearrange the labels alike, so no rule needs to know
the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

_CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")
_ACTIVATIONS = (
    *("relu", "relu6", "leaky_relu", "rrelu", "prelu", "threshold", "gelu", "silu", "elu", "selu", "celu"),
    *(
        "mish",
        "softplus",
        "softsign",
        "tanh",
        "sigmoid",
        "hardtanh",
        "hardsigmoid",
        "hardswish",
        "sin",
        "cos",
    ),
)
_NORMS = ("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm")
_VIEWS = ("flatten", "unflatten", "reshape", "view", "squeeze", "unsqueeze")
_REARRANGEMENTS = (
    *("permute", "transpose", "movedim", "cat", "concat", "concatenate", "stack", "split", "chunk"),
    *("getitem", "narrow", "expand"),
)
_POOLS = tuple(
    f"{adaptive}{kind}_pool{dims}d"
    for adaptive in ("", "adaptive_")
    for kind in ("max", "avg")
    for dims in "123"
)
_UNARY = (
    *("float", "double", "half", "bfloat16", "to", "type", "type_as", "contiguous", "clone", "detach", "neg"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
)
_BINARY = (
    *("add", "iadd", "radd", "sub", "isub", "rsub", "subtract"),
    *("mul", "imul", "rmul", "multiply", "div", "idiv", "divide", "truediv", "itruediv", "true_divide"),
)


class Reading(NamedTuple):
    """Entries along one dimension of a parameter, and the units that they belong to."""

    parameter: nn.Parameter
    """The weight of a layer that reads units, ``(outputs, inputs, ...)``, or a parameter of a normalization,
    ``(features,)``."""
    labels: Tensor
    """Labels of the inputs or features; 0 for an entry that belongs to no unit."""


@dataclass
class Written:
    """The units that one call of a layer writes."""

    layer: nn.Module
    first: int
    """Label of the first unit; the others follow."""
    activations: int = 0
    """How many activation functions read the units as the layer wrote them."""
    reason: str = ""
    """Why not all that reads the units is known; empty if it is."""

    @property
    def units(self) -> int:
        """The number of units."""
        return len(self.layer.weight)  # type: ignore[arg-type]


@dataclass(eq=False)
class UnitTrace(TorchFunctionMode):
    """Follows units while a module runs.

    A label is positive behind the activation of a unit and negative before it. An entry that depends on units
    without belonging to one, such as a sum of several, has the label 0; what depends on no unit has no
    labels. Readings of positive labels by linear and convolutional layers are the outgoing weights of units.
    Where anything else reads a unit, its outgoing weights are not known, and the reason is noted.

    Args:
        layers: The linear and convolutional layers by their weights.
    """

    layers: Mapping[nn.Parameter, nn.Module]
    written: list[Written] = field(default_factory=list)
    """The calls of layers, in their order."""
    readings: list[Reading] = field(default_factory=list)
    """The inputs of layers that read units behind their activation."""
    norms: list[Reading] = field(default_factory=list)
    """The parameters of normalizations between a layer and its activation."""

    def __post_init__(self) -> None:
        super().__init__()
        # Tensors are kept as well, so no other tensor takes over the id of a deleted one.
        self._labels: dict[int, tuple[Tensor, Tensor]] = {}
        self._count = 0
        rules: tuple[tuple[Callable[..., Any], Iterable[str]], ...] = (
            (self._linear, ("linear",)),
            (self._convolution, _CONVOLUTIONS),
            (self._activation, _ACTIVATIONS),
            (self._norm, _NORMS),
            (self._view, _VIEWS),
            (self._rearrangement, _REARRANGEMENTS),
            (self._pool, _POOLS),
            (self._unary, _UNARY),
            (self._binary, _BINARY),
        )
        self._rules = {name: rule for rule, names in rules for name in names}

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        read = [leaf for leaf in tree_leaves((args, kwargs)) if self.labels_of(leaf) is not None]
        is_layer = name == "linear" or name in _CONVOLUTIONS
        if not read and not is_layer:
            return func(*args, **kwargs)
        labels = [self.labels_of(leaf) for leaf in read]  # before a function changes a tensor in place
        result = func(*args, **kwargs)
        rule = self._rules.get(name)
        if rule is not None:
            rule(func, result, *args, **kwargs)
        elif mixed := [leaf for leaf in tree_leaves(result) if _is_signal(leaf)]:
            self._give_up(f"{name} reads its outputs", labels)
            for leaf in mixed:
                self._mix(leaf)
        return result

    def labels_of(self, value: Any) -> Tensor | None:
        """Return the labels of a tensor; ``None`` if it depends on no unit."""
        kept = self._labels.get(id(value)) if isinstance(value, Tensor) else None
        return None if kept is None else kept[1]

    def finish(self, output: Any) -> None:
        """Note that nothing is known of the readers of what forward returns."""
        for leaf in tree_leaves(output):
            labels = self.labels_of(leaf)
            if labels is not None:
                self._give_up("forward returns its activated outputs", [labels.clamp(min=0)])

    # -- One rule for each kind of function -------------------------------------------------------------

    def _linear(
        self, func: Any, result: Tensor, input: Tensor, weight: Tensor, bias: Any = None, **kwargs: Any
    ) -> None:
        labels = self.labels_of(input)
        self._read(weight, None if labels is None else labels.reshape(-1, labels.shape[-1]))
        self._write(result, weight, dim=result.ndim - 1)

    def _convolution(
        self,
        func: Any,
        result: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Any = None,
        *rest: Any,
        **kwargs: Any,
    ) -> None:
        spatial = weight.ndim - 2
        channels = result.ndim - spatial - 1
        labels = self.labels_of(input)
        if labels is not None:
            labels = labels.movedim(channels, -1).reshape(-1, labels.shape[channels])
            if labels.shape[1] != weight.shape[1]:
                self._give_up("a grouped convolution reads its outputs", [labels])
                labels = None
        self._read(weight, labels)
        self._write(result, weight, dim=channels)

    def _activation(self, func: Any, result: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> None:
        labels = self.labels_of(input)
        if labels is None:
            return
        for call in self._calls(labels.clamp(max=0)):
            call.activations += 1
        self._give_up("two activations follow it", [labels.clamp(min=0)])
        self._set(result, labels.abs())

    def _norm(self, func: Any, result: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> None:
        labels = self.labels_of(input)
        if labels is None:
            return
        dim = labels.ndim - 1 if func.__name__ in ("layer_norm", "rms_norm") else 1
        rows = labels.movedim(dim, -1).reshape(-1, labels.shape[dim])
        parameters = [each for each in (*args, *kwargs.values()) if isinstance(each, nn.Parameter)]
        if not _is_constant(rows) or any(each.shape != rows.shape[1:] for each in parameters):
            self._give_up("a normalization of single positions follows it", [labels])
            self._mix(result)
            return
        self._set(result, labels)
        # Behind an activation, the parameters belong to the readers of the units.
        before = rows[0].clamp(max=0)
        self.norms += [Reading(each, -before) for each in parameters if before.any()]

    def _view(self, func: Any, result: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> None:
        labels = self.labels_of(input)
        if labels is not None:
            self._set(result, labels.reshape(result.shape))

    def _rearrangement(self, func: Any, result: Any, *args: Any, **kwargs: Any) -> None:
        labels = func(*tree_map(self._labels_or_zeros, args), **tree_map(self._labels_or_zeros, kwargs))
        for leaf, its_labels in zip(tree_leaves(result), tree_leaves(labels), strict=True):
            self._set(leaf, its_labels)

    def _pool(self, func: Any, result: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> None:
        labels = self.labels_of(input)
        if labels is None:
            return
        channels = 1 if func.__name__.endswith(f"{input.ndim - 2}d") else 0
        rows = labels.movedim(channels, -1).reshape(-1, labels.shape[channels])
        if not isinstance(result, Tensor) or not _is_constant(rows):
            self._give_up("a pooling over units follows it", [labels])
            self._mix(result)
            return
        self._set(result, _along(rows[0], result, channels))

    def _unary(self, func: Any, result: Any, input: Tensor, *args: Any, **kwargs: Any) -> None:
        labels = self.labels_of(input)
        if labels is not None:
            self._set(result, labels)

    def _binary(self, func: Any, result: Tensor, first: Any, second: Any, *args: Any, **kwargs: Any) -> None:
        labels = [each for each in (self.labels_of(first), self.labels_of(second)) if each is not None]
        if len(labels) == 2:
            self._give_up("its outputs are combined with those of another layer", labels)
            self._mix(result)
        elif labels:
            self._set(result, labels[0].expand_as(result))

    # ----------------------------------------------------------------------------------------------------

    def _read(self, weight: Tensor, rows: Tensor | None) -> None:
        """Note that a layer reads inputs with the labels ``(positions, inputs)``."""
        if rows is None:
            return
        self._give_up("a layer reads its outputs before an activation", [rows.clamp(max=0)])
        if not (isinstance(weight, nn.Parameter) and weight in self.layers):
            self._give_up("the weight of a reader is computed of other parameters", [rows])
        elif not weight.requires_grad:
            self._give_up("a reader is frozen", [rows])
        elif not _is_constant(rows):
            self._give_up("a layer reads single positions of its outputs", [rows])
        else:
            self.readings.append(Reading(weight, rows[0].clamp(min=0)))

    def _write(self, result: Tensor, weight: Tensor, dim: int) -> None:
        """Label the output of a layer along the dimension of its units."""
        if not (isinstance(weight, nn.Parameter) and weight in self.layers):
            self._mix(result)
            return
        call = Written(self.layers[weight], self._count + 1)
        self.written.append(call)
        self._count += call.units
        labels = -torch.arange(call.first, call.first + call.units, device=result.device)
        self._set(result, _along(labels, result, dim))

    def _set(self, tensor: Any, labels: Tensor) -> None:
        if isinstance(tensor, Tensor):
            self._labels[id(tensor)] = (tensor, labels)

    def _mix(self, tensor: Any) -> None:
        """Note that a tensor depends on units that its entries do not belong to."""
        if isinstance(tensor, Tensor):
            self._set(tensor, torch.zeros(tensor.shape, dtype=torch.int64, device=tensor.device))

    def _labels_or_zeros(self, value: Any) -> Any:
        if not _is_signal(value):
            return value
        labels = self.labels_of(value)
        return torch.zeros(value.shape, dtype=torch.int64, device=value.device) if labels is None else labels

    def _give_up(self, reason: str, labels: Iterable[Tensor | None]) -> None:
        """Note for all units with a label other than 0 why not all their readers are known."""
        for each in labels:
            if each is not None:
                for call in self._calls(each):
                    call.reason = call.reason or reason

    def _calls(self, labels: Tensor) -> list[Written]:
        """Return the calls of layers that wrote the units of labels."""
        present = labels.abs().unique().cpu()
        firsts = torch.tensor([call.first for call in self.written])
        rows = torch.searchsorted(firsts, present[present > 0], right=True) - 1
        return [self.written[row] for row in rows.unique().tolist()]


def _is_signal(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_constant(rows: Tensor) -> bool:
    """Return whether all rows ``(positions, units)`` are equal."""
    return bool((rows == rows[:1]).all())


def _along(labels: Tensor, like: Tensor, dim: int) -> Tensor:
    """Repeat labels ``(units,)`` over all other dimensions of a tensor."""
    shape = [1] * like.ndim
    shape[dim] = len(labels)
    return labels.view(shape).expand(like.shape)
