"""Graceful stop of a run on a signal, with a checkpoint."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import distributed
from typing_extensions import override

from lit_gfs.callbacks.summary import logger_directory
from lit_gfs.errors import EnvironmentFault, RunStopped, TrainingDiverged
from lit_gfs.runs.checkpoint_io import last_checkpoint
from lit_gfs.runs.checkpoints import newest_intact
from lit_gfs.runs.exit_status import keep_traceback, resume_advice
from lit_gfs.utils.checksummed_files import UnwritableFile
from lit_gfs.utils.stop_signals import unclaimed_signals


class GracefulStop(Callback):
    """Stops a run after the current step on a signal, with a checkpoint; immediately on a second signal.

    The signals are SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGQUIT and SIGUSR1.

    On the first signal, the run finishes the current step. Then the first ``ModelCheckpoint`` without a
    monitored metric writes its checkpoint; without such a callback there is none. If the datamodule has a
    method ``interrupt``, it is called to cut short an evaluation or a long collection; a resumed run repeats
    the evaluation. If gradients are accumulated, the run first finishes the accumulated step and a running
    evaluation. ``Trainer.fit`` then raises Lightning's ``SIGTERMException``, or `RunStopped` on the second
    signal. Both end a process without a traceback.

    A checkpoint is also written when an environment fails during the run.

    Signals that the process already handles or ignores are unaffected. If ``fit`` does not run in the main
    thread, it handles no signals. The previous handlers are restored at the end of the run. With several
    processes, all of them stop after the same step. They finish a running evaluation, and they write no
    checkpoint when an environment fails.

    Example::

        trainer = Trainer(callbacks=[GracefulStop(), ModelCheckpoint("runs/mine", filename="last")])
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that stopped the run."""
        self.checkpoint: Path | None = None
        """The checkpoint at the end of the run."""
        self._agreed_signal = 0
        """The signal that stopped the run, agreed on by all processes; 0 for none."""
        self._handlers: dict[int, Any] = {}
        self._processes: distributed.ProcessGroup | None = None
        """A group of all processes that exchange tensors of the CPU; ``None`` for a single process."""
        self._trainer: Trainer | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.signal, self.checkpoint, self._agreed_signal, self._handlers = None, None, 0, {}
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            # Before Lightning installs its own handlers.
            self._handlers = unclaimed_signals()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        self._processes = None
        if trainer.world_size > 1:
            self._processes = distributed.new_group(backend="gloo")
        for number in self._handlers:
            signal.signal(number, self._on_signal)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        trainer = cast(Any, trainer)
        self._agreed_signal = self.signal or 0
        if self._processes is not None:
            # Between CPUs, because the host would wait for a device in every step.
            signals = torch.tensor(self._agreed_signal)
            distributed.all_reduce(signals, distributed.ReduceOp.MAX, group=self._processes)
            self._agreed_signal = int(signals)
        # A checkpoint does not contain accumulated gradients, so finish the accumulation first.
        if self._agreed_signal and not trainer.fit_loop.epoch_loop._should_accumulate():
            # Lightning's own SIGTERM handler sets this flag. The run ends after this step is logged.
            trainer._signal_connector.received_sigterm = True

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Only these exceptions leave a consistent state. Others may interrupt a step halfway.
        if isinstance(exception, TrainingDiverged) and exception.weights_are_lost:
            pass  # earlier checkpoints are better
        elif isinstance(exception, SIGTERMException | TrainingDiverged):
            self._save(trainer)
            self.signal = self._agreed_signal or self.signal
        elif isinstance(exception, EnvironmentFault):
            last = last_checkpoint(trainer)
            logged = None if trainer.logger is None else logger_directory(trainer.logger)
            directory = Path((logged if last is None else last.dirpath) or trainer.default_root_dir)
            if trainer.world_size == 1:
                self._save(trainer)
            else:  # writing a checkpoint would need all ranks
                self.checkpoint, _ = newest_intact(directory)
            keep_traceback(exception, directory)
            exception.advice += resume_advice(self.checkpoint)
        self._restore_handlers()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        last = last_checkpoint(trainer)
        if last is not None and last.best_model_path:
            self.checkpoint = Path(last.best_model_path)
        self._restore_handlers()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        trainer = self._trainer
        assert trainer is not None
        if self.signal is not None:
            self._restore_handlers()
            raise RunStopped(number)
        self.signal = number
        if trainer.is_global_zero:
            _print_to_stderr("stopping after this step; once more to stop at once")
        interrupt = getattr(getattr(trainer, "datamodule", None), "interrupt", None)
        if interrupt is not None and trainer.world_size == 1 and trainer.accumulate_grad_batches == 1:
            interrupt()

    def _restore_handlers(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._trainer = None

    def _save(self, trainer: Trainer) -> None:
        last = last_checkpoint(trainer)
        # Before training has started there is no state to save.
        if last is None or self._trainer is None or cast(Any, trainer).fast_dev_run:
            return
        position = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        metrics = {name: torch.tensor(count) for name, count in position.items()}
        path = last.format_checkpoint_name({**trainer.callback_metrics, **metrics})
        try:
            last.best_model_path = path
            trainer.save_checkpoint(path, weights_only=False)
            self.checkpoint = Path(path)
        except (UnwritableFile, TrainingDiverged) as error:
            _print_to_stderr(f"no checkpoint was written: {error}")


def _print_to_stderr(line: str) -> None:
    """Print a line to stderr; safe within a signal handler."""
    try:
        print(f"lit_gfs: {line}", file=sys.stderr, flush=True)
    except RuntimeError:
        # The signal interrupted another print to stderr.
        with contextlib.suppress(OSError):
            os.write(2, f"lit_gfs: {line}\n".encode())
    except OSError:
        pass  # the terminal is closed, which may be the reason for the signal
