"""How a run is cut short and loses nothing."""

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
from typing_extensions import override

from lit_gfs.errors import EnvironmentFault, RunStopped, TrainingDiverged
from lit_gfs.runs.checkpoint_io import last_checkpoint
from lit_gfs.runs.checkpoints import newest_intact
from lit_gfs.runs.exit_status import keep_traceback, resume_advice
from lit_gfs.utils.checksummed_files import UnwritableFile
from lit_gfs.utils.stop_signals import unclaimed_signals


class GracefulStop(Callback):
    """Stops a run between two steps on a signal, with a checkpoint; at once on the second signal.

    The signals are SIGINT (Ctrl-C), SIGTERM, SIGHUP, SIGQUIT and SIGUSR1.

    On the first signal, the step that is under way is finished, then a checkpoint is written: the last one of
    the first ``ModelCheckpoint`` that monitors nothing, else none. A datamodule with a method ``interrupt``
    is told not to finish an evaluation or a long collection first; the evaluation is played again after a
    resume. Where gradients are accumulated, the accumulated step is taken first, and an evaluation finished.
    ``Trainer.fit`` then ends with Lightning's ``SIGTERMException``, on the second signal with
    `RunStopped`, both of which end a process without a traceback.

    A checkpoint is also written when an environment fails in mid-run.

    Signals that the process handles or ignores already are left alone, and so are all of them where ``fit``
    does not run in the main thread. Handlers are put back when the run ends. With several processes, all of
    them stop after the same step; evaluations are then finished, and a failing environment leaves the
    checkpoints as they are.

    Example::

        trainer = Trainer(callbacks=[GracefulStop(), ModelCheckpoint("runs/mine", filename="last")])
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that has stopped the run."""
        self.checkpoint: Path | None = None
        """What was written last, then or at the end of training."""
        self._agreed = 0
        """The signal that has stopped the run, whichever process it was sent to."""
        self._handlers: dict[int, Any] = {}
        self._trainer: Trainer | None = None

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.signal, self.checkpoint, self._agreed, self._handlers = None, None, 0, {}
        if stage == "fit" and threading.current_thread() is threading.main_thread():
            # Looked at before Lightning puts handlers of its own over them.
            self._handlers = unclaimed_signals()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trainer = trainer
        for number in self._handlers:
            signal.signal(number, self._on_signal)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        trainer = cast(Any, trainer)
        self._agreed = self.signal or 0
        if trainer.world_size > 1:
            signals = torch.tensor(self._agreed, device=trainer.strategy.root_device)
            self._agreed = int(trainer.strategy.reduce(signals, reduce_op="max"))
        # No checkpoint holds gradients that are still being gathered.
        if self._agreed and not trainer.fit_loop.epoch_loop._should_accumulate():
            # What Lightning's own handler of SIGTERM sets: the run ends when this step is booked and logged.
            trainer._signal_connector.received_sigterm = True

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # Whatever else ends a run may do so half-way through a step.
        if isinstance(exception, TrainingDiverged) and exception.weights_are_lost:
            pass  # earlier checkpoints are better
        elif isinstance(exception, SIGTERMException | TrainingDiverged):
            self._save(trainer)
            self.signal = self._agreed or self.signal
        elif isinstance(exception, EnvironmentFault):
            last = last_checkpoint(trainer)
            # Not `trainer.log_dir`: it waits for the other ranks, which are not here.
            directory = last.dirpath if last is not None else getattr(trainer.logger, "log_dir", None)
            directory = Path(directory or trainer.default_root_dir)
            if trainer.world_size == 1:
                self._save(trainer)
            else:  # it takes all ranks to write one
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
            _say("stopping after this step; once more to stop at once")
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
        # Before training has begun there is nothing to go on with.
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
            _say(f"no checkpoint was written: {error}")


def _say(line: str) -> None:
    """Print a line to stderr, also from a signal handler."""
    try:
        print(f"lit_gfs: {line}", file=sys.stderr, flush=True)
    except RuntimeError:
        # The signal came while something was being printed there.
        with contextlib.suppress(OSError):
            os.write(2, f"lit_gfs: {line}\n".encode())
    except OSError:
        pass  # the terminal is gone, which may be why the signal came
