"""Packages, machine and date of a study."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

PACKAGES = ("torch", "torchrl", "lightning", "gymnasium", "ale-py", "dm_control", "numpy")


def environment() -> dict[str, str]:
    """Return the commit, the versions of packages, the machine, and the date."""
    # Imported late: subcommands that run nothing do without PyTorch.
    import torch

    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    has_gpu = torch.cuda.is_available()
    return {
        "lit_gfs": importlib.metadata.version("lit-gfs"),
        "commit": commit(),
        "python": platform.python_version(),
        **packages,
        "system": platform.platform(),
        "CPU cores": str(os.cpu_count()),
        "device": torch.cuda.get_device_name() if has_gpu else f"CPU, {platform.machine()}",
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def commit() -> str:
    """Return the commit of the checkout that runs, with ``-dirty`` if files in it have changed."""
    here = Path(__file__)
    try:
        # An installed package may lie inside the checkout of another project.
        _git(here.parent, "ls-files", "--error-unmatch", here.name)
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return "not a checkout"


def _git(directory: Path, *arguments: str) -> str:
    command = ["git", "-C", str(directory), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
