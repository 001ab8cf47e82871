"""How often a monitor measures: a number of optimizer steps, or about so many points in a run."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, cast

from lightning.pytorch import Trainer

Interval = int | Literal["auto"]
"""Optimizer steps between two measurements, or the choice by the length of the run."""


class Pace(NamedTuple):
    """The meaning of ``auto``.

    Attributes:
        points: Measurements in a run that it aims at.
        least: Smallest interval, because of the price of a measurement.
        otherwise: Interval in a run of unknown length.
    """

    points: int
    least: int
    otherwise: int

    def interval(self, steps: int | None) -> int:
        """Return the optimizer steps between two measurements in a run of so many steps."""
        return self.otherwise if steps is None else max(self.least, round(steps / self.points))


def planned_steps(trainer: Trainer) -> int | None:
    """Return the number of optimizer steps of a whole run; ``None`` if it is not known.

    A datamodule whose count of environment steps ends the run has ``planned_batches``. In other runs the
    Trainer knows, once its data is set up. A run may end earlier.
    """
    batches = getattr(getattr(trainer, "datamodule", None), "planned_batches", None)
    if batches is None:
        steps = trainer.estimated_stepping_batches
        return int(steps) if 0 < steps < math.inf else None
    steps = -(-batches // cast(Any, trainer).accumulate_grad_batches)
    return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)


def interval_in(trainer: Trainer, every: Interval, pace: Pace) -> int:
    """Return the optimizer steps between two measurements in a run.

    Args:
        trainer: The Trainer, when training starts.
        every: The user's choice.
        pace: What ``auto`` stands for.
    """
    return pace.interval(planned_steps(trainer)) if every == "auto" else every
