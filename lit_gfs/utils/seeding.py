"""Seeds for all random numbers, derived from the seed of the run."""

from __future__ import annotations

import os
import random
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lit_gfs.errors import require_at_least


def run_seed(seed: int | None = None) -> int:
    """Return a seed that the user gave, or that of ``seed_everything``, or 0.

    Raises:
        UserError: If it is below 0.
    """
    require_at_least(0, seed=seed)
    return (chosen_seed() or 0) if seed is None else seed


def chosen_seed() -> int | None:
    """Return the seed of ``seed_everything``; ``None`` if it was not called."""
    seed = os.environ.get("PL_GLOBAL_SEED")
    return None if seed is None else int(seed)


def derive_seed(*parts: int | str) -> int:
    """Mix a purpose, a run seed, a rank or a step count into one well-spread seed.

    Args:
        parts: The values that determine the seed; the order matters. Neighbouring numbers give unrelated
            seeds (``numpy.random.SeedSequence``).

    Returns:
        A seed in ``[0, 2**31)``, which every library accepts.
    """
    entropy = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in parts]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0]) % 2**31


def seed_generators(seed: int) -> None:
    """Seed the global generators of python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries draw from the global generator
    torch.manual_seed(seed)


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """Return the state of one of NumPy's generators as plain data."""
    return _plain(generator.bit_generator.state)


def set_generator_state(generator: np.random.Generator, state: dict[str, Any]) -> None:
    """Put a generator of the same kind into a state that `generator_state` returned."""
    generator.bit_generator.state = state


def generator_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators of python, numpy and torch, as plain data and tensors.

    Args:
        device: The agent's device; its generator is included.
    """
    kind, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002 - libraries draw from it
    states: dict[str, Any] = {
        "python": _plain(random.getstate()),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), *_plain(rest)],
        "torch": torch.get_rng_state(),
    }
    if device.type != "cpu":
        states["on_device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def set_generator_states(states: dict[str, Any], device: torch.device) -> None:
    """Put the global generators into states that `generator_states` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and "on_device" in states:
        torch.get_device_module(device).set_rng_state(states["on_device"], device)


@contextmanager
def isolated_generators(device: torch.device) -> Iterator[dict[str, Any]]:
    """Restore the states of the global generators at the end, also after an exception.

    Yields:
        These states, see `generator_states`.
    """
    states = generator_states(device)
    try:
        yield states
    finally:
        set_generator_states(states, device)


def _plain(value: Any) -> Any:
    """Return nested tuples as lists and NumPy's numbers as Python's, for a checkpoint."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value
