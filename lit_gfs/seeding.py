"""Seeds for everything that draws, all derived from the one seed of the run."""

from __future__ import annotations

import os
import random
import zlib

import numpy as np
import torch


def run_seed() -> int:
    """Return the seed of ``seed_everything``, or 0 where none was set."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def derive_seed(*parts: int | str) -> int:
    """Mix a purpose, a run seed, a rank or a step count into one well-spread seed.

    Args:
        parts: What the seed depends on; the order matters. Neighbouring numbers give unrelated seeds
            (``numpy.random.SeedSequence``).

    Returns:
        A seed in ``[0, 2**31)``, which every library accepts.
    """
    entropy = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) % 2**31


def seed_generators(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator is what libraries draw from
    torch.manual_seed(seed)
