"""Tables are read back as they were written."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lit_gfs.errors import UserError
from lit_gfs.study.results.table import (
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
            Run("a-0", levels("0"), FINISHED, "", 1_000, 1 / 3, -0.1, None, 42, 1.5, 2.75, "CartPole-v1"),
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


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("runs.csv", "", "no column 'cell'"),
        ("runs.csv", "cell,task\nx,y\n", "no column 'status'"),
        ("curves.csv", "cell,tag,step,seconds,value\na,b,c,1,2\n", "invalid literal for int"),
        ("curves.csv", "cell,tag,step,seconds,value\na,b\n", "int.. argument must be"),
        ("gradient_norms.csv", "cell,layer,step,raw\n", "no column 'applied'"),
        ("gradient_norms.csv", b"\xff", "codec can't decode"),
    ],
)
def test_what_is_no_table_is_told(tmp_path: Path, name: str, content: str | bytes, problem: str) -> None:
    write_table(tmp_path, Table([], {}, {}))
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(UserError, match=rf"{name}' is no table of a study \(.*{problem}"):
        read_table(tmp_path)


def test_a_norm_that_is_not_known_stays_so(tmp_path: Path) -> None:
    norms = GradientNorms(["head"], [1], [[math.nan]], [[0.5]])

    write_table(tmp_path, Table([], {}, {"a": norms}))

    assert math.isnan(read_table(tmp_path).gradient_norms["a"].raw[0][0])
