from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lit_gfs.errors import UserError
from lit_gfs.networks import SimbaTrunk, numbered_layers


def test_it_is_the_network_of_the_paper() -> None:
    torch.manual_seed(0)
    trunk, x = SimbaTrunk(7, depth=5, width=6), torch.randn(10, 7)
    weights = dict(trunk.named_parameters())

    stream = x @ weights["input.weight"].T + weights["input.bias"]
    for block in ("branches.0", "branches.1"):
        normalized = F.layer_norm(stream, (6,))  # fresh normalizations have weight 1 and bias 0
        hidden = (normalized @ weights[f"{block}.first.weight"].T + weights[f"{block}.first.bias"]).relu()
        assert hidden.shape == (10, 24)
        stream = stream + hidden @ weights[f"{block}.second.weight"].T + weights[f"{block}.second.bias"]

    torch.testing.assert_close(trunk(x), F.layer_norm(stream, (6,)))


def test_depth_counts_linear_layers_and_layers_have_names() -> None:
    trunk = SimbaTrunk(7, depth=7, width=6)

    assert sum(isinstance(each, nn.Linear) for each in trunk.modules()) == 7
    assert list(numbered_layers(trunk)) == [
        "input",
        *(f"branch_{index:02d}.{part}" for index in (1, 2, 3) for part in ("norm", "first", "second")),
        "output",
    ]
    assert (trunk.out_features, trunk.depth, trunk.width) == (6, 7, 6)


def test_options_reach_the_parts() -> None:
    trunk = SimbaTrunk(
        7, depth=3, width=6, norm="rms", activation="gelu", branch_factor="trained", expansion=2
    )

    assert isinstance(trunk.output, nn.RMSNorm)
    assert isinstance(trunk.branches[0].activation, nn.GELU)
    assert trunk.branches[0].first.weight.shape == (12, 6)
    x = torch.randn(3, 7)
    torch.testing.assert_close(trunk(x), trunk.output(trunk.input(x)))  # ReZero starts shut


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 4}, "SimbaTrunk has depth 4; expected an odd number, .* such as 3 or 5"),
        ({"expansion": 0}, "SimbaTrunk has expansion 0; expected a whole number of at least 1"),
        ({"depth": 0}, "SimbaTrunk needs depth >= 1, got 0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        SimbaTrunk(7, **options)  # type: ignore[arg-type]
