"""Callbacks that apply rules to weights: alone, in pairs, resumed, and beside all the rest of Lightning."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lit_gfs.callbacks import (
    EMAWeights,
    LayerwiseLearningRates,
    NaNGuard,
    PullToInit,
    ShrinkAndPerturb,
    SpectralNormalization,
    StaticSparsity,
    TemporalGradientClipping,
    UpdateClipping,
    UpdateNormalization,
    WeightClipping,
    WeightProjection,
)
from lit_gfs.callbacks.named import INTERVENTIONS, in_order, key_of
from lit_gfs.callbacks.weight_rule import WeightRuleIntervention
from lit_gfs.errors import UserError
from lit_gfs.metrics.gradient_flow import parameters_by_layer
from lit_gfs.metrics.module_protocol import layers_of
from lit_gfs.networks import NoisyLinear
from lit_gfs.networks.noise import sigmas_of
from lit_gfs.plasticity.pull_to_init import PullToInit as PullRule
from lit_gfs.plasticity.update_normalization import UpdateNormalization as NormalizationRule
from lit_gfs.plasticity.update_rule import UpdateRule
from lit_gfs.plasticity.weight_rule import named_weights
from lit_gfs.steps.objective_shift import announce_objective_shift
from support.intervened import Net, fit, make_net
from support.training import quiet_trainer, regression_batches, weights

Make = Callable[[], WeightRuleIntervention]
MAKERS: dict[str, Make] = {
    "update_normalization": lambda: UpdateNormalization(block=2),
    "update_clipping": lambda: UpdateClipping(threshold=0.5),
    "pull_to_init": lambda: PullToInit(strength=5.0),
    "shrink_and_perturb": lambda: ShrinkAndPerturb(shrink=0.99, every_n_steps=3),
    "static_sparsity": lambda: StaticSparsity(sparsity=0.5),
    "weight_clipping": WeightClipping,
    "spectral_normalization": lambda: SpectralNormalization(limit=0.5, first_layer=True, last_layer=True),
    "weight_projection": WeightProjection,
}
HIDDEN = {"update_normalization": {"shared", "sometimes"}}
"""The layers of `Net` that a rule chooses, unless it chooses all of them."""
each_one = pytest.mark.parametrize("key", list(MAKERS))
PAIRS = list(combinations(MAKERS, 2))


class Example(Net):
    """Has an example input, so that the positions of its layers are known."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.example_input_array = torch.zeros(1, 3)


def make_example(*arguments: Any) -> Example:
    torch.manual_seed(0)
    return Example(*arguments)


def rules(module: LightningModule) -> dict[str, Tensor]:
    layers = layers_of(module)
    return dict(named_weights(layers, parameters_by_layer(layers)))


def test_every_key_has_a_case_here() -> None:
    kinds = [key for key, kind in INTERVENTIONS.items() if issubclass(kind, WeightRuleIntervention)]
    assert kinds == list(MAKERS)
    assert [key_of(make()) for make in MAKERS.values()] == kinds


@each_one
def test_it_writes_its_own_tags_and_changes_what_is_learned(key: str) -> None:
    net, plain = make_net(), make_net()
    rows = fit(net, [MAKERS[key]()], 10)
    fit(plain, [], 10)
    tags = {tag for row in rows.values() for tag in row}
    assert tags
    assert all(tag.startswith((f"intervention/{key}/", "Overview/")) for tag in tags)
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    assert not torch.equal(weights(net), weights(plain))
    assert torch.equal(net.frozen.weight, plain.frozen.weight)


@each_one
def test_the_callback_does_what_the_rule_does_without_lightning(key: str) -> None:
    net, by_hand = make_net(), make_net()
    callback = MAKERS[key]()
    fit(net, [callback], 6)
    optimizer, rule = by_hand.configure_optimizers(), MAKERS[key]().make_rule()
    named = rules(by_hand)
    chosen = {name: named[name] for name in named if callback.chooses(name, named)}  # type: ignore[arg-type]
    with torch.no_grad():
        rule.meet(chosen)
        if key == "static_sparsity":
            rule.apply(chosen, [])
    for index, batch in enumerate(regression_batches(6)):
        optimizer.zero_grad()
        by_hand.training_step(batch, index).backward()
        with torch.no_grad():
            if isinstance(rule, UpdateRule):
                rule.remember(chosen)
        optimizer.step()
        with torch.no_grad():
            if key != "shrink_and_perturb" or index % 3 == 2:
                rule.apply(chosen, [0.01] * len(chosen))
    assert torch.equal(weights(net), weights(by_hand))


@each_one
def test_a_resumed_run_repeats_the_uninterrupted_one(key: str, tmp_path: Path) -> None:
    whole, resumed = make_net(), make_net()
    keep = ModelCheckpoint(tmp_path, filename="at_{step}", every_n_train_steps=10, save_top_k=-1)
    uninterrupted, second = MAKERS[key](), MAKERS[key]()
    rows = fit(whole, [uninterrupted, keep], 30, log_every_n_steps=4)

    later = fit(resumed, [second], 30, ckpt_path=tmp_path / "at_step=10.ckpt", log_every_n_steps=4)

    assert torch.equal(weights(whole), weights(resumed))
    assert later == {step: row for step, row in rows.items() if step > 10}
    mine, theirs = uninterrupted.state_dict(), second.state_dict()
    assert mine["steps"] == theirs["steps"] == [30]
    assert mine["state"].keys() == theirs["state"].keys()
    for name, value in mine["state"]["kept"].items():
        assert torch.equal(value, theirs["state"]["kept"][name])


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_every_pair_runs_with_the_method_of_recipes(pair: tuple[str, str]) -> None:
    net = make_net()
    callbacks = in_order([NaNGuard(), TemporalGradientClipping(warmup=2), *(MAKERS[key]() for key in pair)])
    rows = fit(net, callbacks, 6)
    written = {tag.split("/")[1] for row in rows.values() for tag in row if tag.startswith("intervention/")}
    assert written >= set(pair)
    assert weights(net).isfinite().all()
    if "static_sparsity" in pair:
        (sparse,) = (each for each in callbacks if isinstance(each, StaticSparsity))
        named = rules(net)
        assert all(not named[name][mask == 0].any() for name, mask in sparse.rule.kept.items())


@each_one
@pytest.mark.filterwarnings("ignore:.*is skipped")
def test_a_skipped_step_changes_no_weight(key: str) -> None:
    class Watch(Callback):
        seen: list[Tensor] = []

        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *batch: Any) -> None:
            self.seen.append(weights(pl_module))

    net, watch = make_net(), Watch()
    watch.seen = []
    net.poisoned = {3: math.nan}
    fit(net, [NaNGuard(), MAKERS[key](), watch], 5)
    assert torch.equal(watch.seen[2], watch.seen[3])
    assert not torch.equal(watch.seen[3], watch.seen[4])


@each_one
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_it_works_under_other_precisions(key: str, precision: Any) -> None:
    net = make_net()
    fit(net, [MAKERS[key]()], 4, precision=precision)
    assert weights(net).isfinite().all()


@each_one
def test_accumulated_gradients_are_one_step(key: str) -> None:
    callback = MAKERS[key]()
    fit(make_net(), [callback], 3, accumulate_grad_batches=4)
    assert callback.state_dict()["steps"] == [3]


@each_one
def test_several_optimizers_share_the_rule(key: str) -> None:
    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizers: Any = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in optimizers:
                optimizer.step()

        def configure_optimizers(self) -> Any:
            rest = [*self.shared.parameters(), *self.sometimes.parameters(), *self.last.parameters()]
            return [torch.optim.SGD(self.first.parameters(), lr=0.01), torch.optim.Adam(rest, lr=0.01)]

    torch.manual_seed(0)
    callback = MAKERS[key]()
    net = Two()
    fit(net, [callback], -1, max_epochs=1, limit_train_batches=4)
    assert callback.state_dict()["steps"] == [4, 4]
    assert set(callback.rule.kept) <= set(rules(net))
    everything = {"first", "shared", "sometimes", "last"}
    assert {name.split(".")[0] for name in callback.rule.kept} == HIDDEN.get(key, everything)


@each_one
def test_an_average_follows_the_changed_weights(key: str) -> None:
    """After one step the average is the weights, so validation and the end see what the rule has left."""
    net, average = make_example(), EMAWeights(decay=0.5)
    alone = make_example()
    fit(net, [average, MAKERS[key]()], 1)
    fit(alone, [MAKERS[key]()], 1)
    assert torch.equal(weights(net), weights(alone))


@each_one
def test_an_optimizer_without_a_chosen_weight_is_none_of_its_business(key: str) -> None:
    class Apart(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.free = nn.Parameter(torch.ones(()))
            self.alone = nn.LayerNorm(3)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizers: Any = self.optimizers()
            self.manual_backward(super().training_step([self.alone(batch[0]) * self.free, batch[1]], 0))
            for optimizer in optimizers:
                optimizer.step()

        def named_layers(self) -> dict[str, nn.Module]:
            return {name: getattr(self, name) for name in ("first", "shared", "last")}

        def configure_optimizers(self) -> Any:
            rest = [*self.shared.parameters(), *self.first.parameters(), *self.last.parameters()]
            others = [self.free, *self.alone.parameters()]
            return [torch.optim.SGD(others, lr=0.01), torch.optim.SGD(rest, lr=0.01)]

    torch.manual_seed(0)
    net, callback = Apart(), MAKERS[key]()
    fit(net, [callback], -1, max_epochs=1, limit_train_batches=3)
    everything = {"first", "shared", "last"}
    assert {name.split(".")[0] for name in callback.rule.kept} == HIDDEN.get(key, everything) & everything
    assert callback.state_dict()["steps"] == [3, 3]


# -- what single callbacks promise -----------------------------------------------------------------------


def test_projected_matrices_keep_their_norms_through_training() -> None:
    net = make_net()
    before = {name: float(p.norm()) for name, p in net.named_parameters() if p.ndim == 2}
    biases = net.first.bias.detach().clone()
    fit(net, [WeightProjection()], 10)
    after = {name: float(p.norm()) for name, p in net.named_parameters() if p.ndim == 2}
    assert after == pytest.approx(before, rel=1e-5)
    assert not torch.equal(net.first.bias, biases)


def test_first_and_last_layers_are_left_out_by_position() -> None:
    callback = SpectralNormalization(limit=0.5)
    fit(make_example(), [callback], 2)
    assert sorted(callback.rule.kept) == ["shared.weight", "sometimes.weight"]


def test_positions_need_an_example_input() -> None:
    with pytest.raises(UserError, match="SpectralNormalization runs Net's forward to find first and last"):
        fit(make_net(), [SpectralNormalization()], 1)


class Shallow(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.only = nn.Linear(3, 1)
        self.example_input_array = torch.zeros(1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.only(x)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_without_a_chosen_weight_is_named() -> None:
    with pytest.raises(UserError, match="SpectralNormalization found no weight to work on in Shallow"):
        fit(Shallow(), [SpectralNormalization()], 1)
    fit(Shallow(), [SpectralNormalization(first_layer=True)], 1)


def test_the_options_of_update_normalization_reach_the_rule() -> None:
    rule = UpdateNormalization(size=0.3, lengthen=True, block=5).make_rule()
    assert (rule.size, rule.lengthen, rule.block) == (0.3, True, 5)


def test_a_small_network_trains_with_a_recipe_for_large_ones() -> None:
    with pytest.warns(UserWarning, match="UpdateNormalization has no effect: Shallow has no hidden matrix"):
        fit(Shallow(), [UpdateNormalization()], 1)


@pytest.mark.parametrize("first", [True, False])
def test_the_pull_follows_the_factors_of_layer_rates(first: bool) -> None:
    """With a gradient of 0, each step removes rate * factor * strength of the distance."""

    class Still(Example):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return 0.0 * super().training_step(batch, 0)

        def on_train_start(self) -> None:
            with torch.no_grad():
                for parameter in self.parameters():
                    parameter.add_(1.0)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)

    torch.manual_seed(0)
    net = Still()
    start = {name: p.detach().clone() for name, p in net.named_parameters()}
    # The module moves its weights after the callbacks have seen them.
    callbacks = [LayerwiseLearningRates(hidden_factor=0.5), PullToInit(strength=2.0)]
    fit(net, callbacks if first else callbacks[::-1], 1)
    moved = {name: p.detach() - start[name] for name, p in net.named_parameters()}
    torch.testing.assert_close(moved["first.weight"], torch.full_like(moved["first.weight"], 0.8))
    torch.testing.assert_close(moved["shared.weight"], torch.full_like(moved["shared.weight"], 0.9))


@pytest.mark.parametrize(("parameters", "dimensions"), [("matrices", {2}), ("vectors", {1}), ("all", {1, 2})])
def test_the_pull_may_be_for_some_parameters_alone(parameters: Any, dimensions: set[int]) -> None:
    callback = PullToInit(parameters=parameters)
    fit(make_net(), [callback], 1)
    assert {value.ndim for value in callback.rule.kept.values()} == dimensions


def test_the_start_is_that_after_initializations() -> None:
    class Initialize(Callback):
        def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            with torch.no_grad():
                for parameter in pl_module.parameters():
                    parameter.fill_(0.25)

    callback = PullToInit()
    fit(make_net(), [callback, Initialize()], 1)
    assert isinstance(callback.rule, PullRule)
    assert all((value == 0.25).all() for value in callback.rule.kept.values())


def test_weights_are_perturbed_at_once_when_the_objective_shifts() -> None:
    class Shifts(Net):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if batch_idx == 2:
                self.before = weights(self)
                announce_objective_shift(self.trainer, self, "labels")
                self.after = weights(self)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0)

    torch.manual_seed(0)
    net = Shifts()
    start, sparse = weights(net), StaticSparsity(sparsity=0.5)
    shrink = ShrinkAndPerturb(shrink=0.5, every_n_steps=0, on_shift=True)
    fit(net, [shrink, sparse], 4)
    assert (net.before[start != 0] == 0).any()
    assert not torch.equal(net.before, net.after)
    assert torch.equal(net.after, weights(net))
    named = rules(net)
    assert all(not named[name][mask == 0].any() for name, mask in sparse.rule.kept.items())


def test_a_shift_before_training_changes_nothing() -> None:
    net, shrink = make_net(), ShrinkAndPerturb(shrink=0.5, every_n_steps=0, on_shift=True)
    before = weights(net)
    announce_objective_shift(quiet_trainer(callbacks=[shrink]), net, "rollout")
    assert torch.equal(before, weights(net))


def test_a_perturbation_that_never_comes_is_refused() -> None:
    with pytest.raises(UserError, match="no weight would ever change"):
        ShrinkAndPerturb(every_n_steps=0)


def test_the_network_is_sparse_before_the_first_batch_and_its_copies_are_told() -> None:
    class Told(Net):
        told: Tensor | None = None
        first: Any

        def on_weights_initialized(self) -> None:
            self.told = weights(self)

        def on_fit_start(self) -> None:
            self.seen = weights(self)

    torch.manual_seed(0)
    net, callback = Told(), StaticSparsity(sparsity=0.5)
    rows = fit(net, [callback], 1)
    assert net.told is not None
    assert torch.equal(net.told, net.seen)
    matrices = sum(p.numel() for p in net.parameters() if p.ndim == 2 and p.requires_grad)
    assert (net.seen == 0).sum() >= matrices // 2
    assert rows[0]["intervention/static_sparsity/zeros"] == pytest.approx(0.5, abs=0.01)


def test_a_clipped_update_is_the_optimizers_alone() -> None:
    """A pull that follows in the same step does not count as part of the update."""
    both, alone = UpdateClipping(threshold=0.5), UpdateClipping(threshold=0.5)
    first = fit(make_net(), [both, PullToInit(strength=50.0)], 1, log_every_n_steps=1)
    second = fit(make_net(), [alone], 1, log_every_n_steps=1)
    tag = "intervention/update_clipping/scale"
    assert first[1][tag] == second[1][tag] < 1


@pytest.mark.parametrize("parameters", ["matrix", ""])
def test_choices_are_checked(parameters: Any) -> None:
    with pytest.raises(UserError, match="expected one of 'all', 'matrices', 'vectors'"):
        PullToInit(parameters=parameters)


def test_update_normalization_has_the_defaults_of_its_rule() -> None:
    mine, rule = UpdateNormalization().make_rule(), NormalizationRule()

    assert vars(mine) == vars(rule)


class SigmasThatShrink(Net):
    """A net with a noisy layer, whose sigmas have a constant gradient of 1."""

    def __init__(self) -> None:
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.01))
        self.shared = self.again = NoisyLinear(8, 8)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.shared.eval()  # without noise
        return super().training_step(batch, batch_idx) + sum(sigma.sum() for sigma in sigmas_of(self.shared))


@each_one
def test_the_sigmas_of_noisy_layers_are_left_to_the_optimizer(key: str) -> None:
    module = SigmasThatShrink()
    before = [sigma.detach().clone() for sigma in sigmas_of(module.shared)]
    fit(module, [MAKERS[key]()], 8)
    for sigma, at_first in zip(sigmas_of(module.shared), before, strict=True):
        torch.testing.assert_close(sigma.detach(), at_first - 8 * 0.01)
