"""Base of the callbacks that have a name, under which they write and are saved."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from typing_extensions import override

from lit_gfs.errors import UserError
from lit_gfs.metrics.module_protocol import is_log_step


class NamedCallback(Callback):
    """Base of the callbacks with a name, which write while a run trains and go on after a resume.

    It writes every ``Trainer(log_every_n_steps)`` steps, and at the end of training.

    Args:
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If the name is empty.
    """

    def __init__(self, name: str) -> None:
        if not name:
            raise UserError("name is empty; expected one for tags and checkpoint")
        self.name = name
        self._written_at = 0
        """The optimizer step after which it last wrote."""
        self._restored: dict[str, Any] | None = None
        """The state of a checkpoint, until training starts: what it belongs to is built then."""

    # -- for subclasses ----------------------------------------------------------------------------------

    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was gathered since the last time."""
        raise NotImplementedError

    def _saved_state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps of it, besides the pace of writing."""
        raise NotImplementedError

    def _take_restored(self, trainer: Trainer) -> dict[str, Any] | None:
        """Begin to write when training starts; return the state of a checkpoint, if there is one, once."""
        restored, self._restored = self._restored, None
        self._written_at = trainer.global_step if restored is None else restored["written_at"]
        return restored

    # -- Hooks of Lightning ------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        if is_log_step(trainer, self._written_at):
            self._written_at = trainer.global_step
            self._write(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.log_every_n_steps:  # type: ignore[attr-defined]
            self._write(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return self._restored
        return {**self._saved_state(), "written_at": self._written_at}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict
