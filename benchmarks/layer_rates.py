"""How far ten steps of Adam move the features of a trunk, by width and depth, with and without layer rates.

The coordinate check of muP (Yang et al. 2022, arXiv 2203.03466, appendix D.1): at the right rates the change
depends on neither.

    python benchmarks/layer_rates.py
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from lit_gfs.init import orthogonal_
from lit_gfs.networks import LinearHead, PlainTrunk, ResidualTrunk, TrunkFactory
from lit_gfs.optim.layer_positions import layer_positions
from lit_gfs.optim.layer_rates import Rule, rate_factors, scale_rates_

FEATURES, STEPS, RATE, SEEDS = 16, 10, 1e-3, 3


def movement(trunk: TrunkFactory, rule: Rule | None, seed: int) -> float:
    """Return the root mean square change of the features, relative to their size, after `STEPS` steps."""
    torch.manual_seed(seed)
    features = orthogonal_(trunk(FEATURES))
    network = nn.Sequential(features, LinearHead(features.out_features, 4))
    inputs, targets = torch.randn(256, FEATURES), torch.randn(256, 4)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    if rule is not None:
        factors = rate_factors(
            network, layer_positions(network, inputs[:1]), rule, base_width=64, base_depth=4
        )
        scale_rates_(optimizer, factors)
    before = features(inputs).detach()
    for _ in range(STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(network(inputs), targets).backward()
        optimizer.step()
    return float((features(inputs).detach() - before).norm() / before.norm())


def print_row(name: str, trunks: list[TrunkFactory], rule: Rule | None) -> None:
    """Print a row of a Markdown table: the mean movement over seeds, for each trunk."""
    means = [sum(movement(trunk, rule, seed) for seed in range(SEEDS)) / SEEDS for trunk in trunks]
    print(f"| {name} | {' | '.join(f'{mean:.2g}' for mean in means)} |", flush=True)


def main() -> None:
    """Print both tables."""
    torch.set_num_threads(1)
    widths, depths = (64, 256, 1024), (4, 16, 64)
    print(f"| plain, depth 4; width | {' | '.join(map(str, widths))} |\n|---|{'---|' * len(widths)}")
    wide: list[TrunkFactory] = [partial(PlainTrunk, depth=4, width=width) for width in widths]
    for rule in (None, "hidden", "mup"):
        print_row(rule or "none", wide, rule)
    print(f"\n| residual, width 64; depth | {' | '.join(map(str, depths))} |\n|---|{'---|' * len(depths)}")
    for rule, kind in (
        (None, "none"),
        (None, "inverse_sqrt"),
        (None, "inverse"),
        ("complete_p", "inverse_sqrt"),
        ("complete_p", "inverse"),
    ):
        deep: list[TrunkFactory] = [
            partial(ResidualTrunk, depth=depth, width=64, norm="layer", branch_factor=kind)
            for depth in depths
        ]
        print_row(f"{rule or 'none'}, `branch_factor` {kind}", deep, rule)


if __name__ == "__main__":
    main()
