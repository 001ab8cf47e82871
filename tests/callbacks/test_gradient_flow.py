from __future__ import annotations

import math
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_gfs.callbacks import GradientFlowMonitor
from lit_gfs.errors import UserError
from support.accelerator import ACCELERATOR
from support.event_files import image_steps, read_scalars
from support.fakes import Records
from support.training import quiet_trainer, regression_batches

LEARNING_RATE = 0.25


class Regression(LightningModule):
    """Two linear layers and one that never gets a gradient; notes raw gradients and parameter changes."""

    def __init__(self, make_optimizer=None):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.unused = nn.Linear(2, 2)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.last = nn.Linear(4, 1)
        self.make_optimizer = make_optimizer or (lambda p: torch.optim.SGD(p, lr=LEARNING_RATE))
        self.raw: list[dict[str, torch.Tensor]] = []
        self.applied: list[dict[str, torch.Tensor]] = []
        self._before: dict[str, torch.Tensor] = {}

    def trained(self):
        return {"first": self.first, "last": self.last}

    def training_step(self, batch, batch_idx):
        x, y = batch
        return (self.last(self.frozen(self.first(x)).tanh()) - y).square().mean()

    def on_train_batch_start(self, batch, batch_idx):
        self._before = {
            name: nn.utils.parameters_to_vector(layer.parameters()).detach().clone()
            for name, layer in self.trained().items()
        }

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.applied.append(
            {
                name: (self._before[name] - nn.utils.parameters_to_vector(layer.parameters()).detach())
                / LEARNING_RATE
                for name, layer in self.trained().items()
            }
        )

    def configure_optimizers(self):
        return self.make_optimizer(self.parameters())


class NoteRaw(Callback):
    """Reads raw gradients by itself, then, as an intervention would, scales them."""

    def __init__(self, scale=1.0):
        self.scale = scale

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pl_module.raw.append(
            {
                name: torch.cat([p.grad.flatten().clone() for p in layer.parameters()])
                for name, layer in pl_module.trained().items()
            }
        )
        for parameter in pl_module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(self.scale)


def fit(module, monitor, steps, *, callbacks=(), logger=None, ckpt_path=None, **options):
    torch.manual_seed(0)
    records = Records()
    loggers = [records] if logger is None else [records, logger]
    trainer = quiet_trainer(
        max_epochs=1, max_steps=steps, logger=loggers, callbacks=[monitor, *callbacks], **options
    )
    batches = regression_batches(steps * options.get("accumulate_grad_batches", 1))
    trainer.fit(module, batches, ckpt_path=ckpt_path)
    return records.rows


def norm(vector):
    return float(np.linalg.norm(vector.double().cpu().numpy()))


def cosine(a, b):
    a, b = a.double().numpy(), b.double().numpy()
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def check_rows(rows, module, every):
    """Compare every logged scalar with the raw gradients and parameter changes that were noted."""
    assert sorted(rows) == [step for step in range(1, len(module.raw) + 1) if (step - 1) % every == 0]
    for step, row in rows.items():
        raw, applied = module.raw[step - 1], module.applied[step - 1]
        assert row["gradient_flow/norm/unused"] == 0
        assert row["gradient_flow/nonfinite_layers"] == 0
        assert "gradient_flow/norm/frozen" not in row
        assert "gradient_flow/cosine/unused" not in row
        for name in ("first", "last"):
            assert row[f"gradient_flow/norm/{name}"] == pytest.approx(norm(raw[name]), rel=1e-4)
            expected = pytest.approx(norm(applied[name]), rel=1e-3)
            assert row[f"gradient_flow/norm_applied/{name}"] == expected
            if step > 1:
                expected = pytest.approx(cosine(raw[name], module.raw[step - 2][name]), abs=1e-4)
                assert row[f"gradient_flow/cosine/{name}"] == expected
            else:
                assert f"gradient_flow/cosine/{name}" not in row
        norms = [norm(raw[name]) for name in ("first", "last")]
        assert row["gradient_flow/max_min_ratio"] == pytest.approx(max(norms) / min(norms), rel=1e-4)
        shortened = [norm(applied[name]) < 0.999 * norm(raw[name]) for name in ("first", "last")]
        assert row["gradient_flow/shortened_layers"] == pytest.approx(sum(shortened) / 3)
        assert "gradient_flow/scale/unused" not in row
        for name in ("first", "last"):
            expected = pytest.approx(norm(applied[name]) / norm(raw[name]), rel=1e-3)
            assert row[f"gradient_flow/scale/{name}"] == expected
        assert row["gradient_flow/global_norm"] == pytest.approx(math.hypot(*norms), rel=1e-4)
        norms = [norm(applied[name]) for name in ("first", "last")]
        assert row["gradient_flow/global_norm_applied"] == pytest.approx(math.hypot(*norms), rel=1e-3)


@pytest.mark.parametrize("every", [1, 3])
def test_raw_and_applied_with_an_intervention_and_the_trainers_clipping(every):
    module = Regression()
    clip = 0.5
    rows = fit(
        module,
        GradientFlowMonitor(every_n_steps=every, per_layer=True),
        8,
        # The sign turns, so that a kept gradient that were not a copy would show in the cosine.
        callbacks=[NoteRaw(scale=-0.5)],
        gradient_clip_val=clip,
    )
    check_rows(rows, module, every)
    # The first steps are steep: the intervention alone would leave more than the Trainer's clipping does.
    assert rows[1]["gradient_flow/global_norm"] > 2 * clip
    assert rows[1]["gradient_flow/global_norm_applied"] == pytest.approx(clip, rel=1e-3)


def test_accumulated_gradients_are_read_once_per_real_step():
    module = Regression()
    rows = fit(
        module,
        GradientFlowMonitor(every_n_steps=1, per_layer=True),
        4,
        callbacks=[NoteRaw()],
        accumulate_grad_batches=3,
    )
    module.applied = module.applied[2::3]  # only every third batch steps
    check_rows(rows, module, every=1)


@pytest.mark.parametrize("fused", [False, True])
def test_loss_scaled_16_bit_gradients_are_reported_without_the_scale(fused):
    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=1024.0)
    module = Regression(lambda p: torch.optim.SGD(p, lr=LEARNING_RATE, fused=fused))
    rows = fit(
        module,
        GradientFlowMonitor(every_n_steps=2, per_layer=True),
        5,
        callbacks=[NoteRaw()],
        plugins=MixedPrecision("16-mixed", ACCELERATOR, scaler),
    )
    check_rows(rows, module, every=2)
    for raw, applied in zip(module.raw, module.applied, strict=True):
        assert norm(raw["first"]) == pytest.approx(norm(applied["first"]), rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_an_overflow_is_reported_and_the_scale_still_taken_off(fused):
    class Overflow(Callback):
        def on_after_backward(self, trainer, pl_module):
            pl_module.last.bias.grad.fill_(math.inf)

    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=1024.0)
    module = Regression(lambda p: torch.optim.SGD(p, lr=LEARNING_RATE, fused=fused))
    rows = fit(
        module,
        GradientFlowMonitor(every_n_steps=1, per_layer=True),
        1,
        callbacks=[Overflow(), NoteRaw()],
        plugins=MixedPrecision("16-mixed", ACCELERATOR, scaler),
    )
    row = next(iter(rows.values()))
    expected = pytest.approx(norm(module.raw[0]["first"]), rel=1e-4)
    assert row["gradient_flow/norm/first"] == expected
    assert row["gradient_flow/norm_applied/first"] == expected
    assert row["gradient_flow/norm/last"] == math.inf
    assert row["gradient_flow/nonfinite_layers"] == 1
    assert row["gradient_flow/max_min_ratio"] == 1


def test_bfloat16_autocast():
    module = Regression()
    rows = fit(
        module,
        GradientFlowMonitor(every_n_steps=2, per_layer=True),
        4,
        callbacks=[NoteRaw()],
        precision="bf16-mixed",
    )
    check_rows(rows, module, every=2)


class Wrapper(torch.optim.Optimizer):
    """Delegates to another optimizer without ever calling its own step hooks."""

    def __init__(self, inner):
        self.inner, self.param_groups, self.state, self.defaults = inner, inner.param_groups, inner.state, {}
        self._optimizer_step_post_hooks = OrderedDict()

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)


def test_an_optimizer_that_never_calls_its_hooks():
    module = Regression(lambda p: Wrapper(torch.optim.SGD(p, lr=LEARNING_RATE)))
    rows = fit(
        module, GradientFlowMonitor(every_n_steps=2, per_layer=True), 5, callbacks=[NoteRaw(scale=0.5)]
    )
    check_rows(rows, module, every=2)


class Adversaries(LightningModule):
    """Two optimizers: the second steps every other batch and spills gradients into the first's layer."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.actor, self.critic = nn.Linear(3, 1), nn.Linear(3, 1)
        self.actor_norms: list[float] = []
        self.critic_norms: list[float] = []
        self.critic_gradients: list[torch.Tensor] = []

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (self.actor, self.critic)]

    def training_step(self, batch, batch_idx):
        x, _ = batch
        actor, critic = self.optimizers()
        self.manual_backward(self.actor(x).square().mean())
        self.actor_norms.append(norm(torch.cat([p.grad.flatten() for p in self.actor.parameters()])))
        actor.step()
        actor.zero_grad()
        if batch_idx % 2:
            self.manual_backward((self.critic(x) - 10 * self.actor(x)).square().mean())
            self.critic_gradients.append(
                torch.cat([p.grad.flatten().clone() for p in self.critic.parameters()])
            )
            critic.step()
            critic.zero_grad(), actor.zero_grad()


def test_each_of_several_optimizers_is_measured_on_its_own_steps():
    module = Adversaries()
    # With two optimizers global_step counts the steps of both: 12 actor steps and 6 critic steps.
    rows = fit(module, GradientFlowMonitor(every_n_steps=3, per_layer=True), 18)
    actor = [row["gradient_flow/norm/actor"] for row in rows.values() if "gradient_flow/norm/actor" in row]
    critic = [row for row in rows.values() if "gradient_flow/norm/critic" in row]
    assert actor == pytest.approx(module.actor_norms[::3])
    assert [row["gradient_flow/norm/critic"] for row in critic] == pytest.approx(
        [norm(gradient) for gradient in module.critic_gradients[::3]]
    )
    assert critic[1]["gradient_flow/cosine/critic"] == pytest.approx(
        cosine(module.critic_gradients[3], module.critic_gradients[2]), abs=1e-5
    )
    for row in rows.values():
        for name in ("actor", "critic"):
            applied = row.get(f"gradient_flow/norm_applied/{name}")
            assert applied == pytest.approx(row.get(f"gradient_flow/norm/{name}"))


def test_an_optimizer_that_steps_twice_in_a_batch():
    class Twice(Regression):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            for scale in (1.0, 100.0):
                optimizer.zero_grad()
                self.manual_backward(scale * super().training_step(batch, batch_idx))
                optimizer.step()

    rows = fit(
        Twice(lambda p: torch.optim.SGD(p, lr=1e-6)), GradientFlowMonitor(every_n_steps=2, per_layer=True), 4
    )
    assert sorted(rows) == [2, 4]
    for row in rows.values():
        for name in ("first", "last"):
            assert row[f"gradient_flow/norm/{name}"] == row[f"gradient_flow/norm_applied/{name}"]
            assert row[f"gradient_flow/norm/{name}"] > 0


def test_shared_layers_and_parameters_of_the_module_itself():
    class Shared(LightningModule):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(3))
            self.layer = nn.Linear(3, 3)
            self.again = self.layer

        def training_step(self, batch, batch_idx):
            return self.again(self.layer(batch[0] * self.gain)).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    row = fit(Shared(), GradientFlowMonitor(per_layer=True), 1)[1]
    names = {tag.removeprefix("gradient_flow/norm/") for tag in row if tag.startswith("gradient_flow/norm/")}
    assert names == {"Shared", "layer"}


def test_named_layers_and_env_steps_of_the_module_are_used():
    class Agent(Regression):
        @property
        def env_steps(self):
            return 64 * self.trainer.global_step

        def named_layers(self):
            return {"output": self.last}

    rows = fit(Agent(), GradientFlowMonitor(every_n_steps=2, per_layer=True), 3)
    assert sorted(rows) == [64, 192]
    assert {tag.split("/")[-1] for tag in rows[64] if "/norm/" in tag} == {"output"}


@pytest.mark.parametrize("half", [6, 8])
def test_resume_continues_records_and_heat_map_exactly(tmp_path, half):
    # Always the same batch, so it does not matter that the loader starts anew on resume.
    x = torch.randn(1, 8, 3, generator=torch.Generator().manual_seed(1)).expand(18, 8, 3)
    data = DataLoader(TensorDataset(x, x.sum(2, keepdim=True)), batch_size=None)

    def run(name, steps, ckpt_path=None):
        torch.manual_seed(0)
        records = Records()
        monitor = GradientFlowMonitor(every_n_steps=3, per_layer=True, max_columns=4)
        keep = ModelCheckpoint(tmp_path / name, filename="{step}", every_n_train_steps=half)
        trainer = quiet_trainer(max_steps=steps, logger=records, callbacks=[monitor, keep])
        trainer.fit(Regression(), data, ckpt_path=ckpt_path)
        return records.rows, monitor.state_dict()

    whole, whole_state = run("whole", 18)
    run("half", half)
    path = tmp_path / "half" / f"step={half}.ckpt"
    saved = torch.load(path, weights_only=True)["callbacks"]["GradientFlowMonitor"]
    # The gradient of step 6 is kept for the cosine of step 7, so that checkpoint has to hold it.
    assert (saved["probes"][0]["previous"] is not None) == (half == 6)
    resumed, resumed_state = run("resumed", 18, ckpt_path=path)
    assert sorted(resumed) == [step for step in (7, 10, 13, 16) if step > half]
    assert all("gradient_flow/cosine/first" in row for row in resumed.values())
    assert resumed == {step: row for step, row in whole.items() if step > half}
    assert torch.equal(resumed_state["history"].pop("cells"), whole_state["history"].pop("cells"))
    assert resumed_state["history"] == whole_state["history"]
    assert whole_state["history"]["per_column"] == 2  # the history was full once on the way


def test_a_second_fit_of_the_same_trainer_goes_on():
    monitor, records = GradientFlowMonitor(every_n_steps=3, per_layer=True), Records()
    trainer = quiet_trainer(max_epochs=1, logger=records, callbacks=[monitor])
    module = Regression()
    trainer.fit(module, regression_batches(5))
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, regression_batches(5))
    assert sorted(records.rows) == [1, 4, 7, 10]
    assert monitor.state_dict()["history"]["steps"] == [1, 4, 7, 10]


def test_heat_maps_reach_tensorboard_on_schedule_and_at_the_end(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(Regression(), GradientFlowMonitor(every_n_steps=1, per_layer=True, figure_every=4), 10, logger=logger)
    assert image_steps(tmp_path, "gradient_flow/heat_map") == [4, 8, 10]
    assert [step for step, _ in read_scalars(tmp_path)["gradient_flow/norm/first"]] == list(range(1, 11))


@pytest.mark.parametrize(("figure_every", "steps"), [(0, [5]), (5, [5])])
def test_the_last_heat_map_is_drawn_once(tmp_path, figure_every, steps):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(Regression(), GradientFlowMonitor(every_n_steps=1, figure_every=figure_every), 5, logger=logger)
    assert image_steps(tmp_path, "gradient_flow/heat_map") == steps


@pytest.mark.parametrize(("steps", "drawn"), [(14, [10, 14]), (10, [10])])
def test_the_first_heat_map_comes_after_ten_measurements(tmp_path, steps, drawn):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(Regression(), GradientFlowMonitor(every_n_steps=1), steps, logger=logger)
    assert image_steps(tmp_path, "gradient_flow/heat_map") == drawn


def test_a_crash_leaves_a_heat_map(tmp_path):
    class Crashing(Regression):
        def training_step(self, batch, batch_idx):
            if batch_idx == 3:
                raise RuntimeError("diverged")
            return super().training_step(batch, batch_idx)

    logger = TensorBoardLogger(tmp_path, name="", version="")
    with pytest.raises(RuntimeError, match="diverged"):
        fit(Crashing(), GradientFlowMonitor(every_n_steps=1, per_layer=True), 5, logger=logger)
    logger.experiment.flush()
    assert image_steps(tmp_path, "gradient_flow/heat_map") == [3]


def test_other_ranks_measure_nothing():
    monitor = GradientFlowMonitor(every_n_steps=1, per_layer=True)
    module = Regression()
    optimizer = module.configure_optimizers()
    trainer = SimpleNamespace(
        optimizers=[optimizer],
        global_step=0,
        loggers=[],
        callbacks=[],
        is_global_zero=False,
        precision_plugin=Precision(),
    )
    monitor.on_fit_start(trainer, module)
    monitor.on_before_optimizer_step(trainer, module, optimizer)
    monitor.on_train_batch_end(trainer, module, None, None, 0)
    assert monitor.state_dict()["history"]["measurements"] == 0
    trainer.is_global_zero = True
    monitor.on_before_optimizer_step(trainer, module, optimizer)
    monitor.on_train_batch_end(trainer, module, None, None, 0)
    assert monitor.state_dict()["history"]["measurements"] == 1


@pytest.mark.parametrize(
    ("argument", "value"),
    [("every_n_steps", 0), ("figure_every", -1), ("max_columns", 0), ("max_columns", 7)],
)
def test_arguments_are_checked(argument, value):
    with pytest.raises(MisconfigurationException, match=f"{argument} must be .* got {value}"):
        GradientFlowMonitor(**{argument: value})


def test_a_module_without_layers_is_named():
    class Frozen(Regression):
        def __init__(self):
            super().__init__()
            self.requires_grad_(False)

    with pytest.raises(UserError, match="Frozen has no trainable layer"):
        fit(Frozen(), GradientFlowMonitor(per_layer=True), 1)
