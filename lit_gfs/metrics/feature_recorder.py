"""Recorder of the features that a network's head reads, with their gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_gfs.metrics.activation_recorder import ACTIVATIONS


class FeatureRecorder:
    """Records the input of a head, and that of an activation before it, as parts of autograd's graph.

    If several passes reach the head, the first one counts. The hooks exist only while it records.

    Args:
        head: The layer that reads the features.
        activation: The activation module before it; ``None`` if it is not recorded.
    """

    def __init__(self, head: nn.Module, activation: nn.Module | None = None) -> None:
        self.head = head
        self.activation = activation
        self.features: Tensor | None = None
        """Input of the head, ``(*batch, width)``."""
        self.pre_activations: Tensor | None = None
        """Input of the activation before the head ran, ``(*batch, width)``."""
        self._only_with_gradients = True

    @contextmanager
    def recording(self, only_with_gradients: bool = True) -> Iterator[None]:
        """Record what runs within, from the start.

        Args:
            only_with_gradients: Whether to ignore passes without gradients, such as those for targets.
        """
        self.forget()
        self._only_with_gradients = only_with_gradients
        handles = [self.head.register_forward_pre_hook(self._before_head)]
        if self.activation is not None:
            handles.append(self.activation.register_forward_pre_hook(self._before_activation))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def forget(self) -> None:
        """Let go of the recorded tensors, and with them of autograd's graph."""
        self.features = self.pre_activations = None

    def _before_head(self, head: nn.Module, args: tuple[Any, ...]) -> None:
        if self._is_recording() and args:
            self.features = args[0]

    def _before_activation(self, activation: nn.Module, args: tuple[Any, ...]) -> None:
        if self._is_recording() and args:
            # An activation that works in place overwrites its input.
            self.pre_activations = args[0].clone() if getattr(activation, "inplace", False) else args[0]

    def _is_recording(self) -> bool:
        return self.features is None and (torch.is_grad_enabled() or not self._only_with_gradients)


def last_activation(module: nn.Module) -> nn.Module | None:
    """Return the activation module that is registered last; ``None`` if there is none."""
    activations = [each for each in module.modules() if isinstance(each, ACTIVATIONS)]
    return activations[-1] if activations else None
