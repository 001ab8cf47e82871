"""Against the numbers themselves, summed and searched one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_gfs.buffers.sum_tree import SumTree

CHANGES = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(
        st.just(capacity),
        st.lists(
            st.lists(
                st.tuples(st.integers(0, capacity - 1), st.sampled_from([0.0, 1e-6, 0.5, 1.0, 3.0, 1e6])),
                min_size=1,
                max_size=6,
            ),
            min_size=1,
            max_size=8,
        ),
        st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=10),
    )
)


@given(CHANGES)
@settings(max_examples=150, deadline=None)
def test_a_tree_is_a_list_of_numbers(example: tuple[int, list[list[tuple[int, float]]], list[float]]) -> None:
    capacity, changes, shares = example
    tree, numbers = SumTree(capacity), np.zeros(capacity)
    for change in changes:
        for index, value in change:
            numbers[index] = value
        tree[np.array([index for index, _ in change])] = np.array([value for _, value in change])

        assert tree[:].tolist() == numbers.tolist()
        assert tree.total == pytest.approx(numbers.sum(), rel=1e-12)
    if numbers.sum() == 0:
        return
    prefixes = np.array(shares) * tree.total
    found = tree.find(prefixes)

    assert (numbers[found] > 0).all()
    for prefix, index in zip(prefixes, found, strict=True):
        slack = 1e-9 * tree.total
        assert numbers[:index].sum() <= prefix + slack
        assert prefix < numbers[: index + 1].sum() + slack


def test_a_tree_is_a_function_of_its_leaves_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    grown = SumTree(1000)
    for _ in range(300):
        grown[rng.integers(0, 1000, 32)] = rng.random(32) ** 8
    restored = SumTree(1000)
    restored[np.arange(1000)] = grown[:]

    assert np.array_equal(restored._nodes, grown._nodes)


def test_the_ends_of_the_sum_are_found() -> None:
    tree = SumTree(6)
    tree[np.array([1, 4])] = np.array([0.1, 0.2])

    assert tree.find(np.array([0.0, 0.0999, 0.1, np.nextafter(tree.total, 0), tree.total])).tolist() == [
        1,
        1,
        4,
        4,
        4,
    ]
