"""Turns of a fit and of the bare loops, within one run of the fit."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from _throughput_raw import Clock, RawParts, synchronize
from _throughput_spans import Instruments
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
"""Clocks: wall time, or the processor time of this process."""

BARE = ("environment", "policy", "update")
"""The bare loops."""

WARMUP_SHARE = 0.1
"""Warm-up after the fit's first update, as a share of the measuring time."""

TURN_SECONDS = 0.5
"""Seconds of a segment of the fit, at least one rollout; a bare loop gets half of that."""

FEWEST_ROUNDS = 3


def segment_seconds(seconds: float) -> float:
    """Return the minimum length of a segment, for a total measuring time, both in seconds."""
    return min(TURN_SECONDS, seconds / (4 * FEWEST_ROUNDS))


class Segment(NamedTuple):
    """A stretch of the fit: whole rollouts with all their updates."""

    seconds: float
    env_steps: int
    updates: int

    @property
    def seconds_per_step(self) -> float:
        """Seconds per environment step."""
        return self.seconds / self.env_steps


class Round(NamedTuple):
    """One turn of all measurements, in seconds per environment step."""

    fit: Segment
    timed: Segment
    spans: dict[str, float]
    environment: float
    policy: float
    update: float

    @property
    def limit(self) -> float:
        """The sum of the bare loops."""
        return self.environment + self.policy + self.update


class Turns(Callback):
    """Runs segments of the fit and the bare loops in turns; ends the run when the time is over.

    A segment begins and ends with the first update on new experience.

    Args:
        seconds: Measuring time (wall time), without set-up and warm-up.
        clock: Returns the seconds for segments and loops.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self.seconds = seconds
        self._clock = clock
        self.turn_seconds = segment_seconds(seconds)
        self.rounds: list[Round] = []
        self.simulator = ""
        self._raw: RawParts | None = None
        self._instruments: Instruments | None = None
        self._fit: Segment | None = None
        self._bare: dict[str, float] = {}
        self._known_steps = -1
        self._first_batch_at = 0.0
        self._measuring_since = 0.0
        self._began: tuple[float, int, int] | None = None

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if data.env_steps == self._known_steps:
            return
        first, self._known_steps = self._known_steps < 0, data.env_steps
        if first:
            self._first_batch_at = time.perf_counter()
        elif self._began is None:
            if time.perf_counter() - self._first_batch_at >= WARMUP_SHARE * self.seconds:
                self._prepare(trainer, pl_module, batch)
                self._begin(trainer)
        elif self._clock() - self._began[0] >= self.turn_seconds:
            self._end_turn(trainer)

    def _prepare(self, trainer: Trainer, pl_module: Any, batch: Any) -> None:
        self._raw = RawParts(trainer, pl_module, batch, self._clock)
        self.simulator = self._raw.simulator
        self._instruments = Instruments(trainer, pl_module, unwatched=self, clock=self._clock)
        self._measure_raw()
        self._measuring_since = time.perf_counter()

    def _begin(self, trainer: Trainer) -> None:
        synchronize()
        self._began = (self._clock(), self._known_steps, trainer.global_step)

    def _end_turn(self, trainer: Trainer) -> None:
        assert self._began is not None
        assert self._instruments is not None
        synchronize()
        now, (began, steps, updates) = self._clock(), self._began
        segment = Segment(now - began, self._known_steps - steps, trainer.global_step - updates)
        if self._fit is None:
            self._fit = segment
            self._measure_raw()
            self._instruments.start()
        else:
            spans = self._instruments.stop()
            self._add_round(self._fit, segment, spans)
            self._fit = None
            measured = time.perf_counter() - self._measuring_since
            if len(self.rounds) >= FEWEST_ROUNDS and measured >= self.seconds:
                trainer.should_stop = True
        self._begin(trainer)

    def _measure_raw(self) -> None:
        assert self._raw is not None
        seconds = self.turn_seconds / 2
        self._bare = {
            "environment": self._raw.environment_seconds(seconds),
            "policy": self._raw.policy_seconds(seconds),
            "update": self._raw.update_seconds(seconds),
        }

    def _add_round(self, fit: Segment, timed: Segment, spans: dict[str, float]) -> None:
        self.rounds.append(
            Round(
                fit=fit,
                timed=timed,
                spans={name: seconds / timed.env_steps for name, seconds in spans.items()},
                environment=self._bare["environment"],
                policy=self._bare["policy"],
                update=self._bare["update"]
                * (fit.updates + timed.updates)
                / (fit.env_steps + timed.env_steps),
            )
        )
