"""Exclusive seconds of a fit by the part of the code that spends them.

Functions of the framework and of Lightning are wrapped while they are timed, and restored afterwards.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest import mock

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer import call

from lit_gfs.collectors.env_runner import EnvRunner
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs.tensor import TensorEnv

BASE = "lightning"
"""The time outside of all inner spans: Lightning's loop."""

PARTS: dict[str, str] = {
    "collector": "collector",
    "environment.simulate": "collector",
    "environment.around_simulate": "collector",
    "policy": "collector",
    "agent.on_collection": "collector",
    "loader": "loader",
    "loader.store": "loader",
    "loader.sample": "loader",
    "loader.returns": "loader",
    "training_step": "learner",
    "target_sync": "learner",
    "backward": "learner",
    "optimizer": "learner",
    "clip_gradients": "learner",
    "zero_grad": "learner",
    BASE: "lightning",
    "batch_to_device": "lightning",
    "learning_rate_schedule": "lightning",
    "logging": "logging",
    "callback_dispatch": "callbacks",
}
"""The part of each span, except for spans with the name of a callback's class."""

CALLBACK_HOOKS = ["on_objective_shift", *(name for name in vars(Callback) if name.startswith("on_"))]


def part_of(span: str) -> str:
    """Return the part that a span belongs to."""
    return PARTS.get(span, "callbacks")


class Spans:
    """Seconds by name; an inner span pauses the one around it.

    Args:
        clock: Returns the seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = [BASE]
        self._since = 0.0

    def start(self) -> None:
        """Reset all spans, and begin with `BASE`."""
        self.seconds = defaultdict(float)
        self._open = [BASE]
        self._since = self._clock()

    def stop(self) -> dict[str, float]:
        """Return the seconds of all spans since the start; they add up to the time since then."""
        self._switch()
        return dict(self.seconds)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function in a span."""

        @functools.wraps(function)
        def wrapper(*arguments: Any, **keywords: Any) -> Any:
            self._switch()
            self._open.append(name)
            try:
                return function(*arguments, **keywords)
            finally:
                self._switch()
                self._open.pop()

        return wrapper

    def _switch(self) -> None:
        now = self._clock()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


class Instruments:
    """Wraps functions of a fit, between `start` and `stop`.

    Args:
        trainer: The Trainer of the fit; its datamodule has already collected.
        agent: Its agent.
        unwatched: A callback without its own span.
        clock: Returns the seconds.
    """

    def __init__(
        self, trainer: Trainer, agent: LightningModule, unwatched: Callback, clock: Callable[[], float]
    ) -> None:
        self.spans = Spans(clock)
        self._patches = ExitStack()
        self._targets = self._find_targets(trainer, agent, unwatched)

    def start(self) -> None:
        """Install the wrappers and begin to time."""
        for owner, name, span in self._targets:
            self._patches.enter_context(mock.patch.object(owner, name, self._wrapped(owner, name, span)))
        self.spans.start()

    def stop(self) -> dict[str, float]:
        """Return the seconds of all spans, and restore the functions."""
        seconds = self.spans.stop()
        self._patches.close()
        return seconds

    def _wrapped(self, owner: Any, name: str, span: str) -> Callable[..., Any]:
        function = getattr(owner, name)
        if span != "optimizer":
            return self.spans.timed(span, function)

        @functools.wraps(function)  # keeps the mark of learning rate schedules
        def step(closure: Callable[[], Any]) -> Any:
            # Forward and backward pass run inside of the optimizer's step.
            return timed_step(self.spans.timed(BASE, closure))

        timed_step = self.spans.timed(span, function)
        return step

    @staticmethod
    def _find_targets(
        trainer: Any, agent: LightningModule, unwatched: Callback
    ) -> list[tuple[Any, str, str]]:
        data, loader, kind = trainer.datamodule, trainer.train_dataloader, type(agent)
        env = type(data.runner.env)
        stepping = {"_send": "simulate", "_receive": "simulate"}
        stepping |= {"begin": "around_simulate", "finish": "around_simulate"}
        if issubclass(env, TensorEnv):
            stepping = {"advance": "simulate"}
        targets = [
            (EnvRunner, "collect", "collector"),
            (env, "step_and_maybe_reset", "environment.around_simulate"),
            *((env, name, f"environment.{part}") for name, part in stepping.items()),
            (Policy, "forward", "policy"),
            (data.runner._collector, "_act", "policy"),  # where it calls the policy's function itself
            (kind, "on_collection_start", "agent.on_collection"),
            (kind, "on_collection_end", "agent.on_collection"),
            (type(loader), "__next__", "loader"),
            (kind, "training_step", "training_step"),
            (kind, "on_train_batch_start", "target_sync"),
            (kind, "backward", "backward"),
            (kind, "configure_gradient_clipping", "clip_gradients"),
            (kind, "optimizer_zero_grad", "zero_grad"),
            (kind, "lr_scheduler_step", "learning_rate_schedule"),
            (kind, "record", "logging"),
            (kind, "on_train_batch_end", "logging"),
            (trainer.strategy, "batch_to_device", "batch_to_device"),
            (call, "_call_callback_hooks", "callback_dispatch"),
            *((optimizer, "step", "optimizer") for optimizer in trainer.optimizers),
            *((logger, name, "logging") for logger in trainer.loggers for name in ("log_metrics", "save")),
        ]
        if (buffer := getattr(loader, "buffer", None)) is not None:
            targets += [(type(buffer), "extend", "loader.store"), (type(buffer), "sample", "loader.sample")]
        else:
            targets.append((kind, "process_rollout", "loader.returns"))
        for callback in trainer.callbacks:
            if callback is not unwatched:
                targets += [
                    (callback, name, type(callback).__name__)
                    for name in CALLBACK_HOOKS
                    if getattr(type(callback), name, None) is not getattr(Callback, name, None)
                    and callable(getattr(callback, name))  # an idle hook is not called
                ]
        # A missing name is an error here; otherwise its time would count as another span's.
        return targets
