"""The ranking of stabilizers, from summaries whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from lit_gfs.configuration.config_files import find_config
from lit_gfs.study.planning.plan import read_study

GAINS = ("stability_gain", "speed_up")


def group(
    recipe: str, stratum: str, scale: str, score: float, seconds: float, failed: int = 0
) -> dict[str, Any]:
    final = {"value": 100 * score, "interval": [100 * score - 1, 100 * score + 1]}
    return {
        "recipe": recipe,
        "stratum": stratum,
        "scale": scale,
        "final_score": final,
        "normalized_score": {"value": score},
        "cpu_seconds": seconds,
        "failed": failed,
    }


def write(directory: Path, groups: list[dict[str, Any]]) -> Path:
    estimate = {"value": 0.5, "interval": [0.25, None]}
    aggregates = [
        {
            "recipe": recipe,
            "scale": "deep",
            "set": "all tasks",
            "stability_gain": estimate,
            "speed_up": estimate,
        }
        for recipe in {each["recipe"] for each in groups}
    ]
    directory.mkdir()
    (directory / "summary.json").write_text(json.dumps({"groups": groups, "aggregates": aggregates}))
    return directory


def test_methods_are_ranked_by_their_mean_score(tmp_path: Path) -> None:
    from zoo import as_table, read_rows

    zoo = write(
        tmp_path / "zoo",
        [
            group("baseline", "pqn_acrobot", "deep", 0.2, 10),
            group("baseline", "pqn_breakout", "deep", 0.4, 10),
            group("redo", "pqn_acrobot", "deep", 0.8, 20, failed=1),
            group("redo", "pqn_breakout", "deep", 0.4, 40),
            group("half", "pqn_acrobot", "deep", 0.9, 20),  # has no runs on the other tasks
            group("baseline", "pqn_acrobot", "small", 1.0, 1),
        ],
    )
    labels = write(
        tmp_path / "labels",
        [group("baseline", "digits", "12x192", 0.3, 10), group("redo", "digits", "12x192", 0.9, 90)],
    )

    rows = read_rows([zoo, labels])

    assert [row.name for row in rows] == ["redo", "baseline"]
    redo, baseline = rows
    assert abs(redo.normalized - 0.7) < 1e-9
    assert abs(redo.price - 8**0.5) < 1e-9  # the square root of 2 x 4, of the first table alone
    assert redo.failed == 1
    assert baseline.price == 1
    assert redo.stability == "50% [25%, inf%]"
    assert redo.scores["digits"] == "90.00 [89.00, 91.00]"
    table = as_table(rows).splitlines()
    assert table[2].startswith("| 1 | redo | 0.70 | 90.00 [89.00, 91.00] | 80 [79, 81] | 40.0 [39.0, 41.0] |")
    assert table[3].startswith("| 2 | **baseline** |")


def test_both_studies_have_the_same_methods() -> None:
    files = (find_config(f"studies/{name}") for name in ("zoo", "zoo_labels"))
    zoo, labels = (read_study(yaml.safe_load(path.read_text())) for path in files)
    assert list(zoo.factors["recipe"]) == list(labels.factors["recipe"])
