"""Check a long run for leaks: resident memory and open file descriptors of DQN on Pong, through ``fit``.

The run is a separate process, with checkpoints by the clock. Its small replay buffer is full within a minute.
After a given time, all objects of first use exist (the environments of the first evaluation, a checkpoint's
buffers), so memory and descriptors that grow after it are leaks. The verdict compares medians of the first
and the last quarter of the samples since that time.

    python benchmarks/soak.py --minutes 120 --checkpoint-minutes 5 --json soak.json

It ends with status 0 if nothing grew, else with 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml

FOREVER = 10**9  # environment steps; the clock ends the run
MIB = 2**20


def configuration(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Return the options on top of ``dqn_pong``."""
    every = {
        "dirpath": str(directory / "checkpoints"),
        "filename": "soak",
        "train_time_interval": str(timedelta(minutes=arguments.checkpoint_minutes)),
        "enable_version_counter": False,
    }
    return {
        "data": {
            "init_args": {
                "env_id": arguments.env_id,
                "total_steps": FOREVER,
                "buffer_size": arguments.buffer_size,
                "learning_starts": min(1_000, arguments.buffer_size),
                "eval_every": arguments.eval_every,
                "eval_episodes": 1,
            }
        },
        "trainer": {
            "max_time": {"seconds": round(60 * arguments.minutes)},
            "enable_progress_bar": False,
            "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": every}],
        },
        "run": {"root": str(directory / "runs")},
    }


def sample(process: int, began: float) -> dict[str, float]:
    """Read data of a process from the kernel: resident memory in MiB, descriptors, threads."""
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    fields = {
        name: value.split()[0] for name, _, value in (line.partition(":") for line in status) if value.split()
    }
    return {
        "seconds": round(time.monotonic() - began, 1),
        "resident_mib": int(fields["VmRSS"]) * 1024 / MIB,
        "descriptors": len(list(Path(f"/proc/{process}/fd").iterdir())),
        "threads": int(fields["Threads"]),
    }


def judge(samples: list[dict[str, float]], allowed_mib: float) -> dict[str, Any]:
    """Compare the first quarter of samples with the last one, by their medians.

    Args:
        samples: Samples of `sample`, in order, of the settled run.
        allowed_mib: Allowed growth of memory, in MiB.
    """
    quarter = len(samples) // 4
    if not quarter:
        return {"ok": False, "reason": f"{len(samples)} samples of a settled run are too few"}
    growth = {
        key: statistics.median(late[key] for late in samples[-quarter:])
        - statistics.median(early[key] for early in samples[:quarter])
        for key in ("resident_mib", "descriptors", "seconds")
    }
    return {
        "ok": growth["resident_mib"] <= allowed_mib and growth["descriptors"] <= 0,
        "resident_growth_mib": round(growth["resident_mib"], 1),
        "resident_growth_mib_per_hour": round(growth["resident_mib"] / growth["seconds"] * 3600, 1),
        "more_descriptors": growth["descriptors"],
        "allowed_growth_mib": allowed_mib,
    }


def soak(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    overlay = directory / "soak.yaml"
    overlay.write_text(yaml.safe_dump(configuration(arguments, directory)))
    options = ["--config", "dqn_pong", "--config", str(overlay), "--threads", str(arguments.threads)]
    samples: list[dict[str, float]] = []
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-m", "lit_gfs", "fit", *options], stdout=sys.stderr) as process:
        while process.poll() is None:
            try:
                samples.append(sample(process.pid, began))
            except (FileNotFoundError, KeyError, ProcessLookupError):
                break  # it has just ended
            time.sleep(arguments.sample_seconds)
    written = [path for path in (directory / "checkpoints").rglob("*") if path.is_file()]
    settled = [each for each in samples if each["seconds"] >= 60 * arguments.settle_minutes]
    verdict = judge(settled, arguments.allowed_mib)
    verdict["ok"] = verdict["ok"] and process.returncode == 0 and bool(written)
    return {
        "verdict": verdict,
        "status": process.returncode,
        "minutes": arguments.minutes,
        "checkpoint_minutes": arguments.checkpoint_minutes,
        "buffer_size": arguments.buffer_size,
        "checkpoints_mib": round(sum(path.stat().st_size for path in written) / MIB, 1),
        "settle_minutes": arguments.settle_minutes,
        "samples": samples,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--checkpoint-minutes", type=float, default=5.0)
    parser.add_argument("--settle-minutes", type=float, default=15.0, help="not judged")
    parser.add_argument("--env-id", default="ALE/Pong-v5")
    parser.add_argument("--buffer-size", type=int, default=2_000, help="transitions")
    parser.add_argument("--eval-every", type=int, default=10_000, help="environment steps")
    parser.add_argument("--sample-seconds", type=float, default=1.0)
    parser.add_argument("--allowed-mib", type=float, default=32.0, help="growth that is no leak")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        result = soak(arguments, Path(directory))
    text = json.dumps(result, indent=2)
    if arguments.json:
        arguments.json.write_text(text + "\n")
        text = json.dumps({**result, "samples": len(result["samples"])}, indent=2)
    print(text)
    raise SystemExit(0 if result["verdict"]["ok"] else 1)


if __name__ == "__main__":
    main()
