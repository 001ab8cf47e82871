"""Ray is imported with the settings of this project, and leaves the signals of the program alone."""

from __future__ import annotations

import os
import signal
import sys
from types import ModuleType

import pytest

from lit_gfs.errors import UserError
from lit_gfs.utils.ray_cluster import SETTINGS, import_ray, keeping_signals


def test_a_missing_ray_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(
        UserError, match=r"^data\.remote_collectors needs the package ray .*'lit-gfs\[ray\]'$"
    ):
        import_ray("data.remote_collectors")


def test_settings_are_those_of_the_user_if_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    niceness = "RAY_worker_niceness"
    monkeypatch.setenv(niceness, "3")
    ray = ModuleType("ray")
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", ModuleType("ray.exceptions"))

    assert import_ray("--launcher ray") is ray
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ[niceness] == "3"


def _replace_handler_and_fail() -> None:
    with keeping_signals():
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise RuntimeError


def test_handlers_of_signals_come_back_also_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(RuntimeError):
        _replace_handler_and_fail()

    assert signal.getsignal(signal.SIGTERM) is before
