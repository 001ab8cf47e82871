"""How many kernels interventions and monitors launch on a GPU, told by the stand-in for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lit_gfs.gradients import (
    GradientNormalizer,
    LayerwiseScaling,
    PercentileClipper,
    SpectralNormalizer,
    ZScoreClipper,
)
from lit_gfs.gradients.finiteness import nonfinite_tensors
from lit_gfs.metrics.gradient_flow import layer_cosines, layer_norms
from support import processes, standin
from support.accelerator import ACCELERATOR
from support.observed import Kernels

FEW, MANY = 4, 16
WIDTH = 8

Gradients = dict[str, list[Tensor | None]]


def scaled_by(algorithm: LayerwiseScaling) -> Callable[[Gradients], object]:
    return lambda gradients: algorithm.apply(gradients, gradients)


def flat(gradients: Gradients) -> list[Tensor]:
    return [gradient for layer in gradients.values() for gradient in layer if gradient is not None]


def clip_together(gradients: Gradients) -> object:
    return ZScoreClipper().apply({"all": [*flat(gradients)]})


WORK: dict[str, tuple[Callable[[Gradients], object], int, int]] = {
    "clipping by z-score": (scaled_by(ZScoreClipper()), 56, 2),
    "clipping by percentile": (scaled_by(PercentileClipper()), 47, 2),
    "clipping of the global norm": (clip_together, 53, 0),
    "normalization, running": (scaled_by(GradientNormalizer(reference="running")), 38, 2),
    "normalization, weight": (scaled_by(GradientNormalizer(reference="weight")), 29, 2),
    "normalization, spectral": (scaled_by(SpectralNormalizer(block=4)), 47, 0),
    "normalization, spectral norm": (scaled_by(SpectralNormalizer(1.0, "spectral_norm")), 53, 0),
    "search for NaN": (lambda gradients: nonfinite_tensors(flat(gradients)).any(), 5, 0),
    "norms": (layer_norms, 5, 0),
    "cosines": (lambda gradients: layer_cosines(gradients, gradients), 28, 2),
}
"""Work on gradients; the most kernels for a few layers, each of a weight and a bias; and the kernels for each
further layer, as CUDA has none for many factors or many dot products."""


def count() -> None:
    """Write the kernels of each work by its name to ``kernels.json``, for few and for many layers."""
    if ACCELERATOR != standin.NAME:
        standin.register()
    counts: dict[str, list[int]] = {}
    for name, (work, _, _) in WORK.items():
        counts[name] = []
        for layers in (FEW, MANY):
            gradients: Gradients = {
                str(layer): [
                    torch.randn(WIDTH, WIDTH, device=standin.NAME),
                    torch.randn(WIDTH, device=standin.NAME),
                ]
                for layer in range(layers)
            }
            work(gradients)  # makes the state
            kernels = Kernels()
            with kernels.counted():
                work(gradients)
            counts[name].append(kernels.count)
    Path("kernels.json").write_text(json.dumps(counts))


@pytest.fixture(scope="module")
def counts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    directory = tmp_path_factory.mktemp("kernels")
    ended = processes.run(["--help"], directory, count)
    assert ended.status == 0, ended.err
    return json.loads((directory / "kernels.json").read_text())


@pytest.mark.parametrize("name", WORK)
def test_the_number_of_kernels_does_not_grow_needlessly(name: str, counts: dict[str, list[int]]) -> None:
    _, most, per_layer = WORK[name]
    few, many = counts[name]
    assert 0 < few <= most
    assert many - few == per_layer * (MANY - FEW)
