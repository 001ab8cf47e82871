"""CartPole that does something else in one of its steps: ``--data.env_id support.faulty_envs:Faulty-v0``."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from lit_gfs.errors import UserError


class Faulty(CartPoleEnv):
    """Fails in step ``at`` of the ``number``-th environment that the process makes, or when that is made.

    Of several processes, the one of local rank ``rank`` does, or all of them.

    One is made to look at, then those to learn from, then those to evaluate in.
    """

    made = itertools.count()

    def __init__(
        self, fault: str = "none", number: int = 1, at: int = 1, rank: int | None = None, **options: Any
    ) -> None:
        super().__init__(**options)
        self._number = next(self.made)
        is_meant = rank is None or os.environ.get("LOCAL_RANK", "0") == str(rank)
        self._fault = fault if self._number == number and is_meant else "none"
        self._at = at
        self._steps = 0
        if self._fault == "chdir at once":
            _go_elsewhere()
        if self._fault == "init":
            raise RuntimeError("no track\nto run on")

    def reset(self, **options: Any) -> Any:
        if self._fault == "reset":
            _raise()
        return super().reset(**options)

    def close(self) -> None:
        if self._fault in CLOSINGS:
            CLOSINGS[self._fault]()
        super().close()

    def step(self, action: Any) -> Any:
        self._steps += 1
        is_due = self._steps == self._at
        if is_due and self._fault in FAULTS:
            FAULTS[self._fault]()
        observation, *outcome = super().step(action)
        if is_due and self._fault == "nan":
            observation[2] = float("nan")
        return observation, *outcome


def _raise() -> None:
    raise ZeroDivisionError("no pole\nto balance")


def _refuse() -> None:
    raise UserError("expected another environment")


def _wait() -> None:
    time.sleep(1000)


def _wait_stubbornly() -> None:
    """Wait in Python code that takes an exception for an episode's end."""
    while True:
        try:
            time.sleep(1000)
        except Exception:
            continue


def _lock() -> None:
    """Wait in compiled code that no signal ends: for a lock that is held already."""
    mutex = ctypes.create_string_buffer(64)
    library = ctypes.CDLL(None)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def _protect() -> None:
    """Have the directories of all runs take no new file."""
    for run in Path("runs").glob("*/*"):
        run.chmod(0o555)


def _exit() -> None:
    sys.exit(7)


class Panic(BaseException):
    """What a library in another language may raise: no Exception."""


def _panic() -> None:
    raise Panic("index out of bounds")


def _go_elsewhere() -> None:
    os.chdir("/")


def _remove() -> None:
    shutil.rmtree("runs/run")


def _replace() -> None:
    for run in Path("runs").glob("*/*"):
        shutil.rmtree(run)
        run.touch()


def _send(number: int, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)


FAULTS = {
    "raise": _raise,
    "refuse": _refuse,
    "wait": _wait,
    "wait stubbornly": _wait_stubbornly,
    "lock": _lock,
    "protect": _protect,
    "SIGKILL": lambda: _send(signal.SIGKILL),
    "exit": _exit,
    "panic": _panic,
    "chdir": _go_elsewhere,
    "remove": _remove,
    "replace": _replace,
    "SIGTERM": lambda: _send(signal.SIGTERM),
    "SIGHUP": lambda: _send(signal.SIGHUP),
    "SIGINT": lambda: _send(signal.SIGINT),
    "SIGINT twice": lambda: _send(signal.SIGINT, 2),
}

CLOSINGS = {
    "raise on closing": _raise,
    "exit on closing": _exit,
    "wait on closing": _wait,
    "lock on closing": _lock,
}

gymnasium.register("Faulty-v0", entry_point="support.faulty_envs:Faulty", max_episode_steps=500)
