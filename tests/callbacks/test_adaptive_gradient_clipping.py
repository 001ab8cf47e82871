"""Adaptive gradient clipping in fits: heads, accumulation, precision, and what monitors see of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lit_gfs.agents import PPO
from lit_gfs.callbacks import AdaptiveGradientClipping, GradientFlowMonitor, NaNGuard
from lit_gfs.errors import UserError
from lit_gfs.gradients.adaptive_clipping import AdaptiveClipper, unit_norms
from lit_gfs.metrics.gradient_flow import gradients_by_layer, parameters_by_layer
from support.accelerator import ACCELERATOR
from support.intervened import fit
from support.probed import Chain, sgd
from support.specs import discrete_spec
from support.training import MakeTrainer, regression_batches, weights

FACTOR = 0.02


def by_hand(steps: int, layers: tuple[str, ...]) -> Chain:
    """Train with nothing but PyTorch and the algorithm."""
    module = Chain(sgd(0.01))
    optimizer = module.configure_optimizers()
    parameters = parameters_by_layer({name: getattr(module, name) for name in layers})
    batches = list(regression_batches(10))
    for step in range(steps):
        optimizer.zero_grad()
        module.training_step(batches[step % 10], step).backward()
        owned = {name: [p.detach() for p in each] for name, each in parameters.items()}
        AdaptiveClipper(FACTOR).apply(gradients_by_layer(parameters), owned)
        optimizer.step()
    return module


@pytest.mark.parametrize("clip_heads", [False, True])
def test_it_does_what_the_algorithm_does_and_leaves_heads_out(clip_heads: bool) -> None:
    module = Chain(sgd(0.01))
    callback = AdaptiveGradientClipping(FACTOR, clip_heads=clip_heads)
    fit(module, [callback], 12)
    expected = by_hand(12, ("first", "second", "norm", *(["head"] if clip_heads else [])))
    torch.testing.assert_close(weights(module), weights(expected))
    assert not torch.allclose(weights(module), weights(by_hand(12, ())), atol=1e-3)
    assert callback.heads == ([] if clip_heads else ["head"])


def test_actor_and_critic_have_a_head_each(make_trainer: MakeTrainer) -> None:
    agent, callback = PPO(discrete_spec(shape=(6,))), AdaptiveGradientClipping()
    trainer = make_trainer(callbacks=[callback])
    trainer.strategy.connect(agent)
    agent.trainer = trainer
    trainer.strategy.optimizers = [torch.optim.Adam(agent.parameters())]
    callback.on_fit_start(trainer, agent)
    assert callback.heads == ["head", "value.head"]


def test_monitors_see_raw_and_applied_norms_and_its_own_tags_the_share_of_clipped_layers() -> None:
    seen: dict[str, Tensor] = {}

    class Applied(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Chain, *batch: Any) -> None:
            for name in ("first", "second", "head"):
                seen[name] = unit_norms(getattr(pl_module, name).weight.grad)

    module = Chain(sgd(0.0))
    callbacks = [
        GradientFlowMonitor(every_n_steps=1, per_layer=True),
        AdaptiveGradientClipping(FACTOR, per_layer=True),
        Applied(),
    ]
    rows = fit(module, callbacks, 1, log_every_n_steps=1)

    for name in ("first", "second"):
        assert float((seen[name] / unit_norms(getattr(module, name).weight)).max()) <= FACTOR * (1 + 1e-5)
    row = rows[1]
    clipped = [name for name in ("first", "second", "norm") if row[f"gradient_flow/scale/{name}"] < 1 - 1e-6]
    assert row["gradient_flow/scale/head"] == pytest.approx(1)
    assert row["intervention/adaptive_gradient_clipping/clipped_layers"] == pytest.approx(len(clipped) / 3)
    for name in ("first", "second", "norm"):
        assert row[f"intervention/adaptive_gradient_clipping/clipped/{name}"] == (name in clipped)
    scales = [row[f"gradient_flow/scale/{name}"] for name in ("first", "second", "norm")]
    assert row["intervention/adaptive_gradient_clipping/scale"] == pytest.approx(sum(scales) / 3, rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.filterwarnings("ignore:.*is skipped")
def test_what_is_not_finite_is_skipped(value: float, guarded: bool) -> None:
    class Poisoned(Chain):
        def on_after_backward(self) -> None:
            if self.global_step == 3:
                self.second.weight.grad[0, 0] = value  # type: ignore[index]

    module, shorter = Poisoned(sgd(0.01)), Chain(sgd(0.01))
    fit(module, [*([NaNGuard()] if guarded else []), AdaptiveGradientClipping(FACTOR)], 4)
    fit(shorter, [AdaptiveGradientClipping(FACTOR)], 3)
    assert torch.equal(weights(module), weights(shorter))


def test_accumulated_gradients_are_clipped_once() -> None:
    class Ratios(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Chain, *batch: Any) -> None:
            ratio = unit_norms(pl_module.first.weight.grad) / unit_norms(pl_module.first.weight.detach())
            found.append(float(ratio.max()))

    found: list[float] = []
    fit(Chain(sgd(0.0)), [AdaptiveGradientClipping(FACTOR), Ratios()], 2, accumulate_grad_batches=2)
    # The first micro-batch of a step is not clipped, and their sum is.
    assert found[0] > FACTOR
    assert found[1] == pytest.approx(FACTOR, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_it_clips_unscaled_gradients_under_16_bit(fused: bool) -> None:
    def make(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01, fused=fused)

    scaled, plain = Chain(make), Chain(make)
    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=1024.0)
    fit(
        scaled, [AdaptiveGradientClipping(FACTOR)], 6, plugins=MixedPrecision("16-mixed", ACCELERATOR, scaler)
    )
    fit(plain, [AdaptiveGradientClipping(FACTOR)], 6)
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=2e-2, atol=1e-4)
    unclipped = Chain(make)
    fit(unclipped, [], 6)
    assert not torch.allclose(weights(unclipped), weights(plain), rtol=2e-2, atol=1e-3)


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    whole, resumed = Chain(), Chain()
    rows = fit(whole, [AdaptiveGradientClipping(), keep], 30, log_every_n_steps=7)
    again = AdaptiveGradientClipping()
    later = fit(resumed, [again], 30, log_every_n_steps=7, ckpt_path=tmp_path / "step=10.ckpt")
    assert torch.equal(weights(whole), weights(resumed))
    assert later == {step: row for step, row in rows.items() if step > 10}


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    with pytest.raises(MisconfigurationException, match="gradient_clip_val"):
        fit(Chain(), [AdaptiveGradientClipping()], 1, gradient_clip_val=0.5)
    module = Chain()
    module.example_input_array = None
    with pytest.raises(
        UserError, match="AdaptiveGradientClipping runs Chain's forward, but its example_input_array"
    ):
        fit(module, [AdaptiveGradientClipping()], 1)
    fit(module, [AdaptiveGradientClipping(clip_heads=True)], 1)
    with pytest.raises(UserError, match="clip_factor is 0"):
        AdaptiveGradientClipping(clip_factor=0)
