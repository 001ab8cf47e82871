"""Diagnosis of the run while it runs: says once what is wrong, since when, and what to try."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lit_gfs.metrics.diagnosis import diagnose, is_read, summary_line
from lit_gfs.metrics.findings import Finding
from lit_gfs.metrics.module_protocol import x_axis
from lit_gfs.metrics.series import SeriesRecord


class Diagnosis(Callback):
    """Applies the rules of ``docs/collapse.md`` to what a run logs, after each evaluation and at its end.

    A rule that fires for the first time prints one line on stderr: what is wrong, since which step, which
    page explains it, and what to try. TensorBoard gets all findings so far as the text ``diagnosis``.
    `RunSummary` shows them at the end. The run itself is not changed.

    The rules read what the monitors and the module write with
    `lit_gfs.metrics.module_protocol.write_scalars`. A monitor that is off leaves its rules without data. At
    most 256 points of each scalar are kept, also in checkpoints, so a resumed run says nothing twice.

    Example::

        trainer = Trainer(callbacks=[GradientFlowMonitor(), RepresentationMonitor(), Diagnosis()])
    """

    def __init__(self) -> None:
        self._record = SeriesRecord()
        self._said: list[str] = []
        """Names of the rules that have fired before."""

    def findings(self) -> list[Finding]:
        """Return what the rules find in the run so far."""
        return diagnose(self._record.series())

    def on_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keep scalars that are being written to the loggers, and that a rule reads."""
        self._record.add(step, {tag: value for tag, value in scalars.items() if is_read(tag)})

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._tell(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(trainer, pl_module, at_end=True)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._tell(trainer, pl_module, at_end=True)

    @override
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Not a `state_dict`: Lightning would warn of it whenever the checkpoint is only evaluated.
        state = {"record": self._record.state_dict(), "said": list(self._said)}
        checkpoint.setdefault("learner", {})["diagnosis"] = state

    @override
    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if saved := checkpoint.get("learner", {}).get("diagnosis"):
            self._record.load_state_dict(saved["record"])
            self._said = list(saved["said"])

    def _tell(self, trainer: Trainer, pl_module: LightningModule, at_end: bool = False) -> None:
        if not trainer.is_global_zero:
            return
        findings = self.findings()
        new = [finding for finding in findings if finding.name not in self._said]
        for finding in new:
            print(f"lit_gfs: {finding.line}", file=sys.stderr, flush=True)
        self._said += [finding.name for finding in new]
        if new or at_end:
            self._write(trainer, pl_module, findings)

    def _write(self, trainer: Trainer, pl_module: LightningModule, findings: Sequence[Finding]) -> None:
        lines = [*(f"- {finding.line}" for finding in findings), "", summary_line(self._record.series())]
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                step = x_axis(trainer, pl_module)
                logger.experiment.add_text("diagnosis", "\n".join(lines), step)
