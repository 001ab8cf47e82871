"""Runs of a module's forward on an example of its input, for what measures a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Set a module to evaluation mode, and restore the mode of each submodule on exit."""
    modes = [(child, child.training) for child in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for child, training in modes:
            child.training = training


def call(module: nn.Module, example_input: Any) -> Any:
    """Call a module with a tensor, a tuple of arguments or a dict of keywords; compiled parts run eagerly."""
    with torch.compiler.set_stance("force_eager"):  # compiled code calls no hooks
        if isinstance(example_input, dict):
            return module(**example_input)
        return module(*example_input) if isinstance(example_input, tuple) else module(example_input)


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's first parameter; the CPU if it has none."""
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
