"""The package as it is imported, for the API reference: with callbacks/ and datamodules/ in it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = ("callbacks", "datamodules")


def on_startup(**_: Any) -> None:
    """Copy the sources to build/reference; mkdocstrings reads them there and imports nothing."""
    package = ROOT / "build/reference/lit_gfs"
    shutil.rmtree(package, ignore_errors=True)
    shutil.copytree(ROOT / "lit_gfs", package)
    for name in OUTSIDE:
        shutil.copytree(ROOT / name, package / name)
