"""The base of named callbacks: its name, its pace of writing, and both after a resume."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lit_gfs.callbacks.named_callback import NamedCallback
from lit_gfs.errors import UserError


class Noted(NamedCallback):
    """Notes the steps at which it writes, and begins as an intervention does."""

    def __init__(self, name: str = "noted") -> None:
        super().__init__(name)
        self.steps: list[int] = []

    def _write(self, trainer: Any, pl_module: Any) -> None:
        self.steps.append(trainer.global_step)

    def _saved_state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        restored = self._take_restored(trainer)
        self.steps = [] if restored is None else list(restored["steps"])


def train(callback: Noted, first: int, steps: list[int], every: int = 4) -> None:
    """Begin after the step ``first``; each batch ends at one of the steps."""
    trainer: Any = SimpleNamespace(global_step=first, log_every_n_steps=every)
    callback.on_train_start(trainer, None)
    for trainer.global_step in steps:
        callback.on_train_batch_end(trainer, None, None, None, 0)  # type: ignore[arg-type]


def test_it_has_a_name_which_is_part_of_its_key() -> None:
    assert Noted("a").state_key != Noted("b").state_key
    with pytest.raises(UserError, match="name is empty"):
        Noted("")


def test_it_writes_at_multiples_of_the_steps_and_at_the_end() -> None:
    callback = Noted()
    train(callback, 0, [1, 3, 5, 6, 9])  # two steps in a batch: none ends at 4 or 8
    assert callback.steps == [5, 9]
    callback.on_train_end(SimpleNamespace(global_step=10, log_every_n_steps=4), None)  # type: ignore[arg-type]
    assert callback.steps == [5, 9, 10]


def test_a_resumed_run_writes_where_the_uninterrupted_one_does() -> None:
    whole, resumed = Noted(), Noted()
    train(whole, 0, [3])
    state = whole.state_dict()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state  # until training starts
    # The checkpoint is of step 4, before that was written.
    train(resumed, 4, [4, 7])
    assert resumed.steps == [4]
    # Without a state, the pace begins at the present step.
    train(fresh := Noted(), 4, [4, 7, 8])
    assert fresh.steps == [8]
