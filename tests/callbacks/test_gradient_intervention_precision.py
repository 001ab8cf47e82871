"""Gradient interventions under 16-bit precision, and on devices that nothing may be read from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn

from lit_gfs.callbacks import GradientFlowMonitor, GradientNormalization, TemporalGradientClipping
from support.accelerator import ACCELERATOR
from support.intervened import Net, both_interventions, fit, make_net
from support.training import weights


@both_interventions
@pytest.mark.parametrize("fused", [False, True])
def test_16_bit_loss_scales_do_not_reach_the_statistics(make, fused: bool) -> None:
    """Training under a loss scale that changes is training without one."""

    def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.01, fused=fused)

    class NoAutocast(MixedPrecision):
        def autocast_context_manager(self) -> Any:
            return torch.autocast(ACCELERATOR, enabled=False)

    scaled, plain = make_net(sgd), make_net(sgd)
    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=1024.0, growth_interval=4)
    fit(scaled, [make()], 20, plugins=NoAutocast("16-mixed", ACCELERATOR, scaler))
    fit(plain, [make()], 20)

    assert scaler.get_scale() > 1024
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-4, atol=1e-6)


@both_interventions
@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_is_left_to_the_loss_scaler(make, fused: bool, recwarn: pytest.WarningsRecorder) -> None:
    module = make_net(lambda p: torch.optim.SGD(p, lr=0.01, fused=fused))
    module.poisoned = {6: math.inf}
    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=1024.0)

    fit(module, [make(name="it")], 20, plugins=MixedPrecision("16-mixed", ACCELERATOR, scaler))

    assert scaler.get_scale() < 1024
    assert weights(module).isfinite().all()
    assert [w for w in recwarn if "not finite" in str(w.message)] == []


@both_interventions
def test_bfloat16_autocast(make) -> None:
    module = make_net()

    rows = fit(module, [make(name="it")], 10, precision="bf16-mixed")

    assert weights(module).isfinite().all()
    assert rows[10]["intervention/it/scale"] > 0


@both_interventions
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_reads_nothing_from_the_device(make, fused: bool) -> None:
    """Meta tensors have no values: reading one, as a host synchronization does, raises."""
    module = make_net().to("meta")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.param_groups[0]["fused"] = fused
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    callback = make()
    trainer: Any = SimpleNamespace(
        callbacks=[callback],
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=-1)),
        optimizers=[optimizer],
        global_step=0,
        log_every_n_steps=5,
        precision_plugin=Precision(),
        loggers=[],
        world_size=1,
    )
    callback.on_fit_start(trainer, module)
    callback.on_train_start(trainer, module)

    for step in range(1, 4):
        callback.on_before_optimizer_step(trainer, module, optimizer)
        trainer.global_step = step
        callback.on_train_batch_end(trainer, module, None, None, step)
    assert (getattr(optimizer, "found_inf", None) is not None) == fused  # it skips there

    trainer.global_step = 5
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        callback.on_train_batch_end(trainer, module, None, None, 5)  # a log step reads


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [TemporalGradientClipping, GradientNormalization, GradientFlowMonitor])
def test_a_batch_without_a_loss_under_16_bit(make, fused: bool) -> None:
    class Skips(Net):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    torch.manual_seed(0)
    module = Skips(lambda p: torch.optim.SGD(p, lr=0.01, fused=fused))
    fit(
        module,
        [make()],
        6,
        plugins=MixedPrecision("16-mixed", ACCELERATOR, torch.amp.GradScaler(ACCELERATOR)),
    )
