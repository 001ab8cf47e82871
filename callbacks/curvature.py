"""Monitor of the curvature (sharpness) of the loss at the current parameters."""

from __future__ import annotations

import inspect
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning.pytorch.utilities.types import STEP_OUTPUT
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from typing_extensions import override

from lit_gfs.errors import UserError
from lit_gfs.metrics.curvature import hutchinson_trace, largest_eigenvalue, loss_gradients
from lit_gfs.metrics.module_protocol import trained_parameters, write_scalars
from lit_gfs.metrics.pace import Interval, Pace, interval_in
from lit_gfs.steps.loss_terms import own_training_step


class CurvatureMonitor(Callback):
    """Logs the trace and the largest eigenvalue of the loss's Hessian with respect to the trained parameters.

    It writes to all loggers after the first optimizer step, and then every ``every_n_steps`` steps:

    - ``curvature/hessian_trace``: Hutchinson's estimate of the sum of all eigenvalues;
    - ``curvature/hessian_trace_error``: its standard error;
    - ``curvature/largest_eigenvalue``: the eigenvalue of largest magnitude, which may be negative, by power
      iteration;
    - ``curvature/largest_eigenvalue_residual``: a bound on its distance from an eigenvalue. If it is not
      small compared to the eigenvalue, the estimate needs more iterations, or two eigenvalues of opposite
      sign have the same magnitude.

    Non-finite values are written, too. The x axis is the module's ``env_steps`` if it has them, else the
    Trainer's ``global_step``.

    The loss is computed on the batch of the step, with the weights after the step, in training mode and in
    the dtype of the parameters (float32 under mixed precision, without autocast). If the module has a method
    ``loss(batch)`` with this single parameter, that method computes the loss. Otherwise ``training_step``
    does, with logging disabled. Auxiliary losses of callbacks are no part of it. If a step has no batch or no
    loss, the next step is measured instead.

    The measurement does not affect training: it restores gradients, buffers (such as the statistics of
    BatchNorm) and random states. Only other side effects of ``training_step``, such as metric updates, occur
    once more. The callback works on any LightningModule; under manual optimization it needs ``loss(batch)``.
    Under DDP each rank measures its own batch, so collective operations within the loss still work, and rank
    zero writes its result. Sharded strategies are not supported.

    A measurement takes ``samples + iterations`` Hessian-vector products, about as long as some tens of
    training steps. With the defaults that is about 1% of a run (``benchmarks/step_cost.py``).

    Args:
        every_n_steps: Optimizer steps between two measurements; ``auto`` measures about 200 times in a run,
            but at most in every 5,000th step, because a measurement is expensive.
        samples: Number of random probes for the trace; the standard error falls with its square root.
        iterations: Number of power iterations for the eigenvalue.
        batch_size: Number of rows of the batch to measure on, from its start. A batch is used as a whole
            unless it is a tensor, a TensorDict, or a tuple, list or dict of tensors of the same length.

    Raises:
        MisconfigurationException: If an argument is out of range.
        UserError: If the module has no trained parameters, or if its loss cannot be computed from a batch or
            differentiated twice. Operations of other packages count as linear if they lack a second
            derivative without reporting it.

    Example::

        trainer = Trainer(callbacks=[CurvatureMonitor(every_n_steps=1_000)])
    """

    pace: ClassVar[Pace] = Pace(points=200, least=5_000, otherwise=5_000)
    """What an interval of ``auto`` stands for."""

    def __init__(
        self, every_n_steps: Interval = "auto", samples: int = 20, iterations: int = 20, batch_size: int = 32
    ) -> None:
        if every_n_steps != "auto" and every_n_steps < 1:
            raise MisconfigurationException(f"every_n_steps must be at least 1, got {every_n_steps}")
        if samples < 2:
            raise MisconfigurationException(f"samples must be at least 2, got {samples}")
        if iterations < 1:
            raise MisconfigurationException(f"iterations must be at least 1, got {iterations}")
        if batch_size < 1:
            raise MisconfigurationException(f"batch_size must be at least 1, got {batch_size}")
        self.every_n_steps = every_n_steps
        self.samples = samples
        self.iterations = iterations
        self.batch_size = batch_size
        self.interval = 1
        """Optimizer steps between two measurements of the run."""
        self._measured_until = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = type(pl_module).__name__
        if not _trained_parameters(trainer):
            raise UserError(
                f"{name} has no trained parameter: expected at least one that requires gradients and belongs "
                "to an optimizer"
            )
        can_call_step = pl_module.automatic_optimization and not is_param_in_hook_signature(
            pl_module.training_step, "dataloader_iter", explicit=True
        )
        if not can_call_step and not _has_loss(pl_module):
            raise UserError(
                f"CurvatureMonitor cannot take the loss from {name}'s training_step, which optimizes "
                "manually or fetches its batches itself; expected a method loss(batch)"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.interval = interval_in(trainer, self.every_n_steps, self.pace)
        # A previous Trainer may have taken more steps than this one.
        self._measured_until = min(self._measured_until, _next_multiple(trainer.global_step, self.interval))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if batch is None or trainer.global_step <= self._measured_until:
            return
        with _side_effects_undone(trainer, pl_module):
            loss = _loss(pl_module, _first_rows(batch, self.batch_size), batch_idx)
            if loss is None:
                return
            scalars = self._measure(trainer, pl_module, loss)
        self._measured_until = _next_multiple(trainer.global_step, self.interval)
        if trainer.is_global_zero:
            write_scalars(trainer, pl_module, scalars)

    @override
    def state_dict(self) -> dict[str, Any]:
        # The step alone does not determine this: a measurement waits for a batch with a loss.
        return {"measured_until": self._measured_until}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._measured_until = state_dict["measured_until"]

    def _measure(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> dict[str, float]:
        parameters = _trained_parameters(trainer)
        # Seeded by the step: a resumed run draws the same probes.
        generator = torch.Generator(parameters[0].device).manual_seed(trainer.global_step)
        try:
            gradients = loss_gradients(loss, parameters)
            estimates = [
                *hutchinson_trace(gradients, parameters, self.samples, generator),
                *largest_eigenvalue(gradients, parameters, self.iterations, generator),
            ]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            name, reason = type(pl_module).__name__, str(error).split("\n", 1)[0]
            raise UserError(
                f"CurvatureMonitor cannot differentiate the loss of {name} twice: {reason}"
            ) from error
        tags = ("hessian_trace", "hessian_trace_error", "largest_eigenvalue", "largest_eigenvalue_residual")
        values = torch.stack(estimates).tolist()  # a single transfer to the host
        return {f"curvature/{tag}": value for tag, value in zip(tags, values, strict=True)}


def _next_multiple(step: int, period: int) -> int:
    return -(-step // period) * period


def _trained_parameters(trainer: Trainer) -> list[nn.Parameter]:
    """List the trained parameters of all optimizers, each parameter once."""
    return list(dict.fromkeys(p for optimizer in trainer.optimizers for p in trained_parameters(optimizer)))


def _first_rows(batch: Any, count: int) -> Any:
    if isinstance(batch, Tensor | TensorDictBase):
        return batch[:count] if batch.ndim else batch
    # Subclasses of these containers may carry more than their elements.
    if type(batch) in (tuple, list) and _have_equal_lengths(batch):
        return type(batch)(part[:count] for part in batch)
    if type(batch) is dict and _have_equal_lengths(batch.values()):
        return {key: part[:count] for key, part in batch.items()}
    return batch


def _have_equal_lengths(parts: Any) -> bool:
    if not all(isinstance(part, Tensor) and part.ndim for part in parts):
        return False
    return len({len(part) for part in parts}) == 1


def _has_loss(pl_module: LightningModule) -> bool:
    """Return whether the module has a method ``loss(batch)``; in many modules ``loss`` is a criterion."""
    loss = getattr(pl_module, "loss", None)
    return inspect.ismethod(loss) and list(inspect.signature(loss).parameters) == ["batch"]


def _loss(pl_module: LightningModule, batch: Any, batch_idx: int) -> Tensor | None:
    if _has_loss(pl_module):
        return cast(Any, pl_module).loss(batch)
    training_step = own_training_step(pl_module)
    # The same test as Lightning's own for whether training_step takes the index.
    wants_index = is_param_in_hook_signature(training_step, "batch_idx", min_args=2)
    output = training_step(batch, batch_idx) if wants_index else training_step(batch)
    return output["loss"] if isinstance(output, Mapping) else output


@contextmanager
def _side_effects_undone(trainer: Trainer, pl_module: LightningModule) -> Generator[None, None, None]:
    """Undo the side effects of computing a loss, and make it differentiable twice."""
    with ExitStack() as stack:
        stack.enter_context(isolate_rng(include_cuda=pl_module.device.type == "cuda"))
        stack.enter_context(_logging_disabled(trainer, pl_module))
        stack.enter_context(_buffers_restored(pl_module))
        stack.enter_context(_without_autocast(trainer))
        # Compiled networks and the fused kernels of attention have no second derivative.
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield


def _without_autocast(trainer: Trainer) -> AbstractContextManager[Any]:
    """Return the precision context of the training step, or an empty one in place of autocast."""
    precision = trainer.precision_plugin
    return nullcontext() if isinstance(precision, MixedPrecision) else precision.train_step_context()


@contextmanager
def _logging_disabled(trainer: Trainer, pl_module: LightningModule) -> Generator[None, None, None]:
    """Replace the module's ``log``, ``log_dict`` and loggers by ones without effect."""
    loggers, attributes = trainer.loggers, vars(pl_module)
    kept: dict[str, Any] = {name: attributes[name] for name in ("log", "log_dict") if name in attributes}
    attributes.update(log=_do_nothing, log_dict=_do_nothing)
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
        del attributes["log"], attributes["log_dict"]
        attributes.update(kept)


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    pass


@contextmanager
def _buffers_restored(module: nn.Module) -> Generator[None, None, None]:
    kept = [
        (owner, name, buffer, buffer.detach().clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for owner, name, buffer, value in kept:
            with torch.no_grad():
                buffer.copy_(value)
            owner._buffers[name] = buffer
