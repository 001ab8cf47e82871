from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from lit_gfs.metrics.figures import (
    NOT_FINITE_COLOUR,
    ZERO_COLOUR,
    gradient_heat_map,
    power_of_ten,
    short_names,
)
from lit_gfs.metrics.gradient_flow import (
    gradients_by_layer,
    layer_cosines,
    layer_norms,
    max_min_ratio,
    parameters_by_layer,
)
from lit_gfs.metrics.norm_history import NormHistory
from lit_gfs.networks.layers import named_layers


def test_norms_join_weight_and_bias():
    gradients = {
        "a": [torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])],
        "b": [torch.tensor([1.0, 2.0, 2.0])],
        "c": [torch.ones(2), torch.ones(1), torch.ones(1)],
    }
    assert layer_norms(gradients).tolist() == pytest.approx([5.0, 3.0, 2.0])


def test_a_layer_without_gradients_has_norm_zero():
    some = layer_norms({"a": [None, None], "b": [None, torch.tensor([2.0])]})
    assert some.tolist() == [0.0, 2.0]
    assert layer_norms({"a": [None], "b": [None]}).tolist() == [0.0, 0.0]


def test_bfloat16_gradients_are_summed_in_float32():
    # 4,097 ones: bfloat16 holds 8 bits, so a sum kept in it stops at 256.
    norms = layer_norms({"a": [torch.ones(4097, dtype=torch.bfloat16)]})
    assert norms.dtype == torch.float32
    assert norms.item() == pytest.approx(math.sqrt(4097), rel=1e-6)
    a = torch.ones(4097, dtype=torch.bfloat16)
    assert layer_cosines({"a": [a]}, {"a": [a]}).item() == pytest.approx(1.0, abs=1e-6)


def test_cosines_by_hand():
    gradients = {
        "same": [torch.tensor([1.0, 2.0]), torch.tensor([3.0])],
        "opposite": [torch.tensor([1.0]), None],
        "sixty degrees": [torch.tensor([1.0]), torch.tensor([0.0])],
        "zero": [torch.tensor([0.0])],
        "missing": [None],
        "not finite": [torch.tensor([math.inf, 1.0])],
        "small": [torch.tensor([3e-17, 4e-17])],
    }
    previous = {
        "same": [torch.tensor([2.0, 4.0]), torch.tensor([6.0])],
        "opposite": [torch.tensor([-7.0]), None],
        "sixty degrees": [torch.tensor([0.5]), torch.tensor([math.sqrt(0.75)])],
        "zero": [torch.tensor([1.0])],
        "missing": [torch.tensor([1.0])],
        "not finite": [torch.tensor([1.0, 1.0])],
        "small": [torch.tensor([4e-17, 3e-17])],
    }
    cosines = layer_cosines(gradients, previous).tolist()
    expected = [1.0, -1.0, 0.5, math.nan, math.nan, math.nan, 0.96]
    assert cosines == pytest.approx(expected, nan_ok=True)


def test_cosine_takes_a_missing_gradient_for_zero():
    # Weight (1, 0) with bias 1, against weight (1, 0) with no bias gradient: 1 / sqrt(2).
    gradients = {"a": [torch.tensor([1.0, 0.0]), torch.tensor([1.0])]}
    previous = {"a": [torch.tensor([1.0, 0.0]), None]}
    assert layer_cosines(gradients, previous).item() == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(
    ("norms", "ratio"),
    [
        ([2.0, 8.0, 4.0], 4.0),
        ([2.0, 0.0, math.inf, math.nan, 6.0], 3.0),
        ([5.0], 1.0),
        ([0.0, math.nan, math.inf], math.nan),
    ],
)
def test_max_min_ratio(norms, ratio):
    assert max_min_ratio(torch.tensor(norms)).item() == pytest.approx(ratio, nan_ok=True)


def test_parameters_count_once_and_frozen_ones_not_at_all():
    embedding, head, frozen = nn.Embedding(5, 3), nn.Linear(3, 5), nn.Linear(3, 3).requires_grad_(False)
    head.weight = embedding.weight
    module = nn.ModuleDict({"embedding": embedding, "again": embedding, "frozen": frozen, "head": head})
    owned = parameters_by_layer(named_layers(module))
    assert {name: [id(p) for p in layer] for name, layer in owned.items()} == {
        "embedding": [id(embedding.weight)],
        "head": [id(head.bias)],
    }
    assert list(parameters_by_layer(named_layers(module), [head.bias])) == ["head"]
    head.bias.requires_grad_(False)
    assert list(parameters_by_layer({"head": head}, head.parameters())) == ["head"]
    assert [id(p) for p in parameters_by_layer({"head": head}, head.parameters())["head"]] == [
        id(head.weight)
    ]


def test_sparse_gradients_are_read():
    embedding = nn.Embedding(10, 2, sparse=True)
    embedding(torch.tensor([3, 3, 4])).sum().backward()
    gradients = gradients_by_layer(parameters_by_layer({"embedding": embedding}))
    # Row 3 twice, row 4 once, two columns.
    assert layer_norms(gradients).item() == pytest.approx(math.sqrt(2 * (4 + 1)))


def test_history_is_exact_while_it_has_room():
    history = NormHistory(["a", "b"], max_columns=4)
    history.append(10, ["a", "b"], torch.tensor([1.0, 100.0]), torch.tensor([0.0, 10.0]))
    history.append(20, ["b"], torch.tensor([math.nan]), torch.tensor([0.1]))
    raw, applied = history.log10_norms()
    assert history.steps == [10, 20]
    assert raw.tolist() == [pytest.approx([0.0, 2.0]), pytest.approx([-math.inf, math.nan], nan_ok=True)]
    assert applied.tolist() == [pytest.approx([-math.inf, 1.0]), pytest.approx([-math.inf, -1.0])]


@pytest.mark.parametrize("count", [7, 8, 9, 16, 17, 37, 100])
def test_a_full_history_joins_neighbours_geometrically(count):
    norms = torch.rand(count, 2, generator=torch.Generator().manual_seed(count), dtype=torch.float64) + 0.1
    norms[3, 0] = 0.0
    norms[4, 1] = math.inf
    history = NormHistory(["a", "b"], max_columns=8)
    for step, row in enumerate(norms):
        history.append(step, ["a", "b"], row, row * 10)
    width = 1
    while width * 8 < count:
        width *= 2
    expected = []
    for start in range(0, count, width):
        block = norms[start : start + width].numpy()
        means = []
        for column in block.T:
            usable = column[np.isfinite(column) & (column > 0)]
            empty = -math.inf if np.isfinite(column).all() else math.nan
            means.append(np.log10(usable).mean() if usable.size else empty)
        expected.append(means)
    raw, applied = history.log10_norms()
    assert history.steps == list(range(0, count, width))
    np.testing.assert_allclose(raw.numpy(), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(applied.numpy(), np.array(expected) + 1, rtol=1e-9, atol=1e-9)


def test_a_saved_history_continues_exactly(tmp_path):
    norms = torch.rand(30, 2, generator=torch.Generator().manual_seed(0))
    whole, first, second = (NormHistory(["a", "b"], max_columns=4) for _ in range(3))
    for step, row in enumerate(norms):
        whole.append(step, ["a", "b"], row, row)
        if step < 13:
            first.append(step, ["a", "b"], row, row)
    torch.save(first.state_dict(), tmp_path / "history.pt")
    second.load_state_dict(torch.load(tmp_path / "history.pt", weights_only=True))
    for step in range(13, 30):
        second.append(step, ["a", "b"], norms[step], norms[step])
    assert second.steps == whole.steps
    assert torch.equal(torch.stack(second.log10_norms()), torch.stack(whole.log10_norms()))


def test_a_saved_history_fits_into_fewer_columns_and_other_layers():
    old = NormHistory(["a", "gone"], max_columns=10)
    for step in range(9):
        old.append(step, ["a", "gone"], torch.tensor([10.0**step, 1.0]), torch.tensor([1.0, 1.0]))
    new = NormHistory(["new", "a"], max_columns=4)
    new.load_state_dict(old.state_dict())
    raw, _ = new.log10_norms()
    # Nine columns joined twice: steps 0-3, 4-7 and 8.
    assert new.steps == [0, 4, 8]
    assert raw[:, 1].tolist() == pytest.approx([1.5, 5.5, 8.0])
    assert raw[:, 0].tolist() == [-math.inf] * 3


def test_heat_map_colours_and_order():
    from matplotlib.colors import to_rgba

    log10 = torch.tensor([[0.0, 1.0, 2.0], [-math.inf, math.nan, math.inf]], dtype=torch.float64)
    figure = gradient_heat_map(["net.a", "net.b", "net.c"], [100, 200], log10, log10 - 1)
    raw, applied = (axis.images[0].get_array() for axis in figure.axes[:2])
    assert raw.shape == (3, 2, 4)  # layers down, columns across
    assert tuple(raw[0, 1]) == to_rgba(ZERO_COLOUR)
    assert tuple(raw[1, 1]) == tuple(raw[2, 1]) == to_rgba(NOT_FINITE_COLOUR)
    # One scale for both panels: the same norm has the same colour, a larger norm another.
    np.testing.assert_array_equal(raw[1, 0], applied[2, 0])
    assert not np.array_equal(raw[1, 0], raw[2, 0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b", "c"]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["zero or no gradient", "not finite"]
    figure.canvas.draw()
    powers = {label.get_text() for label in figure.axes[2].get_yticklabels()}
    assert {"10⁻¹", "10⁰", "10²"} <= powers
    assert power_of_ten(-12.0) == "10⁻¹²"


@pytest.mark.parametrize("steps", [[0], [5, 5, 5], [0, 1, 1_000_000]])
def test_heat_map_draws_any_history(steps):
    layers = [f"layer{index}" for index in range(50)]
    cells = torch.full((len(steps), 50), math.nan, dtype=torch.float64)
    figure = gradient_heat_map(layers, steps, cells, cells)
    figure.canvas.draw()
    labels = figure.axes[0].get_yticklabels()
    assert 1 < len(labels) <= 20
    ticks = figure.axes[0].get_xticks()
    assert 1 <= len(ticks) <= 6
    assert all(0 <= tick <= len(steps) - 1 for tick in ticks)


def test_short_names():
    assert short_names(["net.trunk.0", "net.trunk.1", "net.head"]) == ["trunk.0", "trunk.1", "head"]
    assert short_names(["a"]) == ["a"]
    assert short_names(["a.encoder.layers.linear", "b"], longest=15) == ["layers.linear", "b"]
    assert short_names(["x.abcdefghij", "y"], longest=6) == ["…fghij", "y"]
    assert short_names(["trunk.norm", "value.trunk.norm"], longest=12) == ["trunk.norm", "val…unk.norm"]
