"""What both gradient interventions promise, on modules that know nothing of reinforcement learning."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lit_gfs.callbacks import GradientNormalization, NaNGuard, TemporalGradientClipping
from lit_gfs.errors import UserError
from lit_gfs.gradients import GradientNormalizer, PercentileClipper, SpectralNormalizer, ZScoreClipper
from lit_gfs.metrics.gradient_flow import gradients_by_layer, parameters_by_layer
from support.intervened import Net, both_interventions, fit, make_net
from support.training import quiet_trainer, regression_batches, weights


def train_by_hand(module: Net, algorithm: Any, steps: int) -> None:
    """Train with nothing but PyTorch and the algorithm."""
    optimizer = module.configure_optimizers()
    layers = {name: getattr(module, name) for name in ("first", "shared", "sometimes", "last")}
    parameters = parameters_by_layer(layers)
    for step in range(steps):
        for batch_idx, batch in enumerate(regression_batches(10)):
            if batch_idx == step % 10:
                optimizer.zero_grad()
                module.training_step(batch, batch_idx).backward()
                algorithm.apply(gradients_by_layer(parameters))
                optimizer.step()


@pytest.mark.parametrize(
    ("callback", "algorithm"),
    [
        (TemporalGradientClipping(warmup=3, z_threshold=1.0), ZScoreClipper(z_threshold=1.0, warmup=3)),
        (GradientNormalization(strength=1.0), GradientNormalizer(strength=1.0)),
        (GradientNormalization(strength=1.0, reference="spectral"), SpectralNormalizer()),
        (
            GradientNormalization(strength=1.0, reference="spectral", block=2, momentum=0.9),
            SpectralNormalizer(block=2, momentum=0.9),
        ),
        (GradientNormalization(strength=1.0, reference="spectral", lift=3.5), SpectralNormalizer(lift=3.5)),
        (
            GradientNormalization(strength=0.5, reference="spectral_norm"),
            SpectralNormalizer(0.5, "spectral_norm"),
        ),
    ],
    ids=["clipping", "normalization", "spectral", "blocks and momentum", "lift", "spectral norm"],
)
def test_the_callback_does_what_the_algorithm_does_without_lightning(callback, algorithm) -> None:
    module, by_hand, untouched = make_net(), make_net(), make_net()
    fit(module, [callback], 25)
    train_by_hand(by_hand, algorithm, 25)
    fit(untouched, [], 25)

    torch.testing.assert_close(weights(module), weights(by_hand))
    assert not torch.allclose(weights(module), weights(untouched), atol=1e-4)


@both_interventions
def test_it_writes_only_its_own_tags(make) -> None:
    rows = fit(make_net(), [make(name="mine")], 20)

    assert sorted(rows) == [5, 10, 15, 20]
    tags = {tag for row in rows.values() for tag in row}
    assert "intervention/mine/scale" in tags
    assert all(tag.startswith("intervention/mine/") for tag in tags)


def test_the_share_of_clipped_layers_is_counted() -> None:
    clipper = ZScoreClipper(z_threshold=1.0, warmup=3)
    module = make_net()
    expected: list[Tensor] = []

    class Spy(Callback):
        """Repeats what the clipping does, on copies."""

        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            names = ("first", "shared", "sometimes", "last")
            parameters = parameters_by_layer({name: getattr(pl_module, name) for name in names})
            copies = {
                name: [None if g is None else g.clone() for g in layer]
                for name, layer in gradients_by_layer(parameters).items()
            }
            expected.append(clipper.apply(copies).scales)

    rows = fit(module, [Spy(), TemporalGradientClipping(z_threshold=1.0, warmup=3, per_layer=True)], 20)

    for end in (5, 10, 15, 20):
        scales = torch.stack(expected[end - 5 : end])
        row = rows[end]
        assert row["intervention/temporal_clipping/clipped_layers"] == pytest.approx(
            float((scales < 1).float().mean())
        )
        assert row["intervention/temporal_clipping/scale"] == pytest.approx(float(scales.mean()), rel=1e-5)
        assert row["intervention/temporal_clipping/clipped/shared"] == pytest.approx(
            float((scales[:, 1] < 1).float().mean())
        )
    assert sum(row["intervention/temporal_clipping/clipped_layers"] for row in rows.values()) > 0


@both_interventions
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("guarded", [False, True])
@pytest.mark.filterwarnings("ignore:.*is skipped")
def test_what_is_not_finite_is_skipped_and_forgotten(make, value: float, guarded: bool) -> None:
    module, shorter = make_net(), make_net()
    callback, reference = make(name="it"), make(name="it")
    module.poisoned = {6: value}
    fit(module, [*([NaNGuard()] if guarded else []), callback], 7)
    fit(shorter, [reference], 6)

    for mine, theirs in zip(module.parameters(), shorter.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    for mine, theirs in zip(
        callback.state_dict()["algorithms"], reference.state_dict()["algorithms"], strict=True
    ):
        assert mine["state"]
        assert all(torch.equal(state, theirs["state"][key]) for key, state in mine["state"].items())


@both_interventions
def test_accumulated_gradients_count_as_one_step(make) -> None:
    module, other = (
        make_net(lambda p: torch.optim.SGD(p, lr=0.01)),
        make_net(lambda p: torch.optim.SGD(p, lr=0.01)),
    )

    class Steps(Callback):
        def __init__(self) -> None:
            self.count = 0

        def on_before_optimizer_step(self, *arguments: Any) -> None:
            self.count += 1

    steps = Steps()
    rows = fit(module, [make(name="it"), steps], 10, accumulate_grad_batches=3)
    fit(other, [], 10, accumulate_grad_batches=3)

    assert steps.count == 10
    assert sorted(rows) == [5, 10]
    assert not torch.equal(weights(module), weights(other))


class TwoOptimizers(LightningModule):
    """An actor and a critic, stepped in turn; the critic's gradients are far larger."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.actor = nn.Linear(3, 1)
        self.critic = nn.Linear(3, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        optimizers: Any = self.optimizers()
        for optimizer, layer, scale in zip(optimizers, (self.actor, self.critic), (1.0, 1e3), strict=True):
            optimizer.zero_grad()
            self.manual_backward(scale * (layer(x) - y).square().mean())
            optimizer.step()

    def configure_optimizers(self) -> Any:
        return [torch.optim.SGD(layer.parameters(), lr=1e-6) for layer in (self.actor, self.critic)]


def test_each_optimizer_has_an_algorithm_of_its_own() -> None:
    module = TwoOptimizers()
    callback = GradientNormalization(strength=1.0, reference="instant")

    fit(module, [callback], 8)

    # Alone in its optimizer, a layer is its own reference: nothing changes.
    states = callback.state_dict()["algorithms"]
    assert [state["layers"] for state in states] == [["actor"], ["critic"]]
    assert callback._parts[0].totals[0].cpu().allclose(torch.tensor(float(callback._parts[0].steps)))


def test_two_of_a_kind_coexist_under_different_names() -> None:
    callbacks = [
        TemporalGradientClipping(name="fine", warmup=3, z_threshold=1.0, per_layer=True),
        TemporalGradientClipping(name="coarse", scope="global", warmup=3, z_threshold=1.0),
    ]
    rows = fit(make_net(), callbacks, 10)

    assert "intervention/fine/clipped/shared" in rows[10]
    assert "intervention/coarse/scale" in rows[10]
    assert callbacks[0].state_key != callbacks[1].state_key


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(RuntimeError, match="more than one"):
        fit(make_net(), [GradientNormalization(), GradientNormalization()], 1)


@both_interventions
def test_the_trainers_clipping_is_refused(make) -> None:
    with pytest.raises(MisconfigurationException, match=r"gradient_clip_val=0.5.*expected .*null"):
        fit(make_net(), [make()], 1, gradient_clip_val=0.5)


@both_interventions
def test_a_module_without_layers_is_named(make) -> None:
    class Empty(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            return None

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)

    with pytest.raises(UserError, match="found no layer to work on: Empty has no module"):
        fit(Empty(), [make()], 1)


@both_interventions
def test_a_resumed_run_repeats_the_uninterrupted_one(make, tmp_path: Path) -> None:
    whole, resumed = make_net(), make_net()
    keep = ModelCheckpoint(tmp_path, filename="at_{step}", every_n_train_steps=10, save_top_k=-1)
    uninterrupted = make()
    fit(whole, [uninterrupted, keep], 30)

    second = make()
    fit(resumed, [second], 30, ckpt_path=tmp_path / "at_step=10.ckpt")  # at the end of an epoch

    assert torch.equal(weights(whole), weights(resumed))
    for mine, theirs in zip(
        uninterrupted.state_dict()["algorithms"], second.state_dict()["algorithms"], strict=True
    ):
        for key, state in mine["state"].items():
            assert torch.equal(state, theirs["state"][key])


@both_interventions
def test_the_same_trainer_fits_on(make) -> None:
    callback = make(name="it")
    module = make_net()
    fit_twice = quiet_trainer(max_steps=6, callbacks=[callback])
    fit_twice.fit(module, regression_batches(10))
    before = callback.state_dict()
    fit_twice.fit_loop.epoch_loop.max_steps = 12

    fit_twice.fit(module, regression_batches(10))

    assert callback.state_dict()["algorithms"][0]["layers"] == before["algorithms"][0]["layers"]
    for key, state in before["algorithms"][0]["state"].items():
        if key in ("memory", "steps"):
            assert (callback.state_dict()["algorithms"][0]["state"][key] > state).any()


def test_sparse_gradients_are_scaled() -> None:
    class Sparse(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(10, 4, sparse=True)
            self.last = nn.Linear(4, 1)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return (
                100 * self.last(self.embedding(torch.tensor([1, 2, 2], device=self.device))).square().mean()
            )

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1.0)

    torch.manual_seed(0)
    module = Sparse()
    before = weights(module.embedding)
    fit(module, [GradientNormalization(strength=1.0, reference="unit")], 1)

    assert float((weights(module.embedding) - before).norm()) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("callback", "algorithm"),
    [
        (TemporalGradientClipping, ZScoreClipper),
        (TemporalGradientClipping, PercentileClipper),
        (GradientNormalization, GradientNormalizer),
    ],
)
def test_callback_and_algorithm_have_the_same_defaults(callback, algorithm) -> None:
    ours, theirs = (inspect.signature(each).parameters for each in (callback, algorithm))
    for name in theirs.keys() & ours.keys():
        assert ours[name].default == theirs[name].default, name


def test_the_mode_may_change_on_resume(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="it", every_n_train_steps=5)
    fit(make_net(), [TemporalGradientClipping(), keep], 5)
    fit(make_net(), [TemporalGradientClipping(mode="percentile")], 8, ckpt_path=tmp_path / "it.ckpt")


@both_interventions
def test_what_is_left_at_the_end_is_written(make) -> None:
    assert sorted(fit(make_net(), [make()], 7)) == [5, 7]


def test_several_steps_in_a_batch_do_not_step_over_a_log_step() -> None:
    rows = fit(TwoOptimizers(), [GradientNormalization()], 20, log_every_n_steps=5)
    assert sorted(rows) == [6, 10, 16, 20]


def test_the_weight_reference_through_the_callback() -> None:
    module = make_net(lambda p: torch.optim.SGD(p, lr=0.1))
    before = weights(module.first)
    fit(module, [GradientNormalization(strength=1.0, reference="weight")], 1)
    assert float((weights(module.first) - before).norm()) == pytest.approx(
        0.1 * float(before.norm()), rel=1e-4
    )


@pytest.mark.parametrize("first", [True, False])
def test_a_layer_joins_whoever_thaws_it_and_when(first: bool) -> None:
    class Thaw(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 3:
                pl_module.frozen.requires_grad_(True)
                trainer.optimizers[0].add_param_group({"params": list(pl_module.frozen.parameters())})

    callback = GradientNormalization()
    fit(make_net(), [Thaw(), callback] if first else [callback, Thaw()], 6)
    layers = callback.state_dict()["algorithms"][0]["layers"]
    assert layers == ["first", "shared", "frozen", "sometimes", "last"]


def test_a_shift_reaches_every_optimizer() -> None:
    callback = TemporalGradientClipping(warmup=1)

    class Shift(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            callback.on_objective_shift(trainer, pl_module, "here")

    fit(TwoOptimizers(), [callback, Shift()], 8)
    assert [int(part.algorithm.state["watch"].max()) for part in callback._parts] == [3, 3]


def test_arguments_reach_the_algorithm() -> None:
    clipper = TemporalGradientClipping(
        mode="percentile", percentile=80, window=30, warmup=7, shift_grace=4
    ).make_algorithm()
    assert isinstance(clipper, PercentileClipper)
    assert (clipper.percentile, clipper.window, clipper.warmup, clipper.shift_grace) == (80, 30, 7, 4)
    clipper = TemporalGradientClipping(z_threshold=3, decay=0.8, warmup=7, shift_grace=4).make_algorithm()
    assert (clipper.z_threshold, clipper.decay, clipper.warmup, clipper.shift_grace) == (3, 0.8, 7, 4)
    normalizer = GradientNormalization(0.3, "unit", 0.7).make_algorithm()
    assert (normalizer.strength, normalizer.reference, normalizer.decay) == (0.3, "unit", 0.7)


def test_the_global_scope_keeps_the_direction_of_all_layers_together() -> None:
    callback = TemporalGradientClipping(scope="global")
    rows = fit(make_net(), [callback], 5)
    assert callback.state_dict()["algorithms"][0]["layers"] == ["all"]
    written = {tag.rsplit("/", 1)[-1] for tag in rows[5] if tag.startswith("intervention/")}
    assert written == {"clipped_layers", "scale"}


def test_normalizations_scalars() -> None:
    rows = fit(make_net(), [GradientNormalization(strength=1.0)], 5)
    small, mean, large = (
        rows[5][f"intervention/gradient_normalization/{t}"]
        for t in ("smallest_scale", "scale", "largest_scale")
    )
    assert small < mean < large


def test_a_loaded_state_is_what_is_saved_until_training_starts() -> None:
    callback, saved = TemporalGradientClipping(), {"algorithms": [{"layers": ["a"], "state": {}}]}
    callback.load_state_dict(saved)
    assert callback.state_dict() == saved


@pytest.mark.parametrize("arguments", [{"scope": "layers"}, {"mode": "z"}, {"name": ""}])
def test_choices_are_checked(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        TemporalGradientClipping(**arguments)


@pytest.mark.parametrize("arguments", [{"block": 48}, {"momentum": 0.8}, {"lift": 3.5}])
def test_arguments_without_effect_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match="it has no effect with reference 'unit'; leave it out, or take reference 'spectral'"
    ):
        GradientNormalization(reference="unit", **arguments)


@both_interventions
def test_an_optimizer_with_a_line_search_is_refused(make) -> None:
    with pytest.raises(UserError, match="does not suit LBFGS"):
        fit(make_net(torch.optim.LBFGS), [make()], 1)


@both_interventions
def test_a_strategy_that_shards_gradients_is_refused(make) -> None:
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy(), gradient_clip_val=None)

    with pytest.raises(MisconfigurationException, match="FSDPStrategy shards them; expected ddp"):
        make().setup(trainer, make_net(), "fit")
