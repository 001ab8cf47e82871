"""The driver against simulated machines: whatever happens, every cell ends once, with the same result."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gfs.study.driver import LEASES_PER_SECOND
from lit_gfs.study.lease import Lease
from lit_gfs.study.results.table import FAILED, FINISHED

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))
from _simulated_cluster import Cluster, Fault, random_faults
from _simulated_driver import SimulatedFiles, SimulatedLauncher, drive


@pytest.fixture(scope="module", autouse=True)
def _fewer_looks() -> Iterator[None]:
    """Make the driver look around less often, only for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lit_gfs.study.driver.POLL_SECONDS", 4.0)
        yield


KINDS = ("kill", "terminate", "lost", "unheard", "stall", "unheard stall")

faults = st.builds(Fault, st.sampled_from(KINDS), st.floats(0, 400))


def settle(cluster: Cluster, seconds: float) -> None:
    """Let time pass without a driver."""
    cluster.advance(cluster.now + seconds, lambda: False)


def check(cluster: Cluster, retries: int) -> None:
    """Check what has to hold after the last driver has come to its end."""
    assert cluster.violations == []
    assert cluster.results.keys() == cluster.durations.keys()
    assert max(cluster.begun_by.values(), default=0) <= retries + 1
    for name, result in cluster.results.items():
        if result.status == FINISHED:
            # No work is done after the end: a cell begins once, and again after each end without a result.
            assert cluster.begun[name] <= cluster.deaths[name] + cluster.outdone[name] + 1
    settle(cluster, 10_000)
    assert cluster.violations == []
    assert not cluster.leases.keys() - {name for name, result in cluster.results.items() if result.error}


@settings(max_examples=150, deadline=None)
@given(
    durations=st.lists(st.floats(1, 600), min_size=1, max_size=12),
    machines=st.lists(st.sampled_from([1.0, 1.0, 0.2]), min_size=1, max_size=4),
    places=st.integers(1, 3),
    jobs=st.integers(1, 12),
    befalls=st.dictionaries(st.integers(0, 11), st.lists(faults, max_size=4), max_size=12),
    losses=st.lists(st.tuples(st.floats(0, 900), st.floats(0, 200), st.booleans()), max_size=3),
    broken=st.lists(st.tuples(st.floats(0, 1000), st.integers(0, 3)), max_size=3),
)
def test_faults_change_no_result(
    durations: list[float],
    machines: list[float],
    places: int,
    jobs: int,
    befalls: dict[int, list[Fault]],
    losses: list[tuple[float, float, bool]],
    broken: list[tuple[float, int]],
) -> None:
    names = [f"cell {index}" for index in range(len(durations))]

    def fault_of(cell: str, attempt: int) -> Fault | None:
        befallen = befalls.get(int(cell.split()[1]), [])
        return befallen[attempt] if attempt < len(befallen) else None

    failing = names[::5]
    retries = 4 + len(broken)  # as many as there may be faults of one cell
    cluster = Cluster(dict(zip(names, durations, strict=True)), machines, places, fault_of, failing)
    for moment, machine in broken:
        cluster.at(moment, partial(cluster.lose_machine, machine % len(machines)))

    for after, gap, survives in losses:
        launcher = SimulatedLauncher(cluster, "one", survives)
        drive(cluster, launcher, jobs, retries, cluster.now + after)
        settle(cluster, gap)
    assert drive(cluster, SimulatedLauncher(cluster, "last"), jobs, retries)

    check(cluster, retries)
    assert {name: result.status for name, result in cluster.results.items()} == {
        name: FAILED if name in failing else FINISHED for name in names
    }


@settings(max_examples=30, deadline=None)
@given(
    retries=st.integers(0, 3), deaths=st.integers(0, 5), kind=st.sampled_from(["kill", "terminate", "lost"])
)
def test_retries_are_bounded(retries: int, deaths: int, kind: str) -> None:
    def fault_of(cell: str, attempt: int) -> Fault | None:
        return Fault(kind, 5) if cell == "bad" and attempt < deaths else None

    cluster = Cluster({"bad": 100.0, "good": 100.0}, [1.0], 2, fault_of)

    assert drive(cluster, SimulatedLauncher(cluster), 2, retries)

    check(cluster, retries)
    assert cluster.begun == {"bad": min(retries, deaths) + 1, "good": 1}
    bad = cluster.results["bad"]
    assert bad.status == (FINISHED if deaths <= retries else FAILED)
    if deaths > retries:
        what = {"kill": "killed by SIGKILL (out of memory?)", "terminate": "killed by SIGTERM"}
        times = f" {retries + 1} times" if retries else ""
        assert bad.error == what.get(kind, "lost with its machine") + times


def test_the_leases_of_many_cells_are_read_at_a_bounded_rate() -> None:
    reads = Counter[str]()

    class Counted(SimulatedFiles):
        def lease(self, cell: str) -> Lease | None:
            reads[cell] += 1
            return super().lease(cell)

    for cells in (20, 1000):
        reads.clear()
        cluster = Cluster({f"cell {index}": 600.0 for index in range(cells)}, [1.0], cells, lambda *_: None)
        launcher = SimulatedLauncher(cluster)
        assert drive(cluster, launcher, cells, 0, files=Counted(cluster, launcher))
        assert 10 * cells < reads.total() < LEASES_PER_SECOND * 605 + 3 * cells


@pytest.mark.parametrize("seed", [0, 1])
def test_a_thousand_cells_on_a_bad_cluster_with_three_drivers(seed: int) -> None:
    draw = random.Random(seed)
    durations = {f"cell {index}": draw.uniform(60, 600) for index in range(1000)}
    speeds = [draw.choice([1.0, 1.0, 1.0, 0.3]) for _ in range(32)]
    cluster = Cluster(durations, speeds, 4, random_faults(draw, KINDS, 900.0))
    for _ in range(20):
        machine = draw.randrange(32)
        cluster.at(draw.uniform(0, 3000), partial(cluster.lose_machine, machine))

    for name, survives in (("local", False), ("slurm", True)):
        assert not drive(cluster, SimulatedLauncher(cluster, name, survives), 128, 20, cluster.now + 700)
        settle(cluster, 20)
    assert drive(cluster, SimulatedLauncher(cluster, "ray"), 128, 20)

    check(cluster, 20)
    assert all(result.status == FINISHED for result in cluster.results.values())
    assert sum(cluster.deaths.values()) > 200
    assert sum(cluster.outdone.values()) > 0
