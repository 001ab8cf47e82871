"""Measure how long each clipping rule treats a lasting rise of the gradient norm as a spike.

A layer's norm is 1 + noise for 200 steps, then that times a factor for 3,000. The script counts the steps
after the rise whose gradient is shortened by more than a tenth, with and without an announced shift of the
objective.

    python benchmarks/clipping.py
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor

from lit_gfs.gradients import PercentileClipper, TemporalClipper, ZScoreClipper


class ShortenedFeedback(ZScoreClipper):
    """ZClip's rule: the shortened norm enters the statistics."""

    def observe(self, norms: Tensor, usable: Tensor) -> None:
        """Update the statistics with the shortened norms."""
        taken = torch.where(self.state["watch"] > 0, norms, self.target_norms(norms))
        super().observe(taken, usable)


def shortened_steps(
    clipper: TemporalClipper, factor: float, announced: bool, noise: float, after: int
) -> int:
    generator = torch.Generator().manual_seed(0)
    shortened = 0
    for step in range(200 + after):
        norm = 1 + noise * torch.randn((), generator=generator).abs()
        if step == 200 and announced:
            clipper.reopen()
        scale = clipper.apply({"layer": [norm.reshape(1) * (factor if step >= 200 else 1.0)]}).scales[0]
        shortened += step >= 200 and bool(scale < 0.9)
    return shortened


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--factors", type=float, nargs="+", default=[2.0, 10.0, 100.0])
    parser.add_argument("--noise", type=float, default=0.2, help="scale of the half-normal noise")
    parser.add_argument("--after", type=int, default=3_000, help="steps after the rise")
    arguments = parser.parse_args()
    rules = {"ZClip": ShortenedFeedback, "zscore": ZScoreClipper, "percentile": PercentileClipper}
    rows = [
        {
            "rule": name,
            "factor": factor,
            **{
                label: shortened_steps(make(), factor, announced, arguments.noise, arguments.after)
                for label, announced in (("unannounced", False), ("announced", True))
            },
        }
        for name, make in rules.items()
        for factor in arguments.factors
    ]
    print(json.dumps(rows, indent=2))
    print("\n| rule | rise | unannounced | announced |\n|---|---|---|---|")
    for row in rows:
        print(f"| {row['rule']} | x {row['factor']:g} | {row['unannounced']} | {row['announced']} |")


if __name__ == "__main__":
    main()
