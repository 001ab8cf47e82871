"""Tables are read back as they were written."""

from __future__ import annotations

import math
from pathlib import Path

from lit_gfs.study.table import (
    FAILED,
    FINISHED,
    MISSING,
    Curve,
    GradientNorms,
    Run,
    Table,
    read_table,
    write_table,
)


def test_a_table_survives_the_files(tmp_path: Path) -> None:
    def levels(seed: str) -> dict[str, str]:
        return {"task": "a, b", "scale": "base", "recipe": "gfs", "seed": seed}

    table = Table(
        runs=[
            Run("a-0", levels("0"), FINISHED, "", 1_000, 1 / 3, -0.1, None, 42, 1.5),
            Run("a-1", levels("1"), FAILED, 'killed, with "quotes"'),
            Run("a-2", levels("2"), MISSING),
        ],
        curves={
            ("a-0", "eval/episode_return"): Curve([100, 200], [0.5, 1.25], [0.1, math.inf]),
            ("a-0", "train/loss"): Curve([100], [0.5], [1e-30]),
        },
        gradient_norms={
            "a-0": GradientNorms(
                ["trunk.0", "head"], [1, 2], [[1.0, 2.0], [3.0, 4.0]], [[0.1, 0.2], [0.0, 0.4]]
            )
        },
    )

    write_table(tmp_path, table)

    assert read_table(tmp_path) == table
    assert {path.name for path in tmp_path.iterdir()} == {"runs.csv", "curves.csv", "gradient_norms.csv"}


def test_a_norm_that_is_not_known_stays_so(tmp_path: Path) -> None:
    norms = GradientNorms(["head"], [1], [[math.nan]], [[0.5]])

    write_table(tmp_path, Table([], {}, {"a": norms}))

    assert math.isnan(read_table(tmp_path).gradient_norms["a"].raw[0][0])
