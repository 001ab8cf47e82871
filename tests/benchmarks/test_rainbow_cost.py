"""The benchmark of Rainbow's parts measures every part on every network."""

from __future__ import annotations

import importlib
from pathlib import Path


def test_every_part_is_measured(tmp_path: Path) -> None:
    rainbow_cost = importlib.import_module("rainbow_cost")
    page = tmp_path / "cost.md"

    rainbow_cost.main(
        ["--turns=2", "--updates=1", "--transitions=800", "--networks", "mlp_2x256", f"--markdown={page}"]
    )

    rows = [line for line in page.read_text().splitlines() if line.startswith("| mlp_2x256")]
    assert [row.split(" | ")[1] for row in rows] == list(rainbow_cost.PARTS)
    assert rows[0].startswith("| mlp_2x256 | plain | 1.00 [1.00, 1.00] |")
