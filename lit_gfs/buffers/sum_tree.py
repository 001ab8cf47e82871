"""A sum tree: numbers of which each can be changed, or found by a prefix of their sum, in O(log n)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.int64]
Values = NDArray[np.float64]


class SumTree:
    """Non-negative numbers, the leaves of a binary tree whose inner nodes are sums of their two children.

    Every sum is computed anew from its children, never by adding a difference. So rounding errors do not
    grow, and equal leaves always give equal trees. All methods work on many leaves at once, level by level.

    Args:
        capacity: Number of leaves; all of them begin at 0.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._depth = max(0, capacity - 1).bit_length()
        self._first_leaf = 1 << self._depth
        # Node 1 is the root; the children of node i are 2 i and 2 i + 1.
        self._nodes: Values = np.zeros(2 * self._first_leaf)

    @property
    def total(self) -> float:
        """The sum of all leaves."""
        return float(self._nodes[1])

    def __getitem__(self, index: Indices | slice) -> Values:
        """Return copies of leaves."""
        leaves = self._nodes[self._first_leaf : self._first_leaf + self.capacity]
        return leaves[index].copy()

    def __setitem__(self, index: Indices, values: Values | float) -> None:
        """Change leaves. Where an index comes twice, the last value counts."""
        node = np.asarray(index).reshape(-1) + self._first_leaf
        self._nodes[node] = values
        for _ in range(self._depth):
            node = node >> 1
            self._nodes[node] = self._nodes[2 * node] + self._nodes[2 * node + 1]

    def find(self, prefix: Values) -> Indices:
        """Find the leaves at which the running sum of all leaves first exceeds given numbers.

        A leaf of 0 is never found, also where rounding errors add up; some leaf must be positive.

        Args:
            prefix: Numbers from 0 to below `total`, ``(n,)``.

        Returns:
            The indices of the leaves, ``(n,)``.
        """
        node = np.ones(prefix.shape, np.int64)
        for _ in range(self._depth):
            left = 2 * node
            is_right = (prefix >= self._nodes[left]) & (self._nodes[left + 1] > 0)
            # A left side of 0 has nothing to find, whatever rounding has left of the prefix.
            is_right |= self._nodes[left] == 0
            prefix = prefix - np.where(is_right, self._nodes[left], 0)
            node = left + is_right
        return node - self._first_leaf
