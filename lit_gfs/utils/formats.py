"""Formats of durations, rates, returns and paths for the user."""

from __future__ import annotations

import os
from pathlib import Path

from lit_gfs.utils.working_directory import absolute_path, working_directory


def format_duration(seconds: float | None) -> str:
    """Write seconds as ``4:05``, ``1:04:05`` or ``2d 01:04``; ``-:--`` if unknown."""
    if seconds is None:
        return "-:--"
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d {hours % 24:02}:{minute:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def format_return(value: float | None) -> str:
    """Write a return with about four significant digits; ``-`` without one."""
    if value is None:
        return "-"
    decimals = 0 if abs(value) >= 1000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{decimals}f}"


def format_rate(rate: float | None) -> str:
    """Write steps per second; ``-/s`` if unknown."""
    return "-/s" if rate is None else f"{rate:,.{0 if rate >= 10 else 1}f}/s"


def relative_path(path: str | os.PathLike[str]) -> str:
    """Write a path relative to the working directory if it lies inside it, and absolute otherwise."""
    if "://" in str(path):
        return str(path)
    absolute, here = Path(absolute_path(path)), working_directory()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else absolute)
