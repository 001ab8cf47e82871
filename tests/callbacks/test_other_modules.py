"""Interventions in projects that have no guard, and on modules with layers of unusual kinds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.data import DataLoader

from lit_gfs.agents import PPO
from lit_gfs.callbacks import (
    AdaptiveGradientClipping,
    GradientNormalization,
    LayerResets,
    LayerwiseLearningRates,
    NaNGuard,
    ParsevalRegularization,
    PathSensitiveInit,
    ReGraMa,
    ShrinkAndPerturb,
    SpectralNormalization,
    StaticSparsity,
    TemporalGradientClipping,
    WeightClipping,
    WeightProjection,
)
from lit_gfs.errors import UserError
from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.metrics.module_protocol import layers_of
from support.specs import continuous_spec
from support.training import quiet_trainer

both = pytest.mark.parametrize("make", [TemporalGradientClipping, GradientNormalization])


class Net(LightningModule):
    """Two layers; the second step's gradient is not a number."""

    def __init__(self, raw: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)  # few units: with other weights none may be active
        self.network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
        self.unused = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.example_input_array = torch.zeros(1, 4)
        self.automatic_optimization = not raw
        self.taken: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self(batch).square().mean()
        if not self.automatic_optimization:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        return loss

    def on_after_backward(self) -> None:
        if self.automatic_optimization and self.global_step == 1:
            self.network[2].weight.grad[0, 0] = torch.nan

    def on_train_batch_end(self, *arguments: Any) -> None:
        self.taken.append(self.get_submodule("network.2").weight.detach().clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def fit(module: LightningModule, *callbacks: Callback) -> None:
    trainer = quiet_trainer(max_epochs=1, accelerator="cpu", callbacks=list(callbacks))
    trainer.fit(module, DataLoader(cast(Any, torch.ones(8, 4)), batch_size=2))


@both
def test_alone_it_skips_a_step_that_is_not_finite_and_names_the_layer(make: Callable[[], Callback]) -> None:
    module = Net()
    with pytest.warns(UserWarning, match=r"the step at step 1 is skipped, .*the gradient of network\.2 \(1"):
        fit(module, make())
    assert torch.equal(module.taken[0], module.taken[1])
    assert not torch.equal(module.taken[1], module.taken[2])
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def test_of_several_one_tells_of_it(recwarn: pytest.WarningsRecorder) -> None:
    fit(Net(), TemporalGradientClipping(), GradientNormalization())
    fit(Net(), NaNGuard(), TemporalGradientClipping(), GradientNormalization())
    told = [str(each.message).partition(":")[0] for each in recwarn if "is skipped" in str(each.message)]
    assert told == ["gradient_normalization", "nan_guard"]


@pytest.mark.parametrize("make", [TemporalGradientClipping, GradientNormalization, NaNGuard])
def test_steps_that_lightning_does_not_tell_of_are_missed_aloud(make: Callable[[], Callback]) -> None:
    with pytest.warns(UserWarning, match=f"{make.__name__} saw no optimizer step"):
        fit(Net(raw=True), make())


def test_layers_that_forward_does_not_run_keep_their_weights() -> None:
    module, callback = Net(), PathSensitiveInit()
    with torch.no_grad():
        module.unused[1].weight.fill_(3.0)
    before = [parameter.detach().clone() for parameter in module.unused.parameters()]
    module.configure_optimizers = lambda: torch.optim.SGD(module.network.parameters(), lr=0.0)  # type: ignore
    with pytest.warns(UserWarning, match=r"leaves unused\.0 as they were: forward does not run it"):
        fit(module, callback)
    assert callback.report is not None
    assert list(callback.report.shares) == ["network.0", "network.2"]
    assert all(torch.equal(*pair) for pair in zip(before, module.unused.parameters(), strict=True))


def test_a_layer_whose_weight_is_parametrized_is_one() -> None:
    module = Net()
    weight_norm(module.network[0])
    spectral_norm(module.network[2])
    owned = parameters_by_layer(layers_of(module))
    # Bias, length and direction; bias and weight.
    assert {name: len(each) for name, each in owned.items()} == {
        "network.0": 3,
        "network.2": 2,
        "unused.0": 2,
        "unused.1": 2,
    }


def test_what_a_module_s_own_list_leaves_out_is_no_layer() -> None:
    class Policy(Net):
        def named_layers(self) -> dict[str, nn.Module]:
            return {"first": self.network[0]}

    callback = GradientNormalization()
    fit(Policy(), callback)
    assert list(callback._parts[0].parameters) == ["first"]


def test_the_standard_deviation_of_ppo_is_scaled_like_a_layer() -> None:
    agent = PPO(continuous_spec())
    owned = parameters_by_layer(layers_of(agent))
    assert list(owned)[-1] != "ActorCritic"
    assert owned["log_std"] == [agent.actor_critic.log_std]
    assert sum(len(each) for each in owned.values()) == len(list(agent.parameters()))


class WithoutFaults(Net):
    """The same layers; all gradients are finite."""

    def on_after_backward(self) -> None:
        pass


@pytest.mark.parametrize("make", [StaticSparsity, WeightClipping, WeightProjection, ShrinkAndPerturb])
def test_a_weight_that_hooks_compute_is_left_alone(make: Callable[[], Callback]) -> None:
    """If rows of its direction were zeros, the weight would be 0 / 0."""
    module = WithoutFaults()
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(module.network[0])
    before = [parameter.detach().clone() for parameter in module.network[0].parameters()]
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.0)  # type: ignore[method-assign]
    fit(module, make())
    for parameter, at_first in zip(module.network[0].parameters(), before, strict=True):
        assert torch.equal(parameter, at_first)


class WithoutForward(Net):
    forward = LightningModule.forward

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch).square().mean()


@pytest.mark.parametrize(
    "make",
    [
        PathSensitiveInit,
        LayerwiseLearningRates,
        LayerResets,
        ReGraMa,
        ParsevalRegularization,
        AdaptiveGradientClipping,
        SpectralNormalization,
    ],
)
def test_a_module_without_forward_is_told_so(make: Callable[[], Callback]) -> None:
    with pytest.raises(UserError, match=r"runs WithoutForward's forward, but it has none; expected a method"):
        fit(WithoutForward(), make())


def test_a_compiled_network_is_initialized_and_read_eagerly() -> None:
    module, plain = WithoutFaults(), WithoutFaults()
    module.network = cast(Any, torch.compile(module.network, backend="eager"))
    for each in (module, plain):
        torch.manual_seed(0)
        fit(each, PathSensitiveInit(), LayerwiseLearningRates())
    for compiled, own in zip(module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(compiled, own)
    torch.compiler.reset()


def test_learning_rates_of_layers_do_not_suit_lbfgs() -> None:
    module = Net()
    module.configure_optimizers = lambda: torch.optim.LBFGS(module.parameters())  # type: ignore[method-assign]
    with pytest.raises(UserError, match="LayerwiseLearningRates does not suit LBFGS"):
        fit(module, LayerwiseLearningRates())
