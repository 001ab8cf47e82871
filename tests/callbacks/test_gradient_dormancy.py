"""The share of units without a gradient, as the monitor of gradient flow writes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

from lit_gfs.callbacks import GradientFlowMonitor, GradientNormalization
from lit_gfs.errors import UserError
from support.intervened import fit
from support.probed import Chain, sgd


class Gradients(Callback):
    """Keeps the raw gradients of the weights."""

    def __init__(self) -> None:
        self.seen: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for name in ("first", "second", "head"):
            self.seen[name] = getattr(pl_module, name).weight.grad.clone()


@pytest.mark.parametrize("tau", [0.0, 0.01, 0.8])
def test_shares_are_those_of_the_raw_gradients_by_hand(tau: float) -> None:
    gradients = Gradients()
    monitor = GradientFlowMonitor(every_n_steps=1, per_layer=True, tau=tau)
    callbacks = [monitor, gradients, GradientNormalization(1.0, "spectral")]
    row = fit(Chain(sgd(0.0)).kill(1, 2, 6), callbacks, 1)[1]

    dormant = {}
    for name, gradient in gradients.seen.items():
        magnitudes = [sum(abs(value) for value in unit) for unit in gradient.tolist()]
        mean = sum(magnitudes) / len(magnitudes)
        dormant[name] = [each <= tau * mean for each in magnitudes]
        assert row[f"gradient_flow/dormant/{name}"] == pytest.approx(sum(dormant[name]) / len(dormant[name]))
    assert dormant["first"][1:3] == [True, True]
    units = [each for layer in dormant.values() for each in layer]
    assert row["gradient_flow/dormant_share"] == pytest.approx(sum(units) / 17)
    assert "gradient_flow/dormant/norm" not in row


def test_layers_have_no_charts_unless_they_are_asked_for() -> None:
    row = fit(Chain(sgd(0.0)), [GradientFlowMonitor(every_n_steps=1)], 1)[1]
    assert "gradient_flow/dormant_share" in row
    assert not any(tag.startswith("gradient_flow/dormant/") for tag in row)


def test_gradients_that_are_not_finite_have_no_share() -> None:
    class Poisoned(Chain):
        def on_after_backward(self) -> None:
            for parameter in self.parameters():
                parameter.grad = torch.full_like(parameter, torch.nan)

    row = fit(Poisoned(sgd(0.0)), [GradientFlowMonitor(every_n_steps=1)], 1)[1]
    assert "gradient_flow/dormant_share" not in row


def test_the_threshold_is_checked() -> None:
    with pytest.raises(UserError, match=r"tau is 2; expected a number between 0 and 1"):
        GradientFlowMonitor(tau=2)
