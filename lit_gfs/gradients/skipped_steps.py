"""An account of optimizer steps that were skipped, and the names of what was not finite in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_gfs.gradients.finiteness import nonfinite_tensors
from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.metrics.module_protocol import layers_of


class Step(NamedTuple):
    """A step that may have been skipped; the device knows.

    Attributes:
        at: Where it stands on the x axis.
        parameters: P parameters with a gradient.
        flags: Whether the loss was not finite, then whether each gradient was not, ``(1 + P,)`` of bool.
    """

    at: int
    parameters: list[nn.Parameter]
    flags: Tensor


@dataclass
class SkippedSteps:
    """An account of skipped steps, of numbers and strings.

    Attributes:
        total: All of them.
        nonfinite_losses: Those whose loss was not finite.
        in_a_row: Those since the last step that was taken.
        began_at: Where on the x axis the first in this row stands.
        began_with: What was not finite there.
        began_with_loss: Whether the loss was a part of it.
    """

    total: int = 0
    nonfinite_losses: int = 0
    in_a_row: int = 0
    began_at: int = 0
    began_with: str = ""
    began_with_loss: bool = False

    def add(self, at: int, bad_loss: bool, source: str) -> None:
        """Count one more.

        Args:
            at: Where it stands on the x axis.
            bad_loss: Whether its loss was not finite.
            source: What was not finite, as from `source_of_skip`.
        """
        if self.in_a_row == 0:
            self.began_at, self.began_with, self.began_with_loss = at, source, bad_loss
        self.total += 1
        self.nonfinite_losses += bad_loss
        self.in_a_row += 1


def source_of_skip(bad_loss: bool, layers: Sequence[str]) -> str:
    """Say in words what was not finite in a step.

    Args:
        bad_loss: Whether the loss was a part of it.
        layers: The layers whose gradient was.
    """
    parts = ["the loss"] if bad_loss else []
    return " and ".join(parts + ([f"the gradient of {listed(layers)}"] if layers else []))


def nonfinite_weights(pl_module: LightningModule) -> list[str]:
    """Name the layers with a parameter that is not finite."""
    parameters = [p for p in pl_module.parameters() if p.is_floating_point() or p.is_complex()]
    flags = nonfinite_tensors([parameter.detach() for parameter in parameters]).tolist()
    return owners(pl_module, [p for p, flag in zip(parameters, flags, strict=True) if flag])


def owners(pl_module: LightningModule, parameters: Sequence[nn.Parameter]) -> list[str]:
    """Name the layers that own parameters, once each; a parameter that is no layer's goes by its own name."""
    if not parameters:
        return []
    names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
    for name, owned in parameters_by_layer(layers_of(pl_module)).items():
        names.update({id(parameter): name for parameter in owned})
    return list(dict.fromkeys(names.get(id(parameter), "a parameter") for parameter in parameters))


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join names, the first few of many."""
    more = f" and {len(names) - most} more layers" if len(names) > most else ""
    return ", ".join(names[:most]) + more
