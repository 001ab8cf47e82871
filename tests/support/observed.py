"""Counts the work of an accelerator: the places where the host waits for it, and the kernels it gets."""

from __future__ import annotations

import pkgutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import pairwise
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from support import standin


class Waits:
    """Finds where the host waits for the accelerator, between `begin` and `end`.

    On the stand-in, it lists every place outside of functions that may wait. On CUDA, PyTorch itself raises
    an error there.

    Args:
        allowed: Dotted names of the functions that may wait, as their callers know them.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self.found: list[str] = []
        """The operators that waited elsewhere, each with the place in the package that called it."""
        self.calls: Counter[str] = Counter()
        """Calls of functions that may wait, by their names."""
        self._allowed = allowed
        self._is_on = False
        self._depth = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Note calls of the functions that may wait, and observe the stand-in."""
        with ExitStack() as stack:
            for name in self._allowed:
                stack.enter_context(mock.patch(name, self._allowing(name)))
            standin.observers.append(self._observe)
            stack.callback(standin.observers.remove, self._observe)
            stack.callback(self.end)
            yield

    def begin(self) -> None:
        """Begin to look."""
        self._is_on = True
        self._set_mode("error")

    def end(self) -> None:
        """Stop looking."""
        self._is_on = False
        self._set_mode("default")

    def _allowing(self, name: str) -> Callable[..., Any]:
        original = pkgutil.resolve_name(name)

        @wraps(original)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if self._is_on:
                self.calls[name] += 1
            self._depth += 1
            self._set_mode("default")
            try:
                return original(*args, **kwargs)
            finally:
                self._depth -= 1
                self._set_mode("error" if self._is_on and not self._depth else "default")

        return wrapped

    def _set_mode(self, mode: str) -> None:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode(mode)

    def _observe(self, function: Any, args: Any, waits: bool) -> None:
        if waits and self._is_on and not self._depth:
            self.found.append(f"{function} in {_place()}")


def _place() -> str:
    """Name the innermost function of the package that is running."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_globals.get("__name__", "").startswith("lit_gfs."):
            return f"{frame.f_globals['__name__']}.{frame.f_code.co_name}"
    return "the backward pass"


class Kernels:
    """Counts the kernels that operators on the stand-in launch on a GPU, nearly.

    A view launches none. An operator on a list of tensors launches one, or one for each tensor if it takes a
    second list of other shapes.
    """

    def __init__(self) -> None:
        self.count = 0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count within this context."""
        standin.observers.append(self._observe)
        try:
            yield
        finally:
            standin.observers.remove(self._observe)

    def _observe(self, function: Any, args: Any, waits: bool) -> None:
        returned = [value.alias_info for value in function._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if is_view or any(word in function._schema.name for word in ("empty", "_unsafe_view")):
            return
        lists = [[each.shape for each in value] for value in args if _is_list_of_tensors(value)]
        is_slow = "_foreach_" in function._schema.name and any(a != b for a, b in pairwise(lists))
        self.count += len(lists[0]) if is_slow else 1


def _is_list_of_tensors(value: Any) -> bool:
    return isinstance(value, Sequence) and bool(value) and all(isinstance(each, Tensor) for each in value)
