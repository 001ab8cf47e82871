"""Tensors of equal shape as one batch of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_gfs.functional.stacks import like, stacked, stacks_of, unstack_


def names(**tensors: Tensor) -> list[list[str]]:
    return [list(group) for group in stacks_of(tensors)]


def test_a_kernel_joins_the_matrices_of_its_shape() -> None:
    found = names(a=torch.zeros(4, 12), b=torch.zeros(4, 3, 2, 2), c=torch.zeros(12, 4))

    assert found == [["a", "b"], ["c"]]


def test_types_stay_apart() -> None:
    found = names(a=torch.zeros(4, 4), b=torch.zeros(4, 4, dtype=torch.float64), c=torch.zeros(4, 4))

    assert found == [["a", "c"], ["b"]]


def test_a_batch_goes_back_into_its_tensors() -> None:
    tensors = [torch.randn(4, 12), torch.randn(4, 3, 2, 2)]
    batch = stacked(tensors)
    assert batch.shape == (2, 4, 12)

    assert all(torch.equal(view, tensor) for view, tensor in zip(like(tensors, batch), tensors, strict=True))
    unstack_(2 * batch, tensors)

    assert torch.equal(stacked(tensors), 2 * batch)
