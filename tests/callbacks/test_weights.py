"""The monitor of weights: its numbers, its pace, and what it keeps for a resumed run."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lit_gfs.callbacks import WeightMonitor
from lit_gfs.errors import UserError
from support.intervened import Net, fit, make_net


def test_means_over_layers_and_charts_of_layers() -> None:
    net = make_net(lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    (row,) = fit(net, [WeightMonitor(per_layer=True)], 1).values()
    names = ["first", "shared", "sometimes", "last"]
    layers = [net.get_submodule(name) for name in names]
    norms = [math.sqrt(sum(float(p.square().sum()) for p in layer.parameters())) for layer in layers]
    assert [row[f"weights/norm/{name}"] for name in names] == pytest.approx(norms)
    assert row["weights/norm"] == pytest.approx(sum(norms) / 4)
    assert row["weights/distance"] == 0.0
    assert row["weights/stable_rank/last"] == pytest.approx(1.0)
    assert row["weights/singular_value/last"] == pytest.approx(float(net.last.weight.norm()))
    assert len(row) == 4 + 16


def test_the_distance_is_from_the_start_of_training() -> None:
    net = make_net()
    start = {name: layer.weight.detach().clone() for name, layer in (("last", net.last),)}
    bias = net.last.bias.detach().clone()
    rows = fit(net, [WeightMonitor(every_n_steps=1, per_layer=True)], 3)
    moved = math.hypot(float((net.last.weight - start["last"]).norm()), float((net.last.bias - bias).norm()))
    first = math.hypot(float(start["last"].norm()), float(bias.norm()))
    assert rows[3]["weights/distance/last"] == pytest.approx(moved / first)


def test_it_measures_after_the_first_step_and_then_at_its_interval() -> None:
    assert list(fit(make_net(), [WeightMonitor(every_n_steps=4)], 10)) == [1, 4, 8]
    assert list(fit(make_net(), [WeightMonitor()], 10)) == [1]


def test_charts_of_layers_are_off_by_default() -> None:
    (row,) = fit(make_net(), [WeightMonitor()], 1).values()
    assert sorted(row) == [
        "weights/distance",
        "weights/norm",
        "weights/singular_value",
        "weights/stable_rank",
    ]


def test_a_resumed_run_measures_from_the_same_start(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="at_{step}", every_n_train_steps=10, save_top_k=-1)
    rows = fit(make_net(), [WeightMonitor(every_n_steps=3), keep], 30)
    later = fit(make_net(), [WeightMonitor(every_n_steps=3)], 30, ckpt_path=tmp_path / "at_step=10.ckpt")
    assert later == {step: row for step, row in rows.items() if step > 10}


def test_arguments_and_layers_are_checked() -> None:
    class Bare(Net):
        def named_layers(self) -> dict[str, nn.Module]:
            return {}

    with pytest.raises(UserError, match="every_n_steps is 0"):
        WeightMonitor(every_n_steps=0)
    with pytest.raises(UserError, match="Bare has no trainable layer"):
        fit(Bare(), [WeightMonitor()], 1)
