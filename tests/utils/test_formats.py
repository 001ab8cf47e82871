"""How a user is shown things."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lit_gfs.utils.formats import format_duration, format_rate, format_return, relative_path


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-:--"), (0.4, "0:00"), (59.6, "1:00"), (245, "4:05"), (3845, "1:04:05"), (176_645, "2d 01:04")],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.00"),
        (-9.87, "-9.87"),
        (123.45, "123.5"),
        (12_345.6, "12,346"),
        (torch.nan, "nan"),
    ],
)
def test_returns(value: float | None, text: str) -> None:
    assert format_return(value) == text


@pytest.mark.parametrize(("rate", "text"), [(None, "-/s"), (0.25, "0.2/s"), (9812.4, "9,812/s")])
def test_rates(rate: float | None, text: str) -> None:
    assert format_rate(rate) == text


def test_paths_are_relative_inside_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert relative_path(tmp_path / "runs" / "a") == "runs/a"
    assert relative_path("runs/../runs/a") == "runs/a"
    assert relative_path(tmp_path.parent) == str(tmp_path.parent)
    assert relative_path("s3://bucket/run") == "s3://bucket/run"
