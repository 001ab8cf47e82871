"""Several processes of one run: which is the first, what each has to do, what all of them have."""

from __future__ import annotations

import os
from typing import Any

from torch import distributed

_RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK")
"""What torchrun, Lightning or a user tells a process of its place."""
_CLUSTER_RANKS = ("SLURM_PROCID", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""What those say that start the tasks of a job."""


def is_first_process() -> bool:
    """Return whether this process is a run's only one or its rank zero, before there is a Trainer to ask."""
    return all(os.environ.get(name, "0") == "0" for name in (*_RANKS, *_CLUSTER_RANKS))


def share(total: int, rank: int, world_size: int) -> int:
    """Return how many of ``total`` things fall to a process; the lower ranks take the remainder.

    Args:
        total: How many there are.
        rank: The process, from 0 to ``world_size - 1``.
        world_size: How many processes there are.
    """
    return total // world_size + (rank < total % world_size)


def gather(value: Any) -> list[Any]:
    """Return what each process has, by rank, in all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered
