"""Several processes of one run: the first one, the share of each, and gathering from all of them."""

from __future__ import annotations

import os
from typing import Any

_RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK")
"""Variables by which torchrun, Lightning or a user give a process its rank."""
_CLUSTER_RANKS = ("SLURM_PROCID", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
"""Variables of programs that start the tasks of a job."""


def is_first_process() -> bool:
    """Return whether this process is the run's only one or its rank zero; needs no Trainer."""
    return all(os.environ.get(name, "0") == "0" for name in (*_RANKS, *_CLUSTER_RANKS))


def share(total: int, rank: int, world_size: int) -> int:
    """Return a process's share of ``total`` items; the lower ranks take the remainder.

    Args:
        total: Number of items.
        rank: Rank of the process, from 0 to ``world_size - 1``.
        world_size: Number of processes.
    """
    return total // world_size + (rank < total % world_size)


def gather(value: Any) -> list[Any]:
    """Return the values of all processes, by rank; all processes must call it."""
    # Imported late: programs that only ask for the first process do without PyTorch.
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    gathered: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(gathered, value)
    return gathered
