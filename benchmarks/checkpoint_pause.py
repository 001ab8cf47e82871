"""Write a full replay memory of stacked frames to disk, checkpoint by checkpoint; print the costs.

    python benchmarks/checkpoint_pause.py --capacity 1_000_000 --new 10_000 --directory /path/to/a/disk

The script fills the memory with noise, a little beyond its capacity, and writes all of it. Then it appends
`--new` transitions before each of `--checkpoints` more checkpoints. A pause is the time that a run waits for
its replay shards and for `last.ckpt`, which holds `--weights_mb` megabytes and the manifest; the older one
stays beside it as `previous.ckpt`. All files are synced to the disk. At the end the script loads everything,
and compares samples from before and after. Memory: 7.3 GB per million transitions. The output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from replay_memory import make_noise

from lit_gfs.buffers.frame_stacks import FrameStackStorage
from lit_gfs.buffers.shards import ReplayShards
from lit_gfs.utils.checksummed_files import read_checksummed, write_checksummed


def write_checkpoint(shards: ReplayShards, storage: FrameStackStorage, weights: torch.Tensor) -> list[float]:
    """Write shards and checkpoint as a run does; return wall and CPU seconds of the pause."""
    last = shards.directory.parent / "last.ckpt"
    start, cpu_start = time.perf_counter(), time.process_time()
    manifest = shards.save(storage)
    if last.exists():
        previous = last.with_name("previous.ckpt")
        previous.unlink(missing_ok=True)
        os.link(last, previous)
    write_checksummed({"state_dict": {"weights": weights}, "replay": manifest}, last)
    return [time.perf_counter() - start, time.process_time() - cpu_start]


def disk_bytes(directory: Path) -> int:
    """Return the size of all files in a directory."""
    return sum(path.stat().st_size for path in directory.iterdir())


def measure(arguments: argparse.Namespace, run: Path) -> dict[str, Any]:
    """Fill, write, load."""
    num_envs = arguments.num_envs
    noise = make_noise(num_envs, arguments.episode_length)
    weights = torch.rand(arguments.weights_mb * 250_000)
    shards = ReplayShards(run / "replay")
    storage = FrameStackStorage(arguments.capacity, num_envs)

    def append(transitions: int) -> None:
        for rollout in islice(noise, transitions // num_envs):
            storage.extend(rollout)

    append(arguments.capacity + arguments.new)
    peak_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    first, _ = write_checkpoint(shards, storage, weights)
    pauses, new_bytes = [], []
    for _ in range(arguments.checkpoints):
        append(arguments.new)
        before = set(shards.directory.iterdir())
        pauses.append(write_checkpoint(shards, storage, weights))
        written = set(shards.directory.iterdir()) - before
        new_bytes.append(sum(path.stat().st_size for path in written))
    peak_after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    index = torch.randint(len(storage), (1000,))
    expected = storage.get(index)
    manifest = read_checksummed(run / "last.ckpt")["replay"]
    storage._empty()
    start = time.perf_counter()
    shards.require_intact(manifest)
    verified = time.perf_counter() - start
    start = time.perf_counter()
    shards.load(storage, manifest)
    loaded = time.perf_counter() - start
    return {
        "capacity": arguments.capacity,
        "num_envs": num_envs,
        "new_transitions": arguments.new,
        "pause_seconds": [round(pause, 3) for pause, _ in pauses],
        "pause_seconds_median": round(median(pause for pause, _ in pauses), 3),
        "pause_cpu_seconds_median": round(median(cpu for _, cpu in pauses), 3),
        "pause_seconds_whole_memory": round(first, 2),
        "written_mb_per_checkpoint": round(median(new_bytes) / 1e6, 1),
        "replay_on_disk_gb": round(disk_bytes(shards.directory) / 1e9, 3),
        "bytes_per_transition": round(disk_bytes(shards.directory) / len(storage), 1),
        "pieces": len(manifest["pieces"]),
        "memory_for_writing_mb": round((peak_after - peak_before) / 1e3),
        "verify_seconds": round(verified, 2),
        "load_seconds": round(loaded, 2),
        "identical_after_loading": bool((storage.get(index) == expected).all()),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--capacity", type=int, default=1_000_000, help="transitions")
    parser.add_argument("--num_envs", type=int, default=16)
    parser.add_argument("--new", type=int, default=10_000, help="transitions between checkpoints")
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--weights_mb", type=int, default=27, help="of the checkpoint; DQN's CNN takes 27")
    parser.add_argument("--episode_length", type=int, default=180, help="steps; Breakout at random has 180")
    parser.add_argument("--directory", help="where to write, in a new directory that is removed at the end")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as run:
        print(json.dumps(measure(arguments, Path(run)), indent=2))


if __name__ == "__main__":
    main()
