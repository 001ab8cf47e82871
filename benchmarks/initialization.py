"""Measure how evenly gradients and signals flow at initialization, for every trunk and encoder, as tables.

    python benchmarks/initialization.py --markdown docs/results/initialization.md

- *ratio*: the largest divided by the smallest gradient norm of the linear and convolutional layers below the
  head, weight and bias together. A layer's norm is the root mean square over random directions of the
  gradient of ``(output * noise).sum()``, with independent standard normal noise for every output of every
  example, behind a linear head with gain 1 and 16 outputs.
- *cross-entropy*: the same ratio for the gradient of one cross-entropy with random labels over these outputs.
- *std*: standard deviation of the trunk's output, over examples and features.
- *cosine*: mean cosine between the trunk's outputs for different examples.

Inputs are 64 standard normal features, or for images uniform pixels in [0, 1]. Figures are medians over
seeds; nets of width 1024 have one seed. ``--quick`` leaves these out and takes under two minutes on one
thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn
from torch.nn import functional

from lit_gfs.init import orthogonal_, path_sensitive_
from lit_gfs.networks import (
    DenseTrunk,
    ImpalaCNN,
    LinearHead,
    MultiSkipTrunk,
    NatureCNN,
    PlainTrunk,
    ResidualTrunk,
)
from lit_gfs.networks.trunks import MultiSkipBranch

Figures = dict[str, float]

FEATURES = 64
OUTPUTS = 16
TRUNKS = (PlainTrunk, ResidualTrunk, MultiSkipTrunk, DenseTrunk)
TARGETS = {"ImpalaCNN": 6.0, "PlainTrunk": 3.0, "ResidualTrunk": 6.0, "MultiSkipTrunk": 20.0}
"""Target for the ratio by part of a net's name; the first match counts."""
DEPTHS = (4, 16, 64)
SECTIONS = {
    "Trunks": ("trunks", ("ratio", "cross-entropy", "std")),
    "Encoders": ("encoders", ("ratio", "cross-entropy", "std")),
    "Plain chains of 64 layers, mirrored": ("deep_chains", ("ratio", "std", "cosine")),
    "What else could be done about a skip that enters again and again": ("multi_skip", ("ratio", "std")),
}


def path_sensitive(module: nn.Module, example: Tensor) -> None:
    path_sensitive_(module, example)


def mirrored(module: nn.Module, example: Tensor) -> None:
    path_sensitive_(module, example, mirrored=True)


METHODS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "PyTorch": lambda module, example: None,
    "orthogonal": lambda module, example: orthogonal_(module),
    "path-sensitive": path_sensitive,
}


def measure(module: nn.Module, inputs: Tensor, directions: int) -> Figures:
    """Measure gradients and outputs of a module that ends with its trunk, without changing its weights."""
    features = module(inputs)
    head = LinearHead(features.shape[-1], OUTPUTS)
    output = head(features)
    layers = [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
    parameters = [list(layer.parameters(recurse=False)) for layer in layers]

    def squares(loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, [p for owned in parameters for p in owned], retain_graph=True)
        norms = iter([float(gradient.square().sum()) for gradient in gradients])
        return torch.tensor([sum(next(norms) for _ in owned) for owned in parameters], dtype=torch.float64)

    projected = torch.stack(
        [squares((output * torch.randn_like(output)).sum()) for _ in range(directions)]
    ).mean(0)
    classified = squares(functional.cross_entropy(output, torch.randint(OUTPUTS, (len(inputs),))))
    unit = functional.normalize(features.detach(), dim=-1)
    count = len(inputs)
    return {
        "ratio": ratio(projected),
        "cross-entropy": ratio(classified),
        "std": float(features.detach().std()),
        "cosine": float(((unit @ unit.T).sum() - count) / (count * (count - 1))),
    }


def ratio(squares: Tensor) -> float:
    return math.sqrt(float(squares.max() / squares.min())) if squares.min() > 0 else math.inf


def over_seeds(
    build: Callable[[], nn.Module],
    initialize: Callable[[nn.Module, Tensor], Any],
    draw: Callable[[], Tensor],
    seeds: int,
    directions: int,
) -> Figures:
    """Return medians over seeds."""
    figures: list[Figures] = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        module, inputs = build(), draw()
        initialize(module, inputs[:1])
        figures.append(measure(module, inputs, directions))
    return {name: float(f"{median(each[name] for each in figures):.4g}") for name in figures[0]}


def trunks(widths: Iterable[int], seeds: int) -> list[dict[str, Any]]:
    """Every trunk, with and without normalization, at every size, under every method."""
    rows = []
    for trunk in TRUNKS:
        for norm in ("none", "layer"):
            for depth in DEPTHS:
                for width in widths:
                    is_large = width > 256
                    row: dict[str, Any] = {
                        "net": trunk.__name__,
                        "norm": norm,
                        "depth": depth,
                        "width": width,
                    }
                    for name, initialize in METHODS.items():
                        row[name] = over_seeds(
                            lambda: trunk(FEATURES, depth, width, norm),  # noqa: B023
                            initialize,
                            lambda: torch.randn(64, FEATURES),
                            1 if is_large else seeds,
                            4 if is_large else 16,
                        )
                    rows.append(row)
    return rows


def encoders(seeds: int) -> list[dict[str, Any]]:
    """Convolutional encoders with a trunk of 256 units, on images of 84 x 84 pixels."""

    def build(encoder: type, trunk: type, depth: int) -> nn.Module:
        pixels = encoder((4, 84, 84))
        return nn.Sequential(pixels, trunk(pixels.out_features, depth, 256))

    rows = []
    for encoder, trunk, depth in (
        (NatureCNN, PlainTrunk, 1),
        (NatureCNN, PlainTrunk, 4),
        (ImpalaCNN, PlainTrunk, 1),
        (ImpalaCNN, ResidualTrunk, 16),
    ):
        row: dict[str, Any] = {"net": f"{encoder.__name__}, {trunk.__name__}", "depth": depth, "width": 256}
        for name, initialize in METHODS.items():
            row[name] = over_seeds(
                lambda: build(encoder, trunk, depth),  # noqa: B023
                initialize,
                lambda: torch.rand(8, 4, 84, 84),
                seeds,
                8,
            )
        rows.append(row)
    return rows


def deep_chains(widths: Iterable[int], seeds: int) -> list[dict[str, Any]]:
    """Plain chains of 64 layers, mirrored and not."""
    rows = []
    for norm in ("none", "layer"):
        for width in widths:
            row: dict[str, Any] = {"net": "PlainTrunk", "norm": norm, "depth": 64, "width": width}
            for name, initialize in {**METHODS, "mirrored": mirrored}.items():
                row[name] = over_seeds(
                    lambda: PlainTrunk(FEATURES, 64, width, norm),  # noqa: B023
                    initialize,
                    lambda: torch.randn(64, FEATURES),
                    seeds,
                    16,
                )
            rows.append(row)
    return rows


def multi_skips(seeds: int) -> list[dict[str, Any]]:
    """Alternatives for a skip that enters L times; the branches are the same in all rows."""

    def skip(scale: Callable[[int], float]) -> Callable[[MultiSkipTrunk], Any]:
        return lambda trunk: torch.Tensor.fill_(trunk.skip_scale, scale(len(trunk.branches)))

    @torch.no_grad()
    def shrink_input(trunk: MultiSkipTrunk) -> None:
        trunk.skip_scale.fill_(1.0)
        for parameter in trunk.input[:1].parameters():
            parameter.div_(len(trunk.branches) + 1)

    @torch.no_grad()
    def shrink_closing_norms(trunk: MultiSkipTrunk) -> None:
        for branch in trunk.branches.children():
            assert isinstance(branch, MultiSkipBranch)
            for parameter in branch.layers[-1:].parameters():
                parameter.div_(math.sqrt(len(trunk.branches)))

    remedies: dict[str, Callable[[MultiSkipTrunk], Any]] = {
        "skip 1 (reference)": skip(lambda count: 1.0),
        "skip 1, input weights / (L + 1)": shrink_input,
        "skip 1 / sqrt(L)": skip(lambda count: count**-0.5),
        "skip 1 / L": skip(lambda count: 1 / count),
        "skip (sqrt(2) - 1) / L, closing norms / sqrt(L)": shrink_closing_norms,
        "skip (sqrt(2) - 1) / L (path-sensitive)": lambda trunk: None,
    }

    def initialize(module: nn.Module, example: Tensor, remedy: Callable[[MultiSkipTrunk], Any]) -> None:
        path_sensitive_(module, example)
        remedy(module)  # type: ignore[arg-type]

    rows = []
    for norm in ("none", "layer"):
        for name, remedy in remedies.items():
            row: dict[str, Any] = {"net": name, "norm": norm, "width": 64}
            for depth in DEPTHS:
                row[f"depth {depth}"] = over_seeds(
                    lambda: MultiSkipTrunk(FEATURES, depth, 64, norm),  # noqa: B023
                    lambda module, example: initialize(module, example, remedy),  # noqa: B023
                    lambda: torch.randn(64, FEATURES),
                    seeds,
                    16,
                )
            rows.append(row)
    return rows


def table(rows: list[dict[str, Any]], figures: tuple[str, ...]) -> str:
    """Return a Markdown table: the settings of a row, then each figure of each method."""
    names = [name for name, value in rows[0].items() if not isinstance(value, dict)]
    methods = [name for name, value in rows[0].items() if isinstance(value, dict)]
    columns = [(method, figure) for figure in figures for method in methods]
    head = names + [f"{figure}, {method}" for method, figure in columns]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [str(row[name]) for name in names] + [f"{row[m][f]:.3g}" for m, f in columns]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def misses(rows: list[dict[str, Any]]) -> list[str]:
    """Name the rows in which path-sensitive initialization misses its target."""
    found = []
    for row in rows:
        figures, target = (
            row["path-sensitive"],
            next((bound for name, bound in TARGETS.items() if name in row["net"]), math.inf),
        )
        if figures["ratio"] > target or not 0.1 <= figures["std"] <= 2:
            found.append(
                ", ".join(f"{key} {row[key]}" for key in ("net", "norm", "depth", "width") if key in row)
            )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="leave out width 1024")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    seeds = arguments.seeds
    result = {
        "trunks": trunks((64, 256) if arguments.quick else (64, 256, 1024), seeds),
        "encoders": encoders(seeds),
        "deep_chains": deep_chains((64, 256), seeds),
        "multi_skip": multi_skips(seeds),
    }
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    missed = misses(result["trunks"] + result["encoders"])
    sections = [
        "# Gradients and signals at initialization",
        f"`python benchmarks/initialization.py --seeds {seeds}{' --quick' * arguments.quick}`; its docstring "
        "says what the figures are. PyTorch: what each layer does by itself; orthogonal: gain sqrt(2).",
        f"Targets missed: {'; '.join(missed) if missed else 'none'} (ratio at most 3 for plain trunks, 6 for "
        "residual ones and ImpalaCNN, 20 for multi-skip ones; std between 0.1 and 2).",
    ]
    for title, (key, figures) in SECTIONS.items():
        sections += [f"## {title}", table(result[key], figures)]
    text = "\n\n".join(sections) + "\n"
    print(text)
    if arguments.markdown is not None:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
