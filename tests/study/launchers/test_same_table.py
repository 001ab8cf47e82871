"""A study of real fits gives the same tables under every launcher, whatever is lost on the way."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gfs.study.launchers.ray import OBJECT_STORE_BYTES
from lit_gfs.study.lease import read_lease
from lit_gfs.utils.ray_cluster import import_ray, keeping_signals

STUDY: dict[str, Any] = yaml.safe_load(
    """
name: tiny
score: {tag: eval/phase_accuracy, curve_tag: eval/accuracy, x_label: optimizer steps}
factors:
  task:
    digits:
      configs: [label_shuffle]
      options:
        data.samples: 256
        data.shuffle_every: 1
        data.epochs: 3
        data.eval_every: 1
        gfs.gradient_flow.init_args.every_n_steps: 1
      floor: 0.1
      reference: 1
  scale:
    base: {options: {model.trunk.depth: 2, model.trunk.width: 8}}
    large: {options: {model.trunk.depth: 4, model.trunk.width: 16}}
  recipe:
    baseline: {configs: [recipes/baseline]}
    gfs: {configs: [recipes/gfs]}
  seed: [0, 1, 2, 3, 4, 5]
compare: {baseline: baseline, base_scale: base}
"""
)
CELLS = 24
LOCAL = ["--jobs=2"]
SUBMITIT = ["--launcher=slurm", "--slurm.cluster=local", "--jobs=2"]
TIMES = {"runs.csv": {"wall_seconds", "cpu_seconds"}, "curves.csv": {"seconds"}, "gradient_norms.csv": set()}


def start(directory: Path, options: list[str]) -> subprocess.Popen[str]:
    """Start the study's command in a directory."""
    directory.mkdir(exist_ok=True)
    (directory / "tiny.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    command = [sys.executable, "-m", "lit_gfs", "study", "--config", "tiny.yaml", *options]
    with (directory / "printed.txt").open("a") as printed:
        return subprocess.Popen(command, cwd=directory, stdout=printed, stderr=printed, text=True)


def finish(process: subprocess.Popen[str], directory: Path) -> dict[str, list[dict[str, str]]]:
    """Wait for the command; return its tables without times."""
    assert process.wait(timeout=3600) == 0, (directory / "printed.txt").read_text()
    tables = {}
    for name, times in TIMES.items():
        with (directory / "runs/tiny" / name).open(newline="") as file:
            tables[name] = [
                {key: row[key] for key in row if key not in times} for row in csv.DictReader(file)
            ]
    return tables


def wait_for_a_cell_of(process: int, directory: Path) -> None:
    """Wait until a cell of a worker runs, by its lease; the worker is a child of a process."""
    deadline = time.monotonic() + 1800
    while time.monotonic() < deadline:
        for path in directory.glob("runs/tiny/cells/*/lease.json"):
            lease = read_lease(path.parent)
            if lease is not None and parent(parent(lease.pid)) == process:
                return
        time.sleep(0.05)
    raise TimeoutError((directory / "printed.txt").read_text())


def parent(pid: int) -> int:
    """Return the parent of a process, 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def wait_for_results(directory: Path, count: int) -> None:
    deadline = time.monotonic() + 1800
    while len(list(directory.glob("runs/tiny/cells/*/result.json"))) < count:
        assert time.monotonic() < deadline, (directory / "printed.txt").read_text()
        time.sleep(0.1)


@pytest.mark.slow
def test_all_launchers_give_the_same_tables_though_machines_and_the_study_are_lost(tmp_path: Path) -> None:
    local = finish(start(tmp_path / "local", LOCAL), tmp_path / "local")
    assert [row["status"] for row in local["runs.csv"]] == ["finished"] * CELLS

    import_ray("--launcher ray")  # with the study's settings
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": OBJECT_STORE_BYTES}
    with keeping_signals():
        cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        second = cluster.add_node(**node)
        by_ray = tmp_path / "ray"
        process = start(by_ray, ["--launcher=ray", "--address", cluster.address])
        wait_for_results(by_ray, 4)
        wait_for_a_cell_of(second.all_processes["raylet"][0].process.pid, by_ray)
        cluster.remove_node(second, allow_graceful=False)  # in the middle of its cell
        assert finish(process, by_ray) == local
        printed = (by_ray / "printed.txt").read_text()
        assert "lost with its machine (its machine was lost); starts again" in printed
        assert "raylet" not in printed
    finally:
        cluster.shutdown()

    by_submitit = tmp_path / "submitit"
    assert finish(start(by_submitit, SUBMITIT), by_submitit) == local

    by_turns = tmp_path / "by_turns"
    process = start(by_turns, SUBMITIT)
    wait_for_results(by_turns, 4)
    process.send_signal(signal.SIGKILL)  # its jobs go on; the next command finds them
    process.wait()
    assert finish(start(by_turns, LOCAL), by_turns) == local
