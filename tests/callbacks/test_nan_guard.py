"""Steps that are not finite, on modules that know nothing of reinforcement learning, and in whole runs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn

from lit_gfs.callbacks import GradientFlowMonitor, GradientNormalization, NaNGuard, TemporalGradientClipping
from lit_gfs.errors import TrainingDiverged, UserError
from lit_gfs.main import main
from lit_gfs.optim import Kron
from support.accelerator import ACCELERATOR
from support.event_files import read_scalars
from support.fakes import CountingEnv, Records
from support.training import quiet_trainer

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, OptimizerFactory] = {
    "adam": lambda p: torch.optim.AdamW(p, lr=0.01),
    "fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.01),
    "kron": lambda p: Kron(p, lr=0.01, seed=0),
}


class Batches:
    """Batch number n is drawn from seed n; a poisoned batch comes in between, and has no number."""

    def __init__(self, poisoned: dict[int, str] | None = None, count: int = 1000) -> None:
        self.poisoned = poisoned or {}
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Any:
        number = 0
        for position in range(self.count):
            poison = self.poisoned.get(position, "")
            generator = torch.Generator().manual_seed(number)
            yield torch.randn(8, 3, generator=generator), poison
            number += not poison


class Net(LightningModule):
    """Does to its loss, or to the gradient of one layer, what a batch asks for."""

    def __init__(self, optimizer: str = "adam") -> None:
        super().__init__()
        self.first = nn.Linear(3, 8)
        self.middle = nn.Linear(8, 8)
        self.last = nn.Linear(8, 1)
        self.scale = nn.Parameter(torch.ones(1))  # trained, and no layer's
        self.optimizer = optimizer
        self.poison = ""

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.last(torch.relu(self.middle(torch.relu(self.first(x)))))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, self.poison = batch
        loss = (self(x) - 3 * x.sum(1, keepdim=True)).square().mean()
        if self.poison == "nan loss":
            return loss * math.nan
        return loss + math.inf if self.poison == "only the loss" else loss

    def on_after_backward(self) -> None:
        if self.poison in ("nan", "inf"):
            assert self.middle.weight.grad is not None
            self.middle.weight.grad[2, 1] = float(self.poison)
        if self.poison == "huge":
            assert self.middle.weight.grad is not None
            self.middle.weight.grad.fill_(3e38)  # finite, though its norm and its sum are not
        if self.poison == "no layer":
            assert self.scale.grad is not None
            self.scale.grad.fill_(math.nan)

    def named_layers(self) -> dict[str, nn.Module]:
        return {"first": self.first, "middle": self.middle, "last": self.last}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return OPTIMIZERS[self.optimizer](self.parameters())


def make_net(optimizer: str = "adam") -> Net:
    torch.manual_seed(0)
    return Net(optimizer)


def fit(
    module: LightningModule, callbacks: list[Callback], batches: Batches, steps: int, **options: Any
) -> Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    defaults = {"max_steps": steps, "callbacks": callbacks, "log_every_n_steps": 5, "logger": Records()}
    trainer = quiet_trainer(**{**defaults, **options})
    loader: Any = batches
    trainer.fit(module, loader, ckpt_path=ckpt_path)
    return trainer


def everything(module: Net, trainer: Trainer) -> list[Tensor]:
    """List parameters, and all state of the optimizer, its own counters included."""
    (optimizer,) = trainer.optimizers
    state = optimizer.state_dict()
    values: list[Any] = [*module.state_dict().values(), state]
    tensors: list[Tensor] = []
    while values:
        value = values.pop()
        if isinstance(value, dict):
            values += value.values()
        elif isinstance(value, (list, tuple)):
            values += value
        elif isinstance(value, (int, float)):
            tensors.append(torch.tensor(value))
        elif isinstance(value, Tensor):
            tensors.append(value.clone())
    return tensors


def equal(mine: list[Tensor], theirs: list[Tensor]) -> bool:
    return len(mine) == len(theirs) and all(map(torch.equal, mine, theirs))


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("poison", ["nan loss", "only the loss", "nan", "inf", "no layer"])
@pytest.mark.filterwarnings("ignore:nan_guard")
def test_it_is_as_if_the_batch_had_never_been(optimizer: str, poison: str) -> None:
    poisoned = dict.fromkeys(random.Random(f"{optimizer} {poison}").sample(range(20), 4), poison)
    module, other = make_net(optimizer), make_net(optimizer)

    guard = NaNGuard()
    mine = fit(module, [guard], Batches(poisoned), 24)
    theirs = fit(other, [], Batches(), 20)

    assert equal(everything(module, mine), everything(other, theirs))
    assert guard.skips.total == 4
    assert guard.skips.nonfinite_losses == (4 if "loss" in poison else 0)


def test_huge_gradients_are_finite() -> None:
    guard = NaNGuard()
    fit(make_net(), [guard], Batches({3: "huge"}), 6)

    assert guard.skips.total == 0


@pytest.mark.parametrize(
    ("poison", "source"),
    [
        ("nan loss", "the loss and the gradient of scale, first, middle and 1 more layers"),
        ("only the loss", "the loss"),
        ("inf", "the gradient of middle"),
        ("no layer", "the gradient of scale"),
    ],
)
def test_the_step_and_its_layers_are_named_once(
    poison: str, source: str, recwarn: pytest.WarningsRecorder
) -> None:
    rows = Records()
    fit(make_net(), [NaNGuard()], Batches(dict.fromkeys((6, 7, 9), poison)), 12, logger=rows)

    told = [str(w.message) for w in recwarn if "nan_guard" in str(w.message)]
    assert told == [f"nan_guard: the step at step 6 is skipped, not finite: {source} (1 skipped so far)"]
    assert [rows.rows[step]["nan_guard/skipped_steps"] for step in (5, 10, 12)] == [0, 3, 3]
    assert rows.rows[10]["nan_guard/nonfinite_losses"] == (3 if "loss" in poison else 0)
    assert [rows.rows[step]["nan_guard/skipped_in_a_row"] for step in (5, 10)] == [0, 1]


def test_a_lost_run_is_not_buried_in_lines(recwarn: pytest.WarningsRecorder) -> None:
    fit(make_net(), [NaNGuard()], Batches(dict.fromkeys(range(99), "nan")), 99)

    assert len([w for w in recwarn if "nan_guard" in str(w.message)]) == 2  # the first and the tenth


@pytest.mark.filterwarnings("ignore:nan_guard")
def test_after_so_many_in_a_row_the_run_ends_with_the_weights_from_before(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, filename="last", save_on_exception=True)
    module, other = make_net(), make_net()
    poisoned = {**dict.fromkeys((2, 3), "nan"), **dict.fromkeys(range(6, 50), "nan loss")}

    guard = NaNGuard(patience=3)
    with pytest.raises(TrainingDiverged) as raised:
        fit(module, [guard, last], Batches(poisoned), 50)
    fit(other, [], Batches(), 4)

    message = str(raised.value)
    assert "since step 6 no step was finite; 3 in a row were skipped" in message
    assert "the first for the loss and the gradient of scale, first" in message
    assert "Try rewards and observations that are finite" in message
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 9
    assert all(torch.equal(saved["state_dict"][key], value) for key, value in other.state_dict().items())

    # Who resumes has patience again.
    resumed = make_net()
    fit(resumed, [NaNGuard(patience=3)], Batches({0: "nan", 1: "nan"}), 14, ckpt_path=tmp_path / "last.ckpt")
    assert not torch.equal(resumed.first.weight, other.first.weight)


class Breaks(Callback):
    """Spoils a weight after a step, as a finite gradient and a huge learning rate do."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            pl_module.middle.weight.data[0, 0] = math.inf


@pytest.mark.filterwarnings("ignore:nan_guard")
def test_weights_that_are_lost_end_the_run_at_once_and_reach_no_checkpoint(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, filename="last", every_n_train_steps=5, save_on_exception=True)
    with pytest.raises(
        TrainingDiverged, match=r"at step 7 the weights of middle are not finite.*are kept"
    ) as raised:
        fit(make_net(), [NaNGuard(), Breaks(6), last], Batches(), 50)

    assert raised.value.__context__ is None  # nobody tried to save them at the end

    (kept,) = tmp_path.iterdir()
    saved = torch.load(kept, weights_only=True)
    assert saved["global_step"] == 5
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_lost_weights_are_not_saved_even_before_a_step_shows_them(tmp_path: Path) -> None:
    last = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=5, save_top_k=-1)
    with pytest.raises(TrainingDiverged, match="at step 10 the weights of middle"):
        fit(make_net(), [NaNGuard(), Breaks(10), last], Batches(), 50)

    assert [path.name for path in tmp_path.iterdir()] == ["step=5.ckpt"]


def test_weights_that_are_not_finite_to_begin_with_are_told(tmp_path: Path) -> None:
    module = make_net()
    module.last.bias.data[0] = math.nan
    with pytest.raises(
        UserError, match=r"weights of last are not finite before the first step; .*another init"
    ):
        fit(module, [NaNGuard()], Batches(), 3)

    fit(
        make_net(),
        [Breaks(3), ModelCheckpoint(tmp_path, filename="bad", every_n_train_steps=3)],
        Batches(),
        3,
    )
    with pytest.raises(
        UserError, match=r"weights of middle are not finite .*another checkpoint '.*bad.ckpt'"
    ):
        fit(make_net(), [NaNGuard()], Batches(), 6, ckpt_path=tmp_path / "bad.ckpt")


@pytest.mark.filterwarnings("ignore:nan_guard")
def test_the_account_survives_a_resume(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    fit(make_net(), [NaNGuard(), keep], Batches(dict.fromkeys((2, 8, 9), "nan"), count=10), 10)

    guard = NaNGuard(patience=4)
    batches = Batches(dict.fromkeys((0, 1), "nan loss"), count=10)
    with pytest.raises(TrainingDiverged, match=r"since step 8 .*; 4 in a row .*for the gradient of middle"):
        fit(make_net(), [guard], batches, 20, ckpt_path=tmp_path / "step=10.ckpt")
    assert (guard.skips.total, guard.skips.nonfinite_losses) == (5, 2)

    fit(make_net(), [guard], Batches(), 2)
    assert guard.skips.total == 0  # a new Trainer begins a new run


@pytest.mark.filterwarnings("ignore:nan_guard")
def test_one_bad_batch_spoils_the_step_it_is_accumulated_into() -> None:
    guard = NaNGuard()
    module, other = make_net(), make_net()
    # The third step is made of batches 6, 7 and 8.
    batches = Batches()
    spoilt = SimpleNamespace(poisoned={7: "only the loss"}, count=1000)
    spoilt_batches: Any = type("Spoilt", (), {"__len__": lambda _: 1000, "__iter__": lambda _: iterate()})()

    def iterate() -> Any:
        for position, (x, _) in enumerate(batches):
            yield x, spoilt.poisoned.get(position, "")

    before: dict[int, Tensor] = {}

    class Note(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            before[trainer.global_step] = pl_module.first.weight.detach().clone()

    fit(module, [guard, Note()], spoilt_batches, 4, accumulate_grad_batches=3)
    fit(other, [], batches, 2, accumulate_grad_batches=3)

    assert guard.skips.total == 1
    assert torch.equal(before[3], other.first.weight)
    assert not torch.equal(module.first.weight, other.first.weight)


# -- beside the other callbacks, and the Trainer's own clipping ------------------------------------------


@pytest.mark.filterwarnings("ignore:nan_guard")
@pytest.mark.parametrize(
    "make",
    [
        lambda: TemporalGradientClipping(warmup=3, z_threshold=1.0),
        lambda: GradientNormalization(strength=1.0),
    ],
    ids=["clipping", "normalization"],
)
def test_no_intervention_hears_of_a_skipped_step(make: Callable[[], Any]) -> None:
    module, other = make_net(), make_net()
    callback, reference = make(), make()
    poisoned = {5: "nan", 6: "nan loss", 11: "inf"}

    mine = fit(module, [NaNGuard(), callback], Batches(poisoned), 20)
    theirs = fit(other, [reference], Batches(), 17)

    assert equal(everything(module, mine), everything(other, theirs))
    for one, two in zip(callback._parts, reference._parts, strict=True):
        assert all(torch.equal(value, two.algorithm.state[key]) for key, value in one.algorithm.state.items())


@pytest.mark.filterwarnings("ignore:nan_guard")
@pytest.mark.parametrize("first", [True, False], ids=["before the guard", "after it"])
def test_the_monitor_tells_what_was_raw_and_what_was_applied(first: bool) -> None:
    monitor, guard, records = GradientFlowMonitor(every_n_steps=1, per_layer=True), NaNGuard(), Records()
    callbacks: list[Callback] = [monitor, guard] if first else [guard, monitor]
    fit(make_net(), callbacks, Batches({3: "nan"}), 6, logger=records)

    assert records.rows[4]["gradient_flow/norm_applied/middle"] == 0
    assert math.isnan(records.rows[4]["gradient_flow/norm/middle"]) == first
    assert records.rows[6]["gradient_flow/norm_applied/middle"] > 0
    raw, _ = monitor._history.log10_norms()
    assert raw[4:].isfinite().all()


@pytest.mark.filterwarnings("ignore:nan_guard")
@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_the_trainers_clipping(algorithm: str) -> None:
    module, other = make_net(), make_net()
    clip: Any = {"gradient_clip_val": 0.1, "gradient_clip_algorithm": algorithm}

    mine = fit(module, [NaNGuard()], Batches({2: "nan", 4: "nan loss"}), 12, **clip)
    theirs = fit(other, [], Batches(), 10, **clip)

    assert equal(everything(module, mine), everything(other, theirs))


# -- precision -------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:nan_guard")
def test_bfloat16_autocast() -> None:
    module, other = make_net(), make_net()
    mine = fit(module, [NaNGuard()], Batches({2: "nan", 4: "nan loss"}), 8, precision="bf16-mixed")
    theirs = fit(other, [], Batches(), 6, precision="bf16-mixed")

    assert equal(everything(module, mine), everything(other, theirs))


def mixed_precision(scale: float) -> dict[str, Any]:
    scaler = torch.amp.GradScaler(ACCELERATOR, init_scale=scale)
    return {"plugins": MixedPrecision("16-mixed", ACCELERATOR, scaler)}


@pytest.mark.parametrize("optimizer", ["adam", "fused"])
def test_an_overflow_of_the_loss_scale_is_not_counted(
    optimizer: str, recwarn: pytest.WarningsRecorder
) -> None:
    module, guard = make_net(optimizer), NaNGuard(patience=2)
    fit(module, [guard], Batches(dict.fromkeys((2, 3, 4), "inf")), 8, **mixed_precision(1024.0))

    assert guard.skips.total == 0
    assert module.middle.weight.isfinite().all()
    assert [w for w in recwarn if "nan_guard" in str(w.message)] == []


@pytest.mark.filterwarnings("ignore:nan_guard")
@pytest.mark.parametrize("optimizer", ["adam", "fused"])
@pytest.mark.parametrize("poison", ["nan loss", "only the loss"])
def test_a_loss_that_is_not_finite_is_no_overflow(optimizer: str, poison: str) -> None:
    module, other, guard = make_net(optimizer), make_net(optimizer), NaNGuard(patience=3)
    with pytest.raises(TrainingDiverged, match=r"since step 4 .*3 in a row"):
        fit(module, [guard], Batches(dict.fromkeys((2, 4, 5, 6), poison)), 20, **mixed_precision(1024.0))
    fit(other, [], Batches(), 3, **mixed_precision(1024.0))

    assert guard.skips.nonfinite_losses == 4
    torch.testing.assert_close(module.state_dict(), other.state_dict(), rtol=1e-2, atol=1e-4)


@pytest.mark.filterwarnings("ignore:nan_guard")
def test_a_gradient_that_is_not_finite_at_any_loss_scale_is_counted() -> None:
    guard = NaNGuard(patience=3)
    # The scale falls from 4 to 2 and 1; from then on it is not to blame.
    with pytest.raises(TrainingDiverged, match=r"since step 4 .*for the gradient of middle"):
        fit(make_net(), [guard], Batches(dict.fromkeys(range(2, 50), "nan")), 50, **mixed_precision(4.0))


# -- a device whose values the host does not read --------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_reads_nothing_from_the_device_and_a_log_step_does(fused: bool) -> None:
    """Meta tensors have no values: reading one, as a host synchronization does, raises."""
    module = make_net().to("meta")
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    optimizer.param_groups[0]["fused"] = fused
    trainer: Any = SimpleNamespace(
        optimizers=[optimizer],
        global_step=0,
        log_every_n_steps=5,
        precision_plugin=Precision(),
        loggers=[],
        world_size=1,
    )
    guard = NaNGuard()
    for step in range(1, 5):
        for parameter in module.parameters():
            parameter.grad = torch.ones_like(parameter)
        guard.on_before_backward(trainer, module, torch.ones((), device="meta"))
        guard.on_before_optimizer_step(trainer, module, optimizer)
        trainer.global_step = step
        guard.on_train_batch_end(trainer, module, None, None, step)
    assert (getattr(optimizer, "found_inf", None) is not None) == fused

    trainer.global_step = 5
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        guard.on_train_batch_end(trainer, module, None, None, 5)
    guard.teardown(trainer, module, "fit")
    assert not {"found_inf", "grad_scale"} & vars(optimizer).keys()


@pytest.mark.filterwarnings("ignore:nan_guard")
def test_what_is_read_late_is_accounted_for_in_order() -> None:
    from lit_gfs.steps.skipped_steps import Step

    module, guard = make_net(), NaNGuard(patience=3)
    parameters = [module.first.weight, module.middle.weight]
    for at, (loss, first, middle) in enumerate(
        [(0, 0, 0), (0, 1, 0), (0, 0, 0), (1, 0, 0), (0, 0, 1), (1, 1, 1)]
    ):
        guard._skipper.unread.append(Step(at, parameters, torch.tensor([loss, first, middle]).bool()))
    checkpoint: dict[str, Any] = {"callbacks": {}}
    trainer: Any = SimpleNamespace(global_step=6)

    guard.on_save_checkpoint(trainer, module, checkpoint)

    assert checkpoint["callbacks"][guard.state_key] == {
        "total": 4,
        "nonfinite_losses": 2,
        "in_a_row": 3,
        "began_at": 3,
        "began_with": "the loss",
        "began_with_loss": True,
    }
    with pytest.raises(TrainingDiverged, match="since step 3"):
        guard._end_if_lost(trainer, module)


# -- arguments -------------------------------------------------------------------------------------------


def test_patience_is_at_least_one_step() -> None:
    with pytest.raises(UserError, match="patience is 0; expected a number at least 1"):
        NaNGuard(patience=0)


def test_a_strategy_that_shards_gradients_is_refused() -> None:
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(MisconfigurationException, match=r"NaNGuard needs whole .* FSDPStrategy shards them"):
        NaNGuard().setup(trainer, make_net(), "fit")


# -- whole runs ------------------------------------------------------------------------------------------


class Poisoned(CountingEnv):
    """Counting environments whose rewards are not numbers from their 50th vector step on."""

    taken = 0

    def _step(self, tensordict: TensorDictBase) -> TensorDict:
        self.taken += 1
        next_ = super()._step(tensordict)
        return next_ if self.taken < 50 else next_.set("reward", next_["reward"] * math.nan)


@pytest.fixture
def run_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "lit_gfs.datamodules.evaluated.make_env",
        lambda env_id, num_envs=1, **options: Poisoned([7] * num_envs),
    )
    return tmp_path / "runs/it/0"


COMMANDS = {
    "dqn": "--config quickstart --data.num_envs 2 --data.learning_starts 20 --data.batch_size 32 "
    "--data.buffer_size 200",
    "ppo": "--config ppo_cartpole --data.num_envs 2 --data.rollout_steps 20",
}


@pytest.mark.parametrize("agent", list(COMMANDS))
def test_rewards_that_are_no_numbers_end_a_run_with_a_status_of_its_own(
    agent: str, run_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        "--data.env_id Counting-v0 --data.total_steps 4_000 --data.eval_every 2_000 --data.eval_episodes 1 "
        "--run.name it --run.version 0 --gfs.nan_guard.patience 20 --trainer.log_every_n_steps 4 "
        "--trainer.enable_progress_bar false"
    )
    with pytest.raises(SystemExit) as ended, pytest.warns(UserWarning, match="nan_guard: the step at env"):
        main(["fit", *COMMANDS[agent].split(), *options.split()])

    assert ended.value.code == 3
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("lit_gfs: error: training diverged: since environment step 1")
    assert "no step was finite; 20 in a row were skipped, the first for the loss and the gradient of" in line
    saved = torch.load(run_directory / "last.ckpt", weights_only=True)
    assert all(value.isfinite().all() for value in saved["state_dict"].values())
    assert read_scalars(run_directory)["nan_guard/skipped_steps"][-1][1] >= 16

    main(["validate", "--ckpt_path", str(run_directory / "last.ckpt")])
