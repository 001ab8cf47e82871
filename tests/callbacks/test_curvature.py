from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.autograd.functional import hessian
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lit_gfs.callbacks.curvature import CurvatureMonitor
from lit_gfs.errors import UserError
from support.event_files import read_scalars
from support.fakes import Records
from support.training import quiet_trainer

TAGS = {
    "curvature/hessian_trace",
    "curvature/hessian_trace_error",
    "curvature/largest_eigenvalue",
    "curvature/largest_eigenvalue_residual",
}


class LeastSquares(LightningModule):
    """Half the mean squared error of a linear model: with n rows X, the Hessian is X^T X / n."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.foreign = nn.Parameter(torch.ones(3))  # no optimizer holds it
        self.batches: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        scale = self.frozen.prod() * self.foreign.prod()
        return ((x @ self.weight) * scale - y).square().mean() / 2

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch is not None:
            self.batches.append(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight, self.frozen], lr=0.1)


class Cubic(LightningModule):
    """A loss w^3 / 6 summed, plus w: the Hessian is diag(w), whose trace is exact."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -5.0, 2.0]))
        self.weights: list[torch.Tensor] = []

    def training_step(self, batch):
        return {"loss": (self.weight**3).sum() / 6 + self.weight.sum(), "other": 1}

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.weights.append(self.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def batches(count, size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, 3, generator=generator) * torch.tensor([3.0, 1.0, 0.3])
    return DataLoader(TensorDataset(x, 3 * x.sum(1)), batch_size=size)


class Given:
    """A loader of these batches, as they are."""

    def __init__(self, batches):
        self.batches = list(batches)

    def __iter__(self):
        return iter(self.batches)

    def __len__(self):
        return len(self.batches)


def fit(module, steps, *, monitor=None, data=None, callbacks=(), ckpt_path=None, **options):
    torch.manual_seed(0)
    records = Records("curvature/")
    watching = [*([monitor] if monitor else []), *callbacks]
    defaults = {"max_steps": steps, "logger": records, "callbacks": watching, "log_every_n_steps": 1}
    trainer = quiet_trainer(**{**defaults, **options})
    trainer.fit(module, batches(steps) if data is None else data, ckpt_path=ckpt_path)
    assert all(set(row) == TAGS for row in records.calls)
    return records


def check_row(row, matrix):
    eigenvalue = torch.linalg.eigvalsh(matrix.double())[-1].item()
    assert row["curvature/largest_eigenvalue"] == pytest.approx(eigenvalue, rel=1e-4)
    assert row["curvature/largest_eigenvalue_residual"] < 1e-2 * eigenvalue
    off_diagonal = matrix - torch.diag(matrix.diag())
    error = row["curvature/hessian_trace_error"]
    assert error == pytest.approx((2 * off_diagonal.square().sum() / 200).sqrt().item(), rel=0.3)
    assert row["curvature/hessian_trace"] == pytest.approx(matrix.trace().item(), abs=4 * error)


@pytest.mark.parametrize("rows", [5, 8, 32])
def test_least_squares_on_the_first_rows_of_the_step_s_batch(rows):
    module = LeastSquares()
    monitor = CurvatureMonitor(every_n_steps=3, samples=200, iterations=30, batch_size=rows)
    records = fit(module, 8, monitor=monitor)
    assert sorted(records.rows) == [1, 4, 7]
    for step, row in records.rows.items():
        x = module.batches[step - 1][:rows]
        check_row(row, x.T @ x / len(x))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_it_measures_the_weights_as_the_step_left_them(every):
    module = Cubic()
    records = fit(module, 11, monitor=CurvatureMonitor(every_n_steps=every, iterations=40))
    assert sorted(records.rows) == list(range(1, 12, every))
    for step, row in records.rows.items():
        weight = module.weights[step - 1]
        assert row["curvature/hessian_trace"] == pytest.approx(weight.sum().item(), rel=1e-5)
        assert row["curvature/hessian_trace_error"] == pytest.approx(0, abs=1e-6)
        assert row["curvature/largest_eigenvalue"] == pytest.approx(weight[1].item(), rel=1e-4)


@pytest.mark.parametrize(
    ("collate", "rows"),
    [
        (lambda x, y: x, 3),
        (lambda x, y: [x, y], 3),
        (lambda x, y: {"x": x, "y": y}, 3),
        (lambda x, y: (x, y[:4]), 8),  # of different lengths: whole
        (lambda x, y: (x, {"y": y}), 8),
    ],
)
def test_batches_are_sliced_if_that_is_simple(collate, rows):
    class Fitting(LeastSquares):
        sizes: list[int] = []

        def loss(self, batch):
            x = batch if isinstance(batch, torch.Tensor) else batch["x"] if "x" in batch else batch[0]
            self.sizes = [*self.sizes, len(x)]
            return (x @ self.weight).square().mean() / 2

        def training_step(self, batch):
            return self.weight.sum()

        def on_train_batch_end(self, outputs, batch, batch_idx):
            pass

    module = Fitting()
    data = Given(collate(torch.randn(8, 3), torch.randn(8)) for _ in range(2))
    fit(module, 2, monitor=CurvatureMonitor(batch_size=3), data=data)
    assert module.sizes == [rows]


class Noisy(LightningModule):
    """Everything that a measurement could disturb: random states, buffers, gradients, logs."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(3, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1)
        )
        self.register_buffer("average", torch.zeros(()))
        self.gradients: list[torch.Tensor] = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        noise = torch.randn_like(x) + random.random() + np.random.rand()  # noqa: NPY002
        loss = (self.net(x + noise).squeeze(1) - y).square().mean()
        self.average = 0.9 * self.average + loss.detach()
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log_dict({"average": self.average})
        self.logger.log_metrics({"direct": loss.item()}, step=batch_idx)
        for logger in self.loggers:
            logger.log_metrics({"again": loss.item()}, step=batch_idx)
        return loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        gradients = [p.grad.flatten() if p.grad is not None else torch.ones(1) for p in self.parameters()]
        self.gradients.append(torch.cat(gradients))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}])
def test_training_does_not_change(options):
    steps = 6 // options.get("accumulate_grad_batches", 1)

    def run(monitor):
        random.seed(0)
        np.random.seed(0)  # noqa: NPY002
        torch.manual_seed(0)
        module = Noisy()
        records = fit(module, steps, monitor=monitor, data=batches(6), **options)
        assert "log" not in vars(module)
        assert "log_dict" not in vars(module)
        return module, records

    plain, logged = run(None)
    watched, records = run(CurvatureMonitor(every_n_steps=1, samples=2, iterations=2))
    assert sorted(records.rows) == list(range(1, steps + 1))
    assert len(logged.others) >= 12
    assert records.others == logged.others
    expected, state = plain.state_dict(), watched.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], value) for key, value in expected.items())
    assert all(torch.equal(a, b) for a, b in zip(plain.gradients, watched.gradients, strict=True))


def test_accumulated_batches_count_as_one_step():
    module = LeastSquares()
    monitor = CurvatureMonitor(every_n_steps=2, samples=200, iterations=30)
    records = fit(module, 4, monitor=monitor, data=batches(12), accumulate_grad_batches=3)
    assert sorted(records.rows) == [1, 3]
    for step, row in records.rows.items():
        x = module.batches[3 * step - 1]
        check_row(row, x.T @ x / len(x))


def test_a_step_without_batch_or_loss_passes_the_measurement_on():
    class Picky(LeastSquares):
        def training_step(self, batch, batch_idx):
            return None if len(batch[0]) == 7 else super().training_step(batch, batch_idx)

    module = Picky()
    without_loss, with_loss = next(iter(batches(1, size=7))), next(iter(batches(1)))
    data = Given([None, without_loss, None, without_loss, with_loss, with_loss])
    records = fit(module, -1, monitor=CurvatureMonitor(every_n_steps=10), data=data, max_epochs=1)
    # Lightning counts a step without a loss.
    assert list(records.rows) == [3]


def test_mixed_precision_is_left_out():
    class Sensitive(LeastSquares):
        seen: list[torch.dtype] = []

        def training_step(self, batch, batch_idx):
            self.seen = [*self.seen, (batch[0] @ self.weight[:, None]).dtype]
            return super().training_step(batch, batch_idx)

    module = Sensitive()
    monitor = CurvatureMonitor(samples=200, iterations=30)
    row = fit(module, 1, monitor=monitor, precision="bf16-mixed").rows[1]
    assert module.seen == [torch.bfloat16, torch.float32]
    check_row(row, module.batches[0].T @ module.batches[0] / 8)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_true_precisions_are_measured_in_their_own_type(precision):
    class Creating(LeastSquares):
        def training_step(self, batch, batch_idx):
            assert torch.zeros(1).dtype == self.weight.dtype != torch.float32
            return super().training_step(batch, batch_idx)

    module = Creating()
    row = fit(module, 1, monitor=CurvatureMonitor(iterations=20), precision=precision).rows[1]
    x = module.batches[0].double()
    eigenvalue = torch.linalg.eigvalsh(x.T @ x / 8)[-1].item()
    assert row["curvature/largest_eigenvalue"] == pytest.approx(eigenvalue, rel=3e-2)
    assert torch.get_default_dtype() == torch.float32


class Rivals(LightningModule):
    """Two optimizers under manual optimization, and a parameter that both hold."""

    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.a, self.b, self.shared = (nn.Parameter(torch.tensor([value])) for value in (1.0, 2.0, 4.0))

    def loss(self, batch):
        return (self.a**2 + self.b**2 + self.shared**2).sum() / 2

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD([own, self.shared], lr=0.1) for own in (self.a, self.b)]


def test_several_optimizers():
    # Each batch is two steps: 2, 4, 6 ... of which 4 is the first after three steps, 8 after six.
    records = fit(Rivals(), 12, monitor=CurvatureMonitor(every_n_steps=3))
    assert sorted(records.rows) == [2, 4, 8, 10]
    for row in records.rows.values():
        assert row["curvature/hessian_trace"] == 3  # the shared parameter counts once


@pytest.mark.parametrize("half", [4, 5, 6])
def test_a_resumed_run_measures_the_same(tmp_path, half):
    data = Given(list(batches(1)) * 12)

    def run(steps, ckpt_path=None):
        checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=half, save_top_k=-1)
        return fit(
            Cubic(),
            steps,
            monitor=CurvatureMonitor(every_n_steps=5, samples=2, iterations=2),
            data=data,
            callbacks=[checkpoint],
            ckpt_path=ckpt_path,
        ).rows

    whole = run(12)
    assert sorted(whole) == [1, 6, 11]
    resumed = run(12, tmp_path / f"step={half}.ckpt")
    assert resumed == {step: row for step, row in whole.items() if step > half}


def test_env_steps_are_the_x_axis(tmp_path):
    class Agent(Cubic):
        @property
        def env_steps(self):
            return 64 * self.trainer.global_step

    logger = TensorBoardLogger(tmp_path, name="", version="")
    fit(Agent(), 5, monitor=CurvatureMonitor(every_n_steps=2), logger=logger)
    scalars = read_scalars(tmp_path)
    assert set(scalars) >= TAGS
    assert [step for step, _ in scalars["curvature/hessian_trace"]] == [64, 192, 320]


@pytest.mark.parametrize(
    "loss",
    [nn.MSELoss(), lambda self, batch, weight: 1 / 0, lambda self, prediction: 1 / 0, 0.5],
    ids=["criterion", "two arguments", "another argument", "number"],
)
def test_other_things_called_loss_are_not_asked(loss):
    module = type("Helped", (LeastSquares,), {"loss": loss})()
    row = fit(module, 1, monitor=CurvatureMonitor(samples=200, iterations=30)).rows[1]
    check_row(row, module.batches[0].T @ module.batches[0] / 8)


def test_what_is_not_finite_is_written():
    class Diverged(Cubic):
        def training_step(self, batch):
            return (self.weight**3).sum() * math.inf

    row = fit(Diverged(), 1, monitor=CurvatureMonitor()).rows[1]
    assert not math.isfinite(row["curvature/hessian_trace"])
    assert not math.isfinite(row["curvature/largest_eigenvalue"])


class Gathering(Cubic):
    """Waits for the other processes in its training step; the Hessian is the rank + 1 times the identity."""

    def training_step(self, batch):
        ranks = self.all_gather(torch.tensor(self.global_rank))
        assert ranks.tolist() == [0, 1]
        return (self.global_rank + 1) * (self.weight**2).sum() / 2


def test_each_of_several_processes_takes_part_and_rank_zero_s_own_measurement_is_written(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="", version="")
    monitor = CurvatureMonitor(every_n_steps=2, samples=2, iterations=2)
    fit(Gathering(), 3, monitor=monitor, data=batches(8), logger=logger, strategy="ddp_fork", devices=2)
    assert read_scalars(tmp_path)["curvature/hessian_trace"] == [(1, 3), (3, 3)]


class Attention(LightningModule):
    """Attention by PyTorch's fused kernel."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 4, bias=False)

    def loss(self, batch):
        tokens = self.project(batch[0]).view(1, 2, -1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).square().sum()

    def training_step(self, batch):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_fused_attention_is_measured():
    module = Attention()
    batch = next(iter(batches(1)))
    row = fit(module, 1, monitor=CurvatureMonitor(iterations=100), data=Given([batch])).rows[1]

    def loss(weight):
        tokens = F.linear(batch[0], weight.view(4, 3)).view(2, -1, 2)
        return ((tokens @ tokens.mT / 2**0.5).softmax(-1) @ tokens).square().sum()

    eigenvalues = torch.linalg.eigvalsh(hessian(loss, module.project.weight.detach().flatten()))
    expected = eigenvalues[eigenvalues.abs().argmax()].item()
    assert row["curvature/largest_eigenvalue"] == pytest.approx(expected, rel=1e-3)


class Once(torch.autograd.Function):
    """An operation without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * 2


def test_a_loss_that_cannot_be_differentiated_twice_is_named():
    class Fused(Cubic):
        def training_step(self, batch):
            return Once.apply(self.weight**2).square().sum()

    with pytest.raises(UserError, match=r"the loss of Fused twice: OnceBackward is marked"):
        fit(Fused(), 1, monitor=CurvatureMonitor())


def test_a_reason_of_several_lines_becomes_one():
    class Detached(Cubic):
        def training_step(self, batch):
            self.weight.register_hook(refuse)
            return super().training_step(batch)

    def refuse(gradient):
        if gradient.requires_grad:
            raise RuntimeError("no second derivative\nin this kernel")

    with pytest.raises(UserError) as caught:
        fit(Detached(), 1, monitor=CurvatureMonitor())
    assert str(caught.value).endswith("the loss of Detached twice: no second derivative")


@pytest.mark.parametrize(
    ("argument", "value"),
    [("every_n_steps", 0), ("samples", 1), ("iterations", 0), ("batch_size", 0)],
)
def test_arguments_are_checked(argument, value):
    with pytest.raises(MisconfigurationException, match=f"{argument} must be .* got {value}"):
        CurvatureMonitor(**{argument: value})


def test_a_module_without_trained_parameters_is_named():
    class Frozen(Cubic):
        def __init__(self):
            super().__init__()
            self.requires_grad_(False)

    with pytest.raises(UserError, match="Frozen has no trained parameter"):
        fit(Frozen(), 1, monitor=CurvatureMonitor())


def test_a_training_step_that_optimizes_by_itself_is_refused():
    class Manual(Cubic):
        automatic_optimization = False

    with pytest.raises(UserError, match=r"Manual's training_step, .* expected a method loss\(batch\)"):
        fit(Manual(), 1, monitor=CurvatureMonitor())


class Fetching(Cubic):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0])


def test_a_training_step_that_fetches_by_itself_is_refused():
    with pytest.raises(UserError, match=r"Fetching's training_step, .* expected a method loss\(batch\)"):
        fit(Fetching(), 1, monitor=CurvatureMonitor())
