"""CUDA graphs: a fixed sequence of kernels that the host starts with one call.

A small network on a fast GPU waits for the host, which starts its kernels one by one. A CUDA graph records
them once, with the addresses of their tensors, and replays them all with one call
(https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs). So inputs are copied into the same tensors
every time, and outputs are copied out of them.

On a CPU there is nothing to record, and a replay calls the function again. All else is the same, so tests on
a CPU run the same code.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

Values = dict[str, Tensor]
Output = TypeVar("Output", bound=Sequence[Tensor])

MAX_SHAPES = 8
"""Most shapes of inputs that are captured; each keeps the memory of its own activations."""

_WARM_UPS = 3
"""Calls before a capture: they choose kernels and set up libraries, which a graph cannot."""

_TOLERANCE = 0.02
"""Largest relative difference between a replay and an ordinary call, which may choose other kernels."""


class CannotCapture(Exception):
    """A function does something that a graph cannot repeat."""


def capture(function: Callable[[], Output], device: torch.device) -> tuple[Output, Callable[[], None]]:
    """Record a function of tensors that stay in place.

    Args:
        function: Returns the same number of tensors of the same shapes at each call.
        device: The device of all its tensors.

    Returns:
        Its outputs, and a function that computes them anew in the same memory, from the inputs of then.
    """
    if device.type != "cuda":
        outputs = function()

        def call_again() -> None:
            for output, value in zip(outputs, function(), strict=True):
                output.copy_(value)

        return outputs, call_again
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return outputs, graph.replay


class Inputs:
    """Tensors that stay in place, and take in the content of others of the same structure and shapes.

    Args:
        example: Nested dicts, tuples, lists or tensordicts of tensors and floats. Tensors are copied, floats
            become tensors ``()``.
        device: The device to keep them on.
    """

    def __init__(self, example: Any, device: torch.device) -> None:
        leaves, structure = pytree.tree_flatten(example)
        self._leaves = [
            leaf.to(device, copy=True) if isinstance(leaf, Tensor) else torch.full((), leaf, device=device)
            for leaf in leaves
        ]
        self.value = pytree.tree_unflatten(self._leaves, structure)
        """The tensors, in the structure of the example."""

    def fill(self, value: Any) -> None:
        """Copy the content of another value of this structure."""
        targets, sources = [], []
        for kept, leaf in zip(self._leaves, pytree.tree_leaves(value), strict=True):
            if isinstance(leaf, Tensor):
                targets.append(kept)
                sources.append(leaf)
            else:
                kept.fill_(leaf)
        torch._foreach_copy_(targets, sources, non_blocking=True)


def shape_of(value: Any) -> tuple[Any, ...]:
    """Return structure, shapes and types of nested tensors and floats: whatever a graph depends on.

    Raises:
        CannotCapture: If a leaf is neither a tensor nor a float.
    """
    leaves, structure = pytree.tree_flatten(value)
    for leaf in leaves:
        if not isinstance(leaf, Tensor | float):
            raise CannotCapture(f"an input is a {type(leaf).__name__}")
    return structure, *((leaf.shape, leaf.dtype) if isinstance(leaf, Tensor) else float for leaf in leaves)


@dataclass
class _Captured(Generic[Output]):
    """A captured function: the memory of its inputs and outputs, and what it read beside them."""

    inputs: Inputs
    outputs: Output
    replay: Callable[[], None]
    addresses: tuple[int, ...]

    def __call__(self, value: Any) -> Output:
        self.inputs.fill(value)
        self.replay()
        return self.outputs


class Graphed(Generic[Output]):
    """A function that is captured at its first call with inputs of a shape, and replayed at later ones.

    The function must not depend on anything but its inputs, the tensors of ``state``, and PyTorch's default
    generator of the device. It is called a few times at capture; ``state`` and the generator are put back
    afterwards.

    Args:
        function: Maps nested tensors to a sequence of tensors.
        device: The device of all tensors.
        state: Lists parameters and buffers that the function reads or changes in place. If their memory has
            moved since, the function is captured again.
        train: Whether the function needs gradients.
    """

    def __init__(
        self,
        function: Callable[[Any], Output],
        device: torch.device,
        state: Callable[[], Iterable[Tensor]],
        train: bool,
    ) -> None:
        self._function = function
        self._device = device
        self._state = state
        self._train = train
        self._captured: dict[tuple[Any, ...], _Captured[Output]] = {}

    def __call__(self, value: Any) -> Output:
        """Compute the outputs, which the next call overwrites.

        Raises:
            CannotCapture: If a graph cannot repeat the function.
        """
        shape = shape_of(value)
        captured = self._captured.get(shape)
        addresses = tuple(tensor.data_ptr() for tensor in self._state())
        if captured is None or captured.addresses != addresses:
            if len(self._captured) == MAX_SHAPES and captured is None:
                raise CannotCapture(f"inputs have more than {MAX_SHAPES} shapes")
            captured = self._captured[shape] = self._capture(value, addresses)
        return captured(value)

    def _capture(self, value: Any, addresses: tuple[int, ...]) -> _Captured[Output]:
        inputs = Inputs(value, self._device)
        with torch.set_grad_enabled(self._train), _without_autocast_cache():
            try:
                expected = self._warm_up(inputs)
                with self._put_back():
                    outputs, replay = capture(lambda: self._function(inputs.value), self._device)
            except CannotCapture:
                raise
            except RuntimeError as error:
                raise CannotCapture(str(error).strip().partition("\n")[0]) from error
            captured = _Captured(inputs, outputs, replay, addresses)
            with self._put_back():
                replayed = captured(value)
        for output, value_ in zip(replayed, expected, strict=True):
            if not _agree(output, value_):
                raise CannotCapture("a replay differs from an ordinary call")
        return captured

    def _warm_up(self, inputs: Inputs) -> list[Tensor]:
        """Call the function as a graph will, on a stream of its own; return copies of its outputs."""
        expected: list[Tensor] = []
        with _side_stream(self._device):
            for _ in range(_WARM_UPS if self._device.type == "cuda" else 1):
                with self._put_back():
                    outputs = self._function(inputs.value)
                    expected = [output.detach().clone() for output in outputs]
                    del outputs
        return expected

    @contextlib.contextmanager
    def _put_back(self) -> Iterator[None]:
        """Put back state and generator, whatever is done to them within."""
        tensors = list(self._state())
        saved = [tensor.detach().clone() for tensor in tensors]
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield
        if tensors:
            with torch.no_grad():
                torch._foreach_copy_([tensor.detach() for tensor in tensors], saved)


class GraphedFunction:
    """A function without gradients, captured: that of a policy.

    Args:
        function: Maps nested tensors to named tensors.
        device: The device of all tensors.
        state: As for `Graphed`.
    """

    def __init__(
        self,
        function: Callable[[Any], Mapping[str, Tensor]],
        device: torch.device,
        state: Callable[[], Iterable[Tensor]],
    ) -> None:
        self._names: list[str] = []

        def outputs(inputs: Any) -> list[Tensor]:
            named = function(inputs)
            self._names = list(named)
            return list(named.values())

        self._graphed = Graphed(outputs, device, state, train=False)

    def __call__(self, inputs: Any) -> Values:
        """Return new tensors by name, for nested tensors and floats.

        Raises:
            CannotCapture: If a graph cannot repeat the function.
        """
        outputs = self._graphed(inputs)
        return {name: output.clone() for name, output in zip(self._names, outputs, strict=True)}


class GraphedLoss:
    """A loss whose value and gradients one graph computes; ``backward`` hands the gradients out.

    Everything after ``backward`` goes on as usual: gradients arrive at ``.grad``, scaled by whatever the loss
    was multiplied with since, and hooks see them.

    Args:
        loss: Maps a batch to the loss ``()``, and to named tensors that go with it, such as metrics.
        parameters: Lists the parameters to differentiate with respect to.
        device: The device of all tensors.
        state: As for `Graphed`; includes the parameters.
    """

    def __init__(
        self,
        loss: Callable[[Any], tuple[Tensor, Values]],
        parameters: Callable[[], Iterable[Tensor]],
        device: torch.device,
        state: Callable[[], Iterable[Tensor]],
    ) -> None:
        self._names: list[str] = []
        self._trained: list[Tensor] = []

        def loss_and_gradients(batch: Any) -> list[Tensor]:
            value, named = loss(batch)
            trained = [parameter for parameter in parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(value, trained, allow_unused=True)
            # A parameter without influence on the loss keeps its ``grad`` of None.
            reached = [(p, g) for p, g in zip(trained, gradients, strict=True) if g is not None]
            self._names, self._trained = list(named), [parameter for parameter, _ in reached]
            return [value.detach(), *(each.detach() for each in named.values()), *(g for _, g in reached)]

        self._graphed = Graphed(loss_and_gradients, device, state, train=True)

    def __call__(self, batch: Any) -> tuple[Tensor, Values]:
        """Return the loss ``()``, ready for ``backward``, and the named tensors.

        Raises:
            CannotCapture: If a graph cannot repeat the loss.
        """
        value, *rest = self._graphed(batch)
        named, gradients = rest[: len(self._names)], rest[len(self._names) :]
        copies = {name: each.clone() for name, each in zip(self._names, named, strict=True)}
        return _HandOut.apply(value, gradients, *self._trained), copies  # type: ignore[no-untyped-call]


class _HandOut(torch.autograd.Function):
    """A loss whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, factor: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # New tensors: the next replay overwrites these, and whoever accumulates gradients keeps them.
        return None, None, *torch._foreach_mul(ctx.gradients, factor)


def _agree(output: Tensor, expected: Tensor) -> bool:
    if not output.is_floating_point():
        return True  # a rounding error may change which of two nearly equal values is larger
    difference = torch.linalg.vector_norm((output.detach() - expected).double())
    scale = torch.linalg.vector_norm(expected.double())
    # NaN and infinity are the caller's business, if both calls give them.
    return bool(difference <= _TOLERANCE * scale + 1e-6) or not bool(scale.isfinite())


@contextlib.contextmanager
def _without_autocast_cache() -> Iterator[None]:
    """Let autocast cast weights at each use: a graph must not depend on copies that were made before it."""
    enabled = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


@contextlib.contextmanager
def _side_stream(device: torch.device) -> Iterator[None]:
    """Run on a stream of its own, as PyTorch asks for before a capture."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)
