"""History of layer norms over a run, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class NormHistory:
    """Raw and applied layer norms over a whole run, in a bounded number of columns.

    Each column contains the same number of consecutive measurements, at first one. When all columns are full,
    neighbouring columns are merged in pairs, and each column then takes twice as many measurements. So the
    columns always cover the run evenly. A cell is the geometric mean of its layer's finite, non-zero norms.

    Args:
        layers: Names of the L layers, in the order of the rows.
        max_columns: Largest number of columns; even.
    """

    def __init__(self, layers: Sequence[str], max_columns: int) -> None:
        self.layers = list(layers)
        self.max_columns = max_columns
        self.per_column = 1
        """Measurements per column."""
        self.measurements = 0
        """Measurements so far."""
        self.steps: list[int] = []
        """The first step of each of the C columns."""
        # (raw or applied, [sum of log10, count of usable, count of non-finite norms], column, layer). Sums
        # and counts of two columns can be merged exactly, by addition.
        self._cells = torch.zeros(2, 3, max_columns, len(self.layers), dtype=torch.float64)

    def append(self, step: int, layers: Sequence[str], raw: Tensor, applied: Tensor) -> None:
        """Add one measurement.

        Args:
            step: Position of the measurement on the x axis.
            layers: Names of the M measured layers; the cells of other layers do not change.
            raw: Norms before interventions and clipping, ``(M,)``.
            applied: Norms that the optimizer received, ``(M,)``.
        """
        if self.measurements == self.max_columns * self.per_column:
            self._merge_neighbours()
        column = self.measurements // self.per_column
        if column == len(self.steps):
            self.steps.append(step)
        norms = torch.stack([raw, applied]).to("cpu", torch.float64)
        usable = norms.isfinite() & (norms > 0)
        logarithms = torch.where(usable, norms, 1.0).log10()
        rows = [self.layers.index(name) for name in layers]
        self._cells[:, :, column, rows] += torch.stack([logarithms, usable, ~norms.isfinite()], dim=1)
        self.measurements += 1

    def log10_norms(self) -> tuple[Tensor, Tensor]:
        """Return log10 of the raw and of the applied norms, ``(C, L)`` each, in float64.

        A cell without a finite, non-zero norm is NaN if it has a non-finite norm, else minus infinity.
        """
        sums, usable, not_finite = self._cells[:, :, : len(self.steps)].unbind(1)
        empty = torch.where(not_finite > 0, torch.nan, -torch.inf)
        raw, applied = torch.where(usable > 0, sums / usable.clamp(min=1), empty)
        return raw, applied

    def state_dict(self) -> dict[str, Any]:
        """Return the history as numbers, strings, lists and tensors."""
        return {
            "layers": list(self.layers),
            "per_column": self.per_column,
            "measurements": self.measurements,
            "steps": list(self.steps),
            "cells": self._cells[:, :, : len(self.steps)].clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a saved history.

        Layers are matched by name. A new layer has an empty history; that of a missing layer is discarded. If
        there are more than ``max_columns`` saved columns, neighbours are merged until they fit.
        """
        self.per_column, self.measurements = state["per_column"], state["measurements"]
        self.steps = list(state["steps"])
        columns = max(self.max_columns, len(self.steps) + len(self.steps) % 2)
        self._cells = torch.zeros(2, 3, columns, len(self.layers), dtype=torch.float64)
        saved = {name: row for row, name in enumerate(state["layers"])}
        for row, name in enumerate(self.layers):
            if name in saved:
                self._cells[:, :, : len(self.steps), row] = state["cells"][..., saved[name]]
        while len(self.steps) > self.max_columns:
            self._merge_neighbours()

    def _merge_neighbours(self) -> None:
        """Merge neighbouring columns in pairs."""
        pairs = self._cells.unflatten(2, (-1, 2)).sum(3)
        columns = max(self.max_columns, pairs.shape[2] + pairs.shape[2] % 2)
        self._cells = self._cells.new_zeros(2, 3, columns, len(self.layers))
        self._cells[:, :, : pairs.shape[2]] = pairs
        self.steps = self.steps[::2]
        self.per_column *= 2
