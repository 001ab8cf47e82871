"""ReDo and ReGraMa in fits: what they reset, and what optimizers, averages and checkpoints make of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn

from lit_gfs.agents import DQN
from lit_gfs.callbacks import EMAWeights, GradientNormalization, NaNGuard, PathSensitiveInit, ReDo, ReGraMa
from lit_gfs.callbacks.unit_resets import UnitResets
from lit_gfs.errors import UserError
from lit_gfs.metrics.representation import dormancy_scores
from lit_gfs.metrics.unit_gradients import gradient_scores
from lit_gfs.networks import ResidualTrunk
from lit_gfs.optim import Kron, MuonWithAdam
from lit_gfs.optim.moments import kept_memory
from support.accelerator import ACCELERATOR
from support.intervened import fit
from support.probed import Chain, sgd
from support.training import MakeTrainer, replay_data, weights

Make = Callable[..., UnitResets]
both = pytest.mark.parametrize("make", [ReDo, ReGraMa])


class Watch(Callback):
    """Keeps the state of the module and of its optimizer around the end of each batch."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.moments: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Any, pl_module: LightningModule, *batch: Any) -> None:
        self.after.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        state = trainer.optimizers[0].state
        names = {parameter: name for name, parameter in pl_module.named_parameters()}
        self.moments.append(
            {names[p]: its["exp_avg"].clone() for p, its in state.items() if "exp_avg" in its}
        )


@both
def test_dead_units_are_reset_after_every_nth_step_and_no_other(make: Make) -> None:
    module, callback, watch = Chain(sgd(0.0)).kill(2, 5), make(every_n_steps=3), Watch()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    inputs = module.probe_batch()
    outputs = module(inputs)

    rows = fit(module, [callback, watch], 5)

    for step in (0, 1):
        assert all(torch.equal(watch.after[step][name], before[name]) for name in before)
    after = watch.after[2]
    changed = {name: after[name] != before[name] for name in before}
    dead = torch.tensor([index in (2, 5) for index in range(8)])
    assert torch.equal(changed["first.weight"], dead[:, None].expand(8, 3))
    assert torch.equal(changed["first.bias"], dead)
    assert (after["second.weight"][:, dead] == 0).all()
    assert not any(changed[name].any() for name in ("second.bias", "norm.weight", "head.weight", "head.bias"))
    assert not changed["second.weight"][:, ~dead].any()
    assert torch.equal(module(inputs), outputs)
    assert all(torch.equal(watch.after[4][name], after[name]) for name in after)
    name = callback.name
    assert rows[5][f"intervention/{name}/reset_units"] == 2
    assert rows[5][f"intervention/{name}/reset_share"] == pytest.approx(2 / 16)


@both
def test_the_optimizer_forgets_exactly_what_was_reset(make: Make) -> None:
    watch = Watch()
    module = Chain().kill(2)
    fit(module, [make(every_n_steps=4), watch], 5)
    after, state = watch.moments[3], watch.after[3]
    is_reset = (state["second.weight"] == 0).all(0)  # unit 2, and what had no gradient in step 4
    assert is_reset[2]
    assert int(is_reset.sum()) < 4
    assert torch.equal((after["first.weight"] == 0).all(1), is_reset)
    assert torch.equal(after["first.bias"] == 0, is_reset)
    assert torch.equal((after["second.weight"] == 0).all(0), is_reset)
    # The unit that was dead learns from then on: its outgoing weights first.
    assert (watch.moments[4]["second.weight"][:, 2] != 0).any()


def test_redo_scores_are_those_of_the_probe_batch() -> None:
    module = Chain(sgd(0.0))
    hidden = module.activations[0](module.first(module.probe_batch()))
    normed = module.activations[1](module.norm(module.second(hidden)))
    scores = {"first": dormancy_scores(hidden), "second": dormancy_scores(normed)}
    tau = float(torch.cat(list(scores.values())).sort().values[5])  # six units of both layers are below it

    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(module, [ReDo(every_n_steps=1, tau=tau)], 1)

    for name, its in scores.items():
        rows = (module.state_dict()[f"{name}.weight"] != before[f"{name}.weight"]).all(1)
        assert torch.equal(rows, its <= tau)


def test_grama_scores_are_those_of_the_raw_gradients_of_the_step() -> None:
    module = Chain(sgd(0.0))
    seen: dict[str, Tensor] = {}

    class Gradients(Callback):
        def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            for name in ("first", "second"):
                seen[name] = gradient_scores(getattr(pl_module, name).weight.grad)

    tau = 0.9
    before = {name: value.clone() for name, value in module.state_dict().items()}
    # What changes gradients afterwards has no say.
    callbacks = [Gradients(), ReGraMa(every_n_steps=1, tau=tau), GradientNormalization(1.0, "spectral")]
    fit(module, callbacks, 1)

    for name, its in seen.items():
        assert 0 < int((its <= tau).sum()) < 8
        rows = (module.state_dict()[f"{name}.weight"] != before[f"{name}.weight"]).all(1)
        assert torch.equal(rows, its <= tau)


def test_grama_resets_nothing_after_a_step_without_gradients_or_with_one_that_is_not_finite() -> None:
    class Still(Chain):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return super().training_step(batch, batch_idx) * (0 if batch_idx < 2 else float("nan"))

    module = Still(sgd(0.1))
    before = weights(module)
    fit(module, [NaNGuard(), ReGraMa(every_n_steps=1)], 4)
    assert torch.equal(weights(module), before)


def test_a_layer_that_gets_no_gradient_behind_a_dead_one_learns_again() -> None:
    """Both layers are dead as a whole. Weights between reset units are drawn, so the chain is not cut."""
    module = Chain(lambda p: torch.optim.Adam(p, lr=0.01)).kill(*range(8))
    module.activations[1] = nn.ReLU()
    with torch.no_grad():
        module.norm.bias.fill_(-100.0)
    fit(module, [ReDo(every_n_steps=2)], 2)
    loss = module.training_step([module.probe_batch(), torch.ones(32, 1)], 0)
    loss.backward()
    assert module.head.weight.grad is not None
    assert module.head.weight.grad.any()
    fit(module, [ReDo(every_n_steps=1000)], 5)
    module.zero_grad()
    module.training_step([module.probe_batch(), torch.ones(32, 1)], 0).backward()
    assert module.first.weight.grad is not None
    assert module.first.weight.grad.any()


@both
def test_a_resumed_run_repeats_the_uninterrupted_one(make: Make, tmp_path: Path) -> None:
    options = {"every_n_steps": 4, "tau": 0.6}
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    whole, resumed, plain = Chain(), Chain(), Chain()
    rows = fit(whole, [make(**options), keep], 30, log_every_n_steps=7)
    later = fit(resumed, [make(**options)], 30, log_every_n_steps=7, ckpt_path=tmp_path / "step=10.ckpt")
    fit(plain, [], 30)

    assert torch.equal(weights(whole), weights(resumed))
    assert not torch.equal(weights(whole), weights(plain))
    assert later == {step: row for step, row in rows.items() if step > 10}


@both
def test_accumulated_gradients_are_one_step(make: Make) -> None:
    module, watch = Chain(sgd(0.0)).kill(1), Watch()
    fit(module, [make(every_n_steps=2), watch], 2, accumulate_grad_batches=3)
    shut = [bool((state["second.weight"][:, 1] == 0).all()) for state in watch.after]
    assert shut == [False] * 5 + [True]


@both
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed", "bf16-true"])
def test_mixed_precision(make: Make, precision: Any) -> None:
    module = Chain(sgd(1e-3)).kill(1, 4)
    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=1024.0)
    options: dict[str, Any] = (
        {"plugins": MixedPrecision(precision, ACCELERATOR, scaler)}
        if precision == "16-mixed"
        else {"precision": precision}
    )
    if precision == "bf16-true":
        module.probe_batch = lambda: torch.randn(32, 3, device=module.device)  # type: ignore[method-assign]
    fit(module, [make(every_n_steps=2)], 2, **options)
    assert (module.second.weight[:, [1, 4]] == 0).all()
    assert (module.first.bias[[1, 4]].abs() < 1).all()


@both
def test_other_draws_of_the_run_stay_the_same(make: Make) -> None:
    fit(Chain(), [], 6)
    expected = torch.rand(3)
    fit(Chain(), [make(every_n_steps=2, tau=0.5)], 6)
    assert torch.equal(torch.rand(3), expected)


@both
def test_the_average_of_the_weights_takes_the_reset_over(make: Make) -> None:
    module, average = Chain(sgd(0.0)).kill(3), EMAWeights(decay=0.9)
    fit(module, [average, make(every_n_steps=2)], 3)
    # When fitting has ended, the module has the average.
    assert (module.second.weight[:, 3] == 0).all()
    assert module.first.bias[3].abs() < 1


@both
@pytest.mark.parametrize("name", ["Kron", "MuonWithAdam", "SGD"])
def test_other_optimizers(make: Make, name: str, recwarn: pytest.WarningsRecorder) -> None:
    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        if name == "Kron":
            return Kron(parameters, lr=1e-3, seed=0)
        return MuonWithAdam(parameters, lr=1e-3) if name == "MuonWithAdam" else sgd(1e-3)(parameters)

    module = Chain(optimizer).kill(3)
    fit(module, [make(every_n_steps=2)], 2)

    trainer = module.trainer
    (built,) = trainer.optimizers
    momentum = built.state[module.second.weight]["momentum_buffer"]
    assert (momentum[:, 3] == 0).all()
    assert momentum[:, 0].any()
    told = [str(each.message) for each in recwarn if "keeps" in str(each.message)]
    assert told == (
        [f"{make.__name__} resets weights, but Kron keeps {kept_memory(built)}"] if name == "Kron" else []
    )


@both
def test_path_sensitive_weights_are_drawn_by_its_callback(make: Make) -> None:
    module = Chain(sgd(0.0))
    module.norm = nn.Identity()

    class Kill(Callback):
        def on_train_start(self, trainer: Any, pl_module: Chain) -> None:
            pl_module.kill(2, 6)

    fit(module, [PathSensitiveInit(mirrored=True), Kill(), make(every_n_steps=1)], 1)
    # Units of a mirrored layer come in pairs.
    assert torch.equal(module.first.weight[2], -module.first.weight[6])
    assert module.first.bias[[2, 6]].tolist() == [0, 0]


def test_a_residual_trunk_resets_the_first_layers_of_branches(
    counting_envs: Any, make_trainer: MakeTrainer
) -> None:
    source = replay_data(total_steps=60, eval_every=60)
    agent = DQN(source.env_spec, trunk=lambda features: ResidualTrunk(features, 6, 8, "layer"))
    callback = ReDo(every_n_steps=2, tau=0.3)
    with pytest.warns(
        UserWarning, match=r"ReDo resets no units of trunk\.input, .*combined with those of another"
    ):
        make_trainer(callbacks=[callback]).fit(agent, source)
    assert list(callback.units.layers) == [
        "trunk.branch_01.first",
        "trunk.branch_02.first",
        "trunk.output_01",
    ]


def test_each_optimizer_resets_its_own_units() -> None:
    class Two(Chain):
        def __init__(self) -> None:
            super().__init__()
            self.other = Chain()
            self.automatic_optimization = False

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.other(x)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:  # type: ignore[override]
            optimizer = self.optimizers()[batch_idx % 2]  # type: ignore[index]
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

        def configure_optimizers(self) -> Any:
            others = list(self.other.parameters())
            ids = {id(parameter) for parameter in others}
            mine = [parameter for parameter in self.parameters() if id(parameter) not in ids]
            return [torch.optim.SGD(each, lr=0.0) for each in (mine, others)]

    for make in (ReDo, ReGraMa):
        module = Two().kill(1)
        module.other.kill(2)
        fit(module, [make(every_n_steps=2)], -1, max_epochs=1, limit_train_batches=3)  # steps 2 and 1
        assert (module.second.weight[:, 1] == 0).all()
        assert module.other.second.weight[:, 2].all()


def test_units_whose_weights_belong_to_two_optimizers_are_left_out() -> None:
    class Two(Chain):
        def configure_optimizers(self) -> Any:
            heads = list(self.head.parameters())
            rest = [*self.first.parameters(), *self.second.parameters(), *self.norm.parameters()]
            return [torch.optim.SGD(each, lr=0.0) for each in (rest, heads)]

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            for optimizer in self.optimizers():  # type: ignore[union-attr]
                optimizer.step()

    module = Two()
    module.automatic_optimization = False
    callback = ReDo(every_n_steps=1)
    with pytest.warns(
        UserWarning, match="resets no units of second: no single optimizer trains all of their"
    ):
        fit(module, [callback], 2)
    assert list(callback.units.layers) == ["first"]


@both
def test_a_layer_that_is_frozen_meanwhile_is_left_alone(make: Make) -> None:
    class Freezes(Chain):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            self.second.requires_grad_(batch_idx < 1)

    module = Freezes(sgd(0.0)).kill(1)
    before = weights(module)
    fit(module, [make(every_n_steps=2)], 2)
    assert torch.equal(weights(module), before)


def test_functional_activations_are_for_grama_alone() -> None:
    class Functional(Chain):
        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.first(x))
            return self.head(nn.functional.leaky_relu(self.second(hidden), 0.3))

    with pytest.raises(
        UserError, match=r"ReDo found no units to reset in Functional: their activation is no sin"
    ):
        fit(Functional(), [ReDo()], 1)
    module = Functional(sgd(0.0)).kill(1)
    fit(module, [ReGraMa(every_n_steps=1)], 1)
    assert (module.second.weight[:, 1] == 0).all()


def test_what_a_module_lacks_is_told_in_one_line() -> None:
    class NoProbe(Chain):
        probe_batch = None  # type: ignore[assignment]

    with pytest.raises(
        UserError, match=r"probe_batch\(\), which NoProbe lacks; expected this method, .* or ReGraMa"
    ):
        fit(NoProbe(), [ReDo()], 1)
    module = Chain()
    module.example_input_array = None
    for make in (ReDo, ReGraMa):
        with pytest.raises(
            UserError, match=rf"{make.__name__} runs Chain's forward, but its example_input_array is"
        ):
            fit(module, [make()], 1)

    class Linear(Chain):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x)))

    with pytest.raises(
        UserError, match="ReGraMa found no units to reset in Linear: a layer reads its outputs be"
    ):
        fit(Linear(), [ReGraMa()], 1)


@both
def test_arguments_are_checked(make: Make) -> None:
    with pytest.raises(UserError, match="every_n_steps is 0"):
        make(every_n_steps=0)
    with pytest.raises(UserError, match=r"tau is 1\.5"):
        make(tau=1.5)


def test_before_there_are_observations_nothing_is_reset() -> None:
    class Late(Chain):
        def probe_batch(self) -> Any:
            return super().probe_batch() if self.global_step > 2 else None

    module, watch = Late(sgd(0.0)).kill(1), Watch()
    fit(module, [ReDo(every_n_steps=1), watch], 4)
    assert [bool((state["second.weight"][:, 1] == 0).all()) for state in watch.after] == [
        False,
        False,
        True,
        True,
    ]


@both
def test_a_normalization_that_cannot_be_drawn_leaves_its_layer_out(make: Make) -> None:
    class Norm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.rms_norm(x, (8,), self.weight)

    module, callback = Chain(sgd(0.0)).kill(1), make(every_n_steps=1)
    module.norm = Norm()  # type: ignore[assignment]
    with pytest.warns(
        UserWarning, match=r"resets no units of second: a normalization has no reset_parameters"
    ):
        fit(module, [callback], 1)
    assert (module.second.weight[:, 1] == 0).all()
