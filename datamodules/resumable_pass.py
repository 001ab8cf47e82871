"""Base of the loaders whose pass may be interrupted by a checkpoint and finished after a resume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self


class ResumablePass:
    """A pass of a known number of batches, which goes on where a checkpoint was written.

    A subclass has a length, and a ``__next__`` that ends at this length and calls `_advance` for each batch.

    Args:
        on_last_batch: Called before the last batch of a pass is handed out.
    """

    def __init__(self, on_last_batch: Callable[[], None]) -> None:
        self._on_last_batch = on_last_batch
        self._position = 0
        """Batches of this pass that were handed out."""
        self._is_restored = False

    def __len__(self) -> int:
        raise NotImplementedError

    def __iter__(self) -> Self:
        # Lightning finishes a pass that it was resumed in before it begins another.
        if self._position == len(self) and not self._is_restored:
            self._position = 0
        self._is_restored = False
        return self

    def _advance(self) -> None:
        """Count a batch that is handed out next."""
        self._position += 1
        if self._position == len(self):
            self._on_last_batch()

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the pass, and its length."""
        return {"position": self._position, "length": len(self)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on in the same pass. If passes have another length now, this one is over."""
        same_length = state_dict.get("length", len(self)) == len(self)  # older checkpoints do not tell
        self._position = state_dict["position"] if same_length else len(self)
        self._is_restored = True
