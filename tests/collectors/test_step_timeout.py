"""Interruption of slow steps by a signal, which other code may use too."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from types import FrameType

import pytest

from lit_gfs.collectors.step_timeout import StepTimeout
from lit_gfs.envs.activity import Activity, Unresponsive
from lit_gfs.errors import EnvironmentFault


def unwanted(fault: EnvironmentFault) -> None:
    pytest.fail(f"given up: {fault}")


def test_a_step_that_takes_too_long_is_interrupted() -> None:
    step_timeout = StepTimeout(0.1, unwanted)
    activity = Activity()
    step_timeout.watch("Slow-v0", activity)
    try:
        activity.calls, activity.index = 1, 3
        with pytest.raises(Unresponsive, match=r"did not come back from a step within 0\.1 s"):
            time.sleep(30)
    finally:
        activity.calls = 2
        step_timeout.stop()


def test_a_signal_from_elsewhere_reaches_the_previous_handler() -> None:
    seen: list[int] = []

    def requeue(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    before = signal.signal(signal.SIGUSR2, requeue)
    step_timeout = StepTimeout(60.0, unwanted)
    try:
        step_timeout.watch("Quick-v0", Activity())
        signal.raise_signal(signal.SIGUSR2)
        assert seen == [signal.SIGUSR2]
        step_timeout.stop()
        assert signal.getsignal(signal.SIGUSR2) is requeue
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_handler_that_was_set_since_stays() -> None:
    step_timeout = StepTimeout(60.0, unwanted)
    step_timeout.watch("Quick-v0", Activity())
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        step_timeout.stop()
        assert signal.getsignal(signal.SIGUSR2) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
    assert before == step_timeout._on_signal


def test_without_a_previous_handler_the_signal_ends_the_process() -> None:
    program = (
        "import signal; from lit_gfs.collectors.step_timeout import StepTimeout; "
        "from lit_gfs.envs.activity import Activity; "
        "StepTimeout(60.0, print).watch('Quick-v0', Activity()); signal.raise_signal(signal.SIGUSR2)"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=False)
    assert ended.returncode == -signal.SIGUSR2
