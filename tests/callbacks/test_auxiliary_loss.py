"""What the protocol of auxiliary losses promises, on modules that know nothing of reinforcement learning."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_gfs.callbacks import CurvatureMonitor, NaNGuard, TemporalGradientClipping
from lit_gfs.callbacks.auxiliary_loss import AuxiliaryLoss
from lit_gfs.errors import UserError
from lit_gfs.optim import Kron
from support.accelerator import ACCELERATOR
from support.auxiliary import FeatureNet, SmallFeatures, SmallWeights, fit, sgd
from support.training import quiet_trainer, regression_batches, weights


def both() -> list[Callback]:
    return [SmallFeatures("features", 2.0), SmallWeights("weights", 0.1)]


def by_hand(module: FeatureNet) -> None:
    """Have the module add the terms of `both` itself."""

    def extra(features: Tensor) -> Tensor:
        squares = torch.stack([p.square().sum() for p in module.parameters()]).sum()
        return 2.0 * features.square().mean() + 0.1 * squares

    module.extra = extra


def test_a_step_is_one_along_the_gradient_of_the_sum() -> None:
    class Line(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return (self.weight * torch.tensor([4.0, 0.0, 1.0], device=self.device)).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Line()
    fit(module, [SmallWeights("weights", 0.5)], 1)

    # The gradients are (4, 0, 1) and 0.5 * 2 * (1, -2, 0.5).
    expected = torch.tensor([1.0 - 0.1 * (4 + 1), -2.0 - 0.1 * (0 - 2), 0.5 - 0.1 * (1 + 0.5)])
    torch.testing.assert_close(weights(module).cpu(), expected)


@pytest.mark.parametrize(
    "make_optimizer",
    [
        sgd,
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
        lambda p: torch.optim.Adam(p, lr=0.01),
        lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3),
        lambda p: Kron(p, lr=0.01),
    ],
    ids=["SGD", "momentum", "Adam", "LBFGS", "Kron"],
)
@pytest.mark.parametrize("accumulated", [1, 3])
def test_terms_are_parts_of_the_loss_for_every_optimizer(make_optimizer: Any, accumulated: int) -> None:
    module, other, untouched = (FeatureNet(make_optimizer) for _ in range(3))
    by_hand(other)

    fit(module, both(), 8, accumulate_grad_batches=accumulated)
    fit(other, [], 8, accumulate_grad_batches=accumulated)
    fit(untouched, [], 8, accumulate_grad_batches=accumulated)

    torch.testing.assert_close(weights(module), weights(other))
    assert not torch.allclose(weights(module), weights(untouched), atol=1e-4)


def test_interventions_see_them_as_parts_of_the_loss() -> None:
    module, other = FeatureNet(), FeatureNet()
    by_hand(other)

    fit(module, [*both(), TemporalGradientClipping(warmup=3, z_threshold=1.0)], 20)
    fit(other, [TemporalGradientClipping(warmup=3, z_threshold=1.0)], 20)

    torch.testing.assert_close(weights(module), weights(other))


def test_a_loss_scale_scales_them_too() -> None:
    class NoAutocast(MixedPrecision):
        def autocast_context_manager(self) -> Any:
            return torch.autocast(ACCELERATOR, enabled=False)

    scaled, plain = FeatureNet(), FeatureNet()
    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=1024.0, growth_interval=4)
    rows = fit(scaled, both(), 20, plugins=NoAutocast("16-mixed", ACCELERATOR, scaler))
    expected = fit(plain, both(), 20)

    assert scaler.get_scale() > 1024
    torch.testing.assert_close(weights(scaled), weights(plain), rtol=1e-4, atol=1e-6)
    assert rows[20]["loss/features"] == pytest.approx(expected[20]["loss/features"], rel=1e-4)


def test_bfloat16_autocast() -> None:
    module, other = FeatureNet(), FeatureNet()
    by_hand(other)

    fit(module, both(), 10, precision="bf16-mixed")
    fit(other, [], 10, precision="bf16-mixed")

    torch.testing.assert_close(weights(module), weights(other))


class Asking(AuxiliaryLoss):
    """Keeps everything that there is to ask for."""

    def __init__(self) -> None:
        super().__init__("asking", 0.0)
        self.seen: dict[str, Any] = {}

    def term(
        self,
        module: LightningModule,
        batch: Any,
        outputs: Any,
        parameters: dict[str, list[nn.Parameter]],
        features: Tensor,
        pre_activations: Tensor,
    ) -> Tensor:
        self.seen = dict(locals())
        return outputs["loss"].detach()


class InADict(FeatureNet):
    """Returns its loss with something else, and nothing at all for the second batch."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
        if batch_idx == 1:
            return None
        return {"loss": super().training_step(batch, batch_idx), "other": batch_idx}


def test_a_term_gets_what_its_arguments_name() -> None:
    class Outputs(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *others: Any) -> None:
            seen.append(outputs)

    seen: list[Any] = []
    module, asking = InADict(lambda p: torch.optim.SGD(p, lr=0.0)), Asking()
    module.trunk[0].bias.requires_grad_(False)

    fit(module, [asking, Outputs()], 1)

    (x, _), features = asking.seen["batch"], asking.seen["features"]
    assert asking.seen["module"] is module
    torch.testing.assert_close(features, module.policy_features(x))
    torch.testing.assert_close(asking.seen["pre_activations"], module.trunk[:3](x))
    assert features.requires_grad
    parameters = asking.seen["parameters"]
    assert list(parameters) == ["trunk.0", "trunk.2", "policy_head"]
    assert parameters["trunk.0"] == [module.trunk[0].weight], "a frozen parameter is no trained one"
    assert asking.seen["outputs"]["other"] == 0
    assert seen[0]["other"] == 0, "whatever else training_step returns stays"


def test_a_batch_without_a_loss_has_no_terms() -> None:
    module, other = InADict(), InADict()
    by_hand(other)

    rows = fit(module, both(), 5)
    fit(other, [], 5)

    torch.testing.assert_close(weights(module), weights(other))
    assert rows[5].keys() == {"loss/features", "loss/weights"}


def test_parameters_are_those_that_are_trained_now() -> None:
    class Thaw(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                pl_module.trunk[0].requires_grad_(True)

    module, asking = FeatureNet(), Asking()
    module.trunk[0].requires_grad_(False)
    asking.term = lambda parameters: asking.seen.update(parameters) or torch.zeros(())  # type: ignore
    fit(module, [Thaw(), asking], 3)
    assert list(asking.seen) == ["trunk.2", "policy_head"]

    fit(module, [Thaw(), asking], 4)
    assert set(asking.seen) == {"trunk.2", "policy_head", "trunk.0"}


def test_an_activation_that_works_in_place_does_not_hide_its_input() -> None:
    module, asking = FeatureNet(lambda p: torch.optim.SGD(p, lr=0.0)), Asking()
    module.trunk[3] = nn.ReLU(inplace=True)
    asking.term = lambda batch, pre_activations: (  # type: ignore[method-assign]
        asking.seen.update(batch=batch, pre_activations=pre_activations) or pre_activations.mean()
    )

    fit(module, [asking], 1)

    torch.testing.assert_close(asking.seen["pre_activations"], module.trunk[:3](asking.seen["batch"][0]))


def test_the_means_of_the_terms_are_written() -> None:
    seen: list[float] = []

    class Watched(SmallFeatures):
        def term(self, features: Tensor) -> Tensor:
            value = super().term(features)
            seen.append(float(value.detach()))
            return value

    rows = fit(FeatureNet(), [Watched("features", 0.3)], 7)

    assert rows.keys() == {5, 7}
    assert rows[5] == pytest.approx({"loss/features": sum(seen[:5]) / 5})
    assert rows[7] == pytest.approx({"loss/features": sum(seen[5:]) / 2})


def test_the_module_has_its_training_step_back() -> None:
    module = FeatureNet()
    fit(module, both(), 2)
    assert "training_step" not in vars(module)

    class Fault(Callback):
        def on_train_batch_end(self, *arguments: Any) -> None:
            raise RuntimeError("fault")

    own = module.training_step
    module.training_step = own  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="fault"):
        fit(module, [*both(), Fault()], 2)
    assert vars(module)["training_step"] == own
    assert all(not each._forward_pre_hooks for each in module.modules())


def test_the_same_trainer_fits_on() -> None:
    module, other = FeatureNet(), FeatureNet()
    for each, callbacks in ((module, both()), (other, [])):
        if each is other:
            by_hand(other)
        trainer = quiet_trainer(max_steps=4, callbacks=callbacks)
        trainer.fit(each, regression_batches(10))
        trainer.fit_loop.epoch_loop.max_steps = 8
        trainer.fit(each, regression_batches(10))

    torch.testing.assert_close(weights(module), weights(other))


def test_a_monitor_of_the_loss_sees_that_of_the_module_alone() -> None:
    def trace(*callbacks: Callback) -> dict[str, float]:
        module = FeatureNet(lambda p: torch.optim.SGD(p, lr=0.0))
        rows = fit(module, [*callbacks, CurvatureMonitor(every_n_steps=1, samples=2, iterations=2)], 1)
        return {tag: value for tag, value in rows[1].items() if tag.startswith("curvature/")}

    assert trace(*both()) == trace()


def test_a_term_that_is_not_finite_is_a_loss_that_is_not() -> None:
    class Poisoned(SmallFeatures):
        def term(self, features: Tensor, module: LightningModule) -> Tensor:  # type: ignore[override]
            return features.sum() * (float("nan") if module.global_step == 2 else 1.0)

    module, guard = FeatureNet(), NaNGuard()
    with pytest.warns(UserWarning, match="the loss"):
        fit(module, [guard, Poisoned("poisoned", 0.1)], 5)

    assert guard.skips.nonfinite_losses == 1
    assert weights(module).isfinite().all()


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    whole, resumed = FeatureNet(), FeatureNet()
    keep = ModelCheckpoint(tmp_path, filename="at_{step}", every_n_train_steps=10, save_top_k=-1)
    rows = fit(whole, [*both(), keep], 30, log_every_n_steps=4)

    path = tmp_path / "at_step=10.ckpt"  # at the end of an epoch, between two points
    again = fit(resumed, both(), 30, ckpt_path=path, log_every_n_steps=4)

    assert torch.equal(weights(whole), weights(resumed))
    assert again == {step: row for step, row in rows.items() if step > 10}


class Manual(FeatureNet):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Fetching(FeatureNet):
    def training_step(self, dataloader_iter: Any) -> Any:  # type: ignore[override]
        return None


class Headless(FeatureNet):
    def __init__(self) -> None:
        super().__init__()
        self.last, self.policy_head = self.policy_head, None  # type: ignore[assignment]


class Linear(FeatureNet):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(3, 6))


class Indirect(FeatureNet):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.trunk(batch[0]).mean()


class Unknown(SmallFeatures):
    def term(self, feature: Tensor) -> Tensor:  # type: ignore[override]
        return feature.mean()


class Vector(SmallFeatures):
    def term(self, features: Tensor) -> Tensor:
        return features.mean(0)


@pytest.mark.parametrize(
    ("module", "callbacks", "message"),
    [
        (
            Manual,
            both,
            "SmallFeatures adds to the loss that training_step returns, but Manual optimizes manua",
        ),
        (
            Fetching,
            both,
            "but Fetching fetches its batches itself; expected automatic optimization of a batch",
        ),
        (Headless, both, "SmallFeatures reads the features of Headless, which has no policy_head; expected"),
        (Linear, lambda: [Asking()], "Asking reads the input of the last activation of Linear, which has no"),
        (Indirect, both, "the training_step of Indirect did not run policy_head"),
        (FeatureNet, lambda: [Unknown("u", 1)], "term asks for 'feature'.*did you mean 'features'"),
        (
            FeatureNet,
            lambda: [Vector("v", 1)],
            r"Vector.term returned shape \(6,\); expected a tensor of shape",
        ),
        (
            FeatureNet,
            lambda: [SmallWeights("it", 1), SmallFeatures("it", 1)],
            "two auxiliary losses have the name 'it'",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(module: Any, callbacks: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as refused:
        fit(module(), callbacks(), 1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("name", "coefficient"), [("", 1.0), ("a", -1.0)])
def test_arguments_are_checked(name: str, coefficient: float) -> None:
    with pytest.raises(UserError, match=r"name is empty|coefficient is -1"):
        SmallFeatures(name, coefficient)


def test_a_strategy_that_shards_parameters_is_refused() -> None:
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy(), gradient_clip_val=None)
    with pytest.raises(MisconfigurationException, match="SmallFeatures needs whole gradients"):
        SmallFeatures("a", 1.0).setup(trainer, FeatureNet(), "fit")
