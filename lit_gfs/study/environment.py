"""Packages, machine and date of a study."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime

import torch

PACKAGES = ("torch", "torchrl", "lightning", "gymnasium", "ale-py", "dm_control", "numpy")


def environment() -> dict[str, str]:
    """Return the versions of packages, the machine, and the date."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    has_gpu = torch.cuda.is_available()
    return {
        "lit_gfs": importlib.metadata.version("lit-gfs"),
        "python": platform.python_version(),
        **packages,
        "system": platform.platform(),
        "CPU cores": str(os.cpu_count()),
        "device": torch.cuda.get_device_name() if has_gpu else f"CPU, {platform.machine()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
