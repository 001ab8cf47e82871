"""A stand-in for a GPU: a device of its own on a machine that has none.

Its tensors hold their numbers in CPU tensors, and every operator computes there: results are the CPU's. But
it keeps apart what a GPU keeps apart. An operator that mixes its tensors with the CPU's, ``.numpy()``, and a
CPU generator for its random numbers are errors. PyTorch takes it for a device by the hooks that it has for
backends written in Python, and Lightning for an accelerator, which it finds as it finds a GPU. It tells
`observers` of every operator, and of those at which the host waits for a GPU.

Registering cannot be undone: tests do it in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from lightning.pytorch.accelerators import Accelerator, AcceleratorRegistry
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.accelerator_connector import _AcceleratorConnector
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend
from typing_extensions import override

NAME = "standin"

_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default}
"""Operators that are there to take numbers from one device to the other."""
_INDEXING = {
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
    _aten._unsafe_index.Tensor,
}
"""Operators that take the CPU's indices on a GPU as well."""
_READING = {
    _aten._linalg_check_errors.default,
    _aten._linalg_eigh.default,
    _aten._linalg_svd.default,
    _aten._local_scalar_dense.default,
    _aten._unique2.default,
    _aten.bincount.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.masked_select.default,
    _aten.multinomial.default,
    _aten.nonzero.default,
    _aten.normal.Tensor_float,
    _aten.normal.Tensor_Tensor,
    _aten.normal.float_Tensor,
    _aten.unique_consecutive.default,
    _aten.unique_dim.default,
}
"""Operators whose result, or a check of it, the host reads from a GPU."""
_library: list[torch.library.Library] = []

observers: list[Callable[[Any, tuple[Any, ...], bool], None]] = []
"""Called with each operator, its arguments, and whether the host waits for a GPU there."""


class StandInTensor(Tensor):
    """A tensor on the stand-in device, around the CPU tensor that has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> StandInTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
            requires_grad=False,
        )
        made.held = held
        return made

    @classmethod
    @override
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            if isinstance(value, torch._C.Generator) and value.device.type != NAME:
                raise RuntimeError(f"expected a {NAME!r} device type for generator but found {value.device}")
        with torch._C.DisableTorchFunctionSubclass():
            result = function(*args, **(kwargs or {}))
        is_plain = cls is StandInTensor or isinstance(result, torch.Size)  # which would become a tuple
        return result if is_plain else tree_map(partial(_as, cls), result)

    @classmethod
    @override
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _tell(function, args, kwargs)
        if function in _COPIES:
            return _copy(function, *args, **kwargs)
        _check(function, args, kwargs)
        held_args, held_kwargs = tree_map(_held, (args, kwargs))
        if "device" in held_kwargs:
            stays = held_kwargs["device"] is None or torch.device(held_kwargs["device"]).type == NAME
            held_kwargs["device"] = torch.device("cpu")
            if not stays:
                return function(*held_args, **held_kwargs)
        result = tree_map(_wrapped, function(*held_args, **held_kwargs))
        return return_and_correct_aliasing(function, args, kwargs, result)

    @override
    def as_subclass(self, cls: type[Tensor]) -> Any:
        """Mark a tensor, as PyTorch does it: but it stays one of the stand-in's."""
        with torch._C.DisableTorchFunctionSubclass():
            alias = self.view_as(self)
        alias.__class__ = _on_standin(cls)
        return alias

    @override
    def tolist(self) -> Any:
        """Read the numbers, as from any device."""
        _tell(_aten._local_scalar_dense.default, (self,), {})
        return self.held.tolist()

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{NAME}:{self.held!r}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Be written as the CPU tensor that a checkpoint is read as, wherever it was written."""
        return self.held.detach().__reduce_ex__(protocol)


@cache
def _on_standin(cls: type[Tensor]) -> type[StandInTensor]:
    if issubclass(cls, StandInTensor):
        return cls
    return StandInTensor if cls is Tensor else type(cls.__name__, (cls, StandInTensor), {})


def _as(cls: type[StandInTensor], value: Any) -> Any:
    is_other = isinstance(value, StandInTensor) and not isinstance(value, cls)
    return value.as_subclass(cls) if is_other else value


def _held(value: Any) -> Any:
    if isinstance(value, StandInTensor):
        return value.held
    return value


def _wrapped(value: Any) -> Any:
    return StandInTensor(value) if isinstance(value, Tensor) else value


def _tell(function: Any, args: Any, kwargs: Any) -> None:
    for observer in observers:
        observer(function, args, _waits(function, args, kwargs))


def _waits(function: Any, args: Any, kwargs: Any) -> bool:
    """Return whether the host waits for a GPU in this operator.

    Copies to a GPU are taken to come from page-locked memory, which a CPU does not have.
    """
    if function is _aten.repeat_interleave.Tensor:
        return kwargs.get("output_size") is None
    if function in _INDEXING:
        # A mask is counted on the host; indices on the CPU are copied.
        indices = [index for index in args[1] if index is not None]
        return any(not isinstance(index, StandInTensor) or index.dtype == torch.bool for index in indices)
    if function is _aten._to_copy.default:
        goes = kwargs.get("device")
        return goes is not None and torch.device(goes).type != NAME
    if function in _COPIES:
        target, source, *rest = args if function is _aten.copy_.default else (args[1], args[0], *args[2:])
        if isinstance(target, StandInTensor) == isinstance(source, StandInTensor):
            return False
        is_async = rest[0] if rest else kwargs.get("non_blocking", False)
        return not (isinstance(target, StandInTensor) and is_async)
    return function in _READING


def _check(function: Any, args: Any, kwargs: Any) -> None:
    """Refuse what a GPU refuses."""
    taken = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    strangers = [value for value in taken if not isinstance(value, StandInTensor)]
    for stranger in strangers:
        if function in _INDEXING and args[0] is not stranger:
            continue
        is_written = args[0] is stranger and function._schema.is_mutable
        is_number = stranger.ndim == 0 and torch.Tag.pointwise in function.tags
        if is_written or not is_number:
            raise RuntimeError(
                f"{function}: expected all tensors to be on the same device, but found at least two devices, "
                f"{NAME}:0 and {stranger.device}"
            )


def _copy(function: Any, source: Tensor, *others: Any, **options: Any) -> Any:
    if function is _aten._to_copy.default:
        device = options.pop("device", None)
        options.pop("non_blocking", None)
        held = function(_held(source), **options)
        goes = source.device if device is None else torch.device(device)
        return StandInTensor(held) if goes.type == NAME else held
    target, origin = (source, others[0]) if function is _aten.copy_.default else (others[0], source)
    _held(target).copy_(_held(origin))
    return target


def _copy_from(*args: Any, **options: Any) -> Any:
    _tell(_aten._copy_from.default, args, options)
    return _copy(_aten._copy_from.default, *args)


class StandInGenerator(torch._C.Generator):
    """A generator of any device, which says of which; a stand-in tensor takes none but the stand-in's."""

    kept_device: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> StandInGenerator:
        made = super().__new__(cls, device="cpu")
        made.kept_device = torch.device(device)
        return made

    @property
    @override
    def device(self) -> torch.device:
        return self.kept_device


def _factories() -> Iterator[Any]:
    """Find the operators that make a tensor on a device of nothing but numbers."""
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, full = name.partition("::")
        if namespace != "aten" or full.startswith("_"):
            continue
        operator, _, overload = full.partition(".")
        try:
            function = getattr(getattr(_aten, operator), overload or "default")
        except AttributeError:
            continue
        arguments = function._schema.arguments
        made = [str(each.type) for each in function._schema.returns]
        takes = [str(each.type) for each in arguments]
        if made == ["Tensor"] and "device" in {each.name for each in arguments} and "Tensor" not in takes:
            yield function


def _factory(function: Any) -> Any:
    def make(*args: Any, **kwargs: Any) -> StandInTensor:
        return StandInTensor(function(*args, **{**kwargs, "device": "cpu", "pin_memory": False}))

    return make


class _Module:
    """The functions that PyTorch looks for in ``torch.standin``."""

    def is_initialized(self) -> bool:
        return True

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.get_rng_state()  # its numbers are the CPU's

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        torch.set_rng_state(state)

    def synchronize(self, device: Any = None) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass  # its numbers are drawn from the CPU's generator

    def _is_in_bad_fork(self) -> bool:
        return False


class StandInAccelerator(Accelerator):
    """Has Lightning train on the stand-in device."""

    @override
    def setup_device(self, device: torch.device) -> None:
        pass

    @override
    def teardown(self) -> None:
        pass

    @staticmethod
    @override
    def parse_devices(devices: Any) -> int:
        return int(devices)

    @staticmethod
    @override
    def get_parallel_devices(devices: int) -> list[torch.device]:
        return [torch.device(NAME, index) for index in range(devices)]

    @staticmethod
    @override
    def auto_device_count() -> int:
        return 1

    @staticmethod
    @override
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return NAME

    @override
    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}


def register() -> None:
    """Make the device known to PyTorch and Lightning."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Module())
    library = torch.library.Library("aten", "IMPL")
    for function in _factories():
        library.impl(function, _factory(function), "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    _library.append(library)  # what it registered lasts as long as it
    torch.Generator = StandInGenerator  # type: ignore[misc]
    AcceleratorRegistry.register(NAME, StandInAccelerator)
    # Lightning gives the CPU to accelerators that are not its own, and never takes them by itself.
    choose = _AcceleratorConnector._choose_strategy
    _AcceleratorConnector._choose_strategy = lambda self: (  # type: ignore[method-assign]
        SingleDeviceStrategy(torch.device(NAME, 0)) if self._accelerator_flag == NAME else choose(self)
    )
    _AcceleratorConnector._choose_auto_accelerator = staticmethod(lambda: NAME)  # type: ignore[method-assign]
