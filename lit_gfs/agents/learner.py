"""What everything that is trained here shares: its optimizer, its layers, and how it reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, nn
from torch.optim import Optimizer

from lit_gfs.envs import EnvSpec
from lit_gfs.errors import UserError
from lit_gfs.gradients.objective_shift import announce_objective_shift
from lit_gfs.metrics.recorded_means import RecordedMeans, united
from lit_gfs.networks import named_layers
from lit_gfs.runs.event_files import cut_event_files, event_file_sizes
from lit_gfs.runs.loop_states import complete_loop_states, forget_begun_evaluation, note_written_checkpoints
from lit_gfs.utils.ranks import gather
from lit_gfs.utils.torch_setup import require_compiler

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
"""Builds an optimizer over parameters; in YAML any optimizer's ``class_path`` with ``init_args``."""


class Learner(LightningModule):
    """A LightningModule that callbacks can read, and that reports against its own count of steps.

    Callbacks read `trunk`, `named_layers`, `policy_features`, `policy_head`, `loss`, `probe_batch` and
    `score`. Quantities are gathered on the device with `record` and written every
    ``Trainer(log_every_n_steps)`` optimizer steps.

    Args:
        env_spec: The spaces of what is learned from.
        compile: Whether ``torch.compile`` compiles the networks when fitting starts.
    """

    score: ClassVar[str]
    """The tag of the evaluation's verdict: larger is better, ``best.ckpt`` is chosen by it."""

    def __init__(self, env_spec: EnvSpec, compile: bool = False) -> None:
        super().__init__()
        self.env_spec = env_spec
        self.is_compiled = compile  # `compile` is a method of every module
        # Lightning's name for an input that `forward` takes, for what measures the network.
        self.example_input_array = torch.zeros(1, *env_spec.observation_shape)
        self.latest_return: float | None = None
        self.recorded = RecordedMeans()
        self._reported: dict[str, float] = {}
        """The scores of the last evaluation."""
        self._clock: tuple[float, int] | None = None
        self._written_at = 0
        self._validation_began: float | None = None
        self._saved_event_files: list[dict[str, int]] = []
        """Sizes of event files by name, for each TensorBoard logger: when the checkpoint was written."""
        self._present_event_files: list[dict[str, int]] = []
        """The same when fitting starts."""
        self._saved_optimizers: list[str] | None = None
        """The classes that the checkpoint's optimizer states are of."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; what Lightning notes twice around every hook goes past PyTorch's bookkeeping."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def make_optimizer(self, build: OptimizerFactory, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Build an optimizer.

        Raises:
            UserError: If it refuses its arguments, or is known not to resume.
        """
        try:
            optimizer = build(parameters)
        except (TypeError, ValueError) as error:
            raise UserError(f"model.optimizer: {error}") from error
        kind = type(optimizer)
        # By name: importing that library takes half a second, which most runs need not pay.
        if kind.__name__ == "Kron" and kind.__module__.startswith("pytorch_optimizer."):
            raise UserError(
                "model.optimizer is pytorch_optimizer.Kron, which draws differently in every process and "
                "after a resume; expected lit_gfs.optim.Kron"
            )
        _choose_implementation(optimizer)
        return optimizer

    def networks(self) -> list[nn.Module]:
        """List the modules that are called to learn and to act: what is compiled."""
        raise NotImplementedError

    def on_fit_start(self) -> None:
        """Compile the networks, where asked for: after callbacks have had their way with the weights.

        Raises:
            UserError: If there is no C++ compiler to do it, or the checkpoint is of another optimizer.
        """
        # Most optimizers load another one's state without a word, and stumble over it at their first step.
        saved, optimizers = self._saved_optimizers, self._optimizer_names()
        # Weights that were loaded by themselves may be trained with any.
        if self.trainer.ckpt_path is not None and saved not in (None, optimizers):
            raise UserError(
                f"model.optimizer is {', '.join(optimizers)}, but the checkpoint was written with "
                f"{', '.join(map(str, saved or []))}; expected the same"
            )
        # Before loggers open files of their own.
        self._present_event_files = self._event_file_sizes()
        if not self.is_compiled:
            return
        require_compiler(self.device)
        for network in self.networks():
            network.compile()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Drop the gradients, without the profiling that PyTorch's optimizers do around it."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    # -- what callbacks read -----------------------------------------------------------------------------

    @property
    def trunk(self) -> nn.Module:
        """The part of the network whose depth and width are studied."""
        raise NotImplementedError

    @property
    def policy_head(self) -> nn.Module:
        """The last layer of what decides on actions: its outputs' largest, or their value, is the action."""
        raise NotImplementedError

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to what `policy_head` reads, ``(*batch, out_features)``."""
        raise NotImplementedError

    def loss(self, batch: Any) -> Tensor:
        """Return the loss ``()`` that training minimizes on a batch; it leaves no trace in the module."""
        raise NotImplementedError

    def probe_batch(self) -> Tensor | None:
        """Return up to 256 observations on the module's device, or ``None`` before any were seen."""
        raise NotImplementedError

    def named_layers(self) -> dict[str, nn.Module]:
        """Layers by name: every trained module that owns parameters directly."""
        return named_layers(self)

    def announce_objective_shift(self, reason: str) -> None:
        """Tell callbacks that the objective has changed, before the first step on the new one."""
        announce_objective_shift(self.trainer, self, reason)

    # -- reporting ---------------------------------------------------------------------------------------

    @property
    def steps(self) -> int:
        """Steps so far, the x axis of everything: optimizer steps, unless a subclass counts others."""
        return self.trainer.global_step

    def record(self, values: Mapping[str, Tensor]) -> None:
        """Add tensors to the means over all their elements that are written next."""
        self.recorded.add(values)

    def schedule_values(self) -> dict[str, float]:
        """Return the schedules' current values, for ``schedule/*``."""
        optimizer = cast(Any, self.optimizers(use_pl_optimizer=False))
        return {"schedule/learning_rate": optimizer.param_groups[0]["lr"]}

    def current_values(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return what else is written with the means of what was recorded."""
        return self.schedule_values()

    def report_evaluation(self, scores: Mapping[str, Tensor]) -> None:
        """Make an evaluation's scalars known to checkpoints and, in validation, to loggers.

        Args:
            scores: By tag, ``()`` each; the same ones in all processes.
        """
        # Lightning would log against optimizer steps; checkpoints still need the value under its name. The
        # largest of equal values is exact, which their mean need not be. What joins several GPUs reduces
        # nothing that is on a CPU.
        on_device = {tag: value.to(self.device) for tag, value in scores.items()}
        self.log_dict(on_device, logger=False, batch_size=1, sync_dist=True, reduce_fx="max")
        if self.trainer.validating:
            self.write({tag: float(value) for tag, value in scores.items()})

    def write(self, scalars: Mapping[str, float]) -> None:
        """Write scalars to all loggers, at the current count of steps."""
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(scalars), step=self.steps)

    def on_train_batch_end(self, outputs: STEP_OUTPUT, batch: Any, batch_idx: int) -> None:
        """Write what was recorded, on log steps."""
        self._write_if_due()

    def _write_if_due(self) -> None:
        every, step = cast(Any, self.trainer).log_every_n_steps, self.trainer.global_step
        # A batch is not always a step: gradients may be accumulated, the rest of a rollout skipped.
        if every and step % every == 0 and step > self._written_at:
            self._written_at = step
            self._write_recorded()

    def on_train_start(self) -> None:
        """Start the clock; in a resumed run, take back what was written after the checkpoint."""
        self._clock = (time.monotonic(), self.steps)
        forget_begun_evaluation(self.trainer)
        # Callbacks may ask for them before the next evaluation.
        for tag, value in self._reported.items():
            self.trainer.callback_metrics.setdefault(tag, torch.tensor(value))
        note_written_checkpoints(self.trainer)
        # A module that was trained before has counted other steps than this Trainer.
        self._written_at = min(self._written_at, self.trainer.global_step)
        files = zip(
            self._event_directories(), self._saved_event_files, self._present_event_files, strict=False
        )
        for directory, sizes, present in files:
            cut_event_files(directory, sizes, present)
        self._saved_event_files = []

    def on_validation_start(self) -> None:
        """Note when an evaluation begins."""
        self._validation_began = time.monotonic()

    def on_validation_end(self) -> None:
        """Leave the time of evaluations out of the steps per second."""
        if self._clock is not None and self._validation_began is not None:
            self._clock = (self._clock[0] + time.monotonic() - self._validation_began, self._clock[1])

    def on_train_end(self) -> None:
        """Write what the last log step left."""
        if any(gather(bool(self.recorded))):
            self._write_recorded()

    def _recorded_by_all_ranks(self) -> dict[str, Any]:
        """Return the state of `recorded`, over all processes; each of them is to ask for it."""
        if self.trainer.world_size == 1:
            return self.recorded.state_dict()
        return united(gather(self.recorded.totals()))

    def _write_recorded(self) -> None:
        steps = self.steps
        self.recorded.load_state_dict(self._recorded_by_all_ranks())
        means = self.recorded.take()
        scalars = {**means, **self.current_values(means)}
        now = time.monotonic()
        if self._clock is not None and steps > self._clock[1]:
            scalars["time/steps_per_second"] = (steps - self._clock[1]) / max(now - self._clock[0], 1e-9)
        if self._clock is None or steps > self._clock[1]:
            self._clock = (now, steps)
        self.write(scalars)

    def _event_directories(self) -> list[Path]:
        """Return where the TensorBoard loggers write: on rank zero, which is the one that does."""
        if not self.trainer.is_global_zero:
            return []
        return [Path(each.log_dir) for each in self.trainer.loggers if isinstance(each, TensorBoardLogger)]

    def _event_file_sizes(self) -> list[dict[str, int]]:
        return [event_file_sizes(directory) for directory in self._event_directories()]

    # -- checkpoints -------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was recorded and not yet written, and how far the written goes."""
        # Lightning writes checkpoints before it calls this module's hook for the end of a batch.
        self._write_if_due()
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.flush()
        checkpoint["learner"] = {
            "class": type(self).__name__,
            "optimizers": self._optimizer_names(),
            "recorded": self._recorded_by_all_ranks(),
            "reported": self._reported_scores(),
            "written_at": self._written_at,
            "latest_return": self.latest_return,
            "event_files": self._event_file_sizes(),
        }
        complete_loop_states(self.trainer, checkpoint["loops"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on recording where the checkpoint was written.

        Raises:
            UserError: If it is of another agent.
        """
        saved = checkpoint.get("learner", {})
        name = saved.get("class")
        if name is not None and name not in {ancestor.__name__ for ancestor in type(self).__mro__}:
            raise UserError(f"the checkpoint is of {name}; expected one of {type(self).__name__}")
        # What was pending on all ranks, for one of them to go on with.
        if "recorded" in saved and self.global_rank == 0:
            self.recorded.load_state_dict(saved["recorded"])
        self._reported = saved.get("reported", {})
        self._written_at = saved.get("written_at", 0)
        self.latest_return = saved.get("latest_return")
        self._saved_event_files = saved.get("event_files", [])
        self._saved_optimizers = saved.get("optimizers")

    def _reported_scores(self) -> dict[str, float]:
        """Return what callbacks find of the last evaluation, averaged over the ranks."""
        metrics = self.trainer.callback_metrics
        return {tag: float(value) for tag, value in metrics.items() if tag.startswith("eval/")}

    def _optimizer_names(self) -> list[str]:
        kinds = (type(optimizer) for optimizer in self.trainer.optimizers)
        return [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]


def _choose_implementation(optimizer: Optimizer) -> None:
    """Pick the quickest implementation of one of PyTorch's optimizers, unless the user picked one.

    The update is the same to rounding. On a CPU, PyTorch loops over tensors in Python unless told otherwise.
    """
    for group in optimizer.param_groups:
        if group.get("differentiable") or group.get("foreach") is not None:
            continue
        if "fused" not in group and "foreach" in group:
            group["foreach"] = True
        elif group.get("fused", False) is None:
            group["fused"] = True
