"""Counts of skipped optimizer steps, and the layers whose gradients or weights were not finite."""

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
    """A step that may have been skipped; its flags are still on the device.

    Attributes:
        at: Position of the step on the x axis.
        parameters: P parameters with a gradient.
        flags: Whether each of n losses is non-finite, then whether each gradient is, boolean ``(n + P,)``.
    """

    at: int
    parameters: list[nn.Parameter]
    flags: Tensor


@dataclass
class SkippedSteps:
    """Counts of skipped steps, as plain numbers and strings for a checkpoint.

    Attributes:
        total: Number of skipped steps.
        nonfinite_losses: Number of skipped steps with a non-finite loss.
        in_a_row: Number of skipped steps since the last taken step.
        began_at: Position on the x axis of the first skipped step in a row.
        began_with: Description of the non-finite values of that step.
        began_with_loss: Whether the loss of that step was non-finite.
    """

    total: int = 0
    nonfinite_losses: int = 0
    in_a_row: int = 0
    began_at: int = 0
    began_with: str = ""
    began_with_loss: bool = False

    def add(self, at: int, bad_loss: bool, source: str) -> None:
        """Count a skipped step.

        Args:
            at: Position of the step on the x axis.
            bad_loss: Whether its loss was non-finite.
            source: Description of its non-finite values, from `source_of_skip`.
        """
        if self.in_a_row == 0:
            self.began_at, self.began_with, self.began_with_loss = at, source, bad_loss
        self.total += 1
        self.nonfinite_losses += bad_loss
        self.in_a_row += 1


def source_of_skip(bad_loss: bool, layers: Sequence[str]) -> str:
    """Describe the non-finite values of a step in words.

    Args:
        bad_loss: Whether the loss was non-finite.
        layers: The layers with a non-finite gradient.
    """
    parts = ["the loss"] if bad_loss else []
    return " and ".join(parts + ([f"the gradient of {listed(layers)}"] if layers else []))


def nonfinite_weights(pl_module: LightningModule) -> list[str]:
    """Return the names of the layers with a non-finite parameter."""
    parameters = [p for p in pl_module.parameters() if p.is_floating_point() or p.is_complex()]
    flags = nonfinite_tensors([parameter.detach() for parameter in parameters]).tolist()
    return owners(pl_module, [p for p, flag in zip(parameters, flags, strict=True) if flag])


def owners(pl_module: LightningModule, parameters: Sequence[nn.Parameter]) -> list[str]:
    """Return the names of the layers that own parameters; a parameter without a layer gives its own name."""
    if not parameters:
        return []
    names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
    for name, owned in parameters_by_layer(layers_of(pl_module)).items():
        names.update({id(parameter): name for parameter in owned})
    return list(dict.fromkeys(names.get(id(parameter), "a parameter") for parameter in parameters))


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join the first names with commas, and count the others."""
    more = f" and {len(names) - most} more layers" if len(names) > most else ""
    return ", ".join(names[:most]) + more
