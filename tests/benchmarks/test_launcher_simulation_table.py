"""The table of simulated studies."""

from __future__ import annotations

from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs/results/launcher_simulation.md"


def test_faults_cost_time_and_no_cell(tmp_path: Path) -> None:
    from launcher_simulation import Scenario, simulate

    calm = simulate(Scenario(40, 4), seed=0)
    assert 1 <= calm.makespan < 2
    assert (calm.restarts, calm.lost_work) == (0, 0)
    bad = simulate(Scenario(40, 4, deaths=10, losses=1, drivers=2), seed=0)
    assert bad.makespan > calm.makespan
    assert bad.restarts > 10
    assert 0 < bad.lost_work < 0.5
    on_disk = simulate(Scenario(3, 1, deaths=10), seed=0, directory=tmp_path)
    in_memory = simulate(Scenario(3, 1, deaths=10), seed=0)
    assert on_disk[:3] == in_memory[:3]
    assert on_disk.driver_seconds > 0


def test_the_page_has_a_row_of_every_scenario(capsys: pytest.CaptureFixture[str]) -> None:
    from launcher_simulation import HEAD, SCENARIOS

    page = PAGE.read_text(encoding="utf-8")
    table = page.split(f"| {' | '.join(HEAD)} |")[1].split("\n\n")[0].strip().split("\n")[1:]
    assert [row.split(" | ")[:2] for row in table] == [
        [f"| {scenario.cells:,}", str(scenario.machines)] for scenario in SCENARIOS
    ]
