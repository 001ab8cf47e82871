from __future__ import annotations

import random

import numpy as np
import torch

from lit_gfs.utils.seeding import seed_generators


def test_python_numpy_and_torch_draw_as_generators_of_that_seed() -> None:
    for seed in (7, 8, 7):
        seed_generators(seed)

        assert random.random() == random.Random(seed).random()
        assert np.random.random() == np.random.RandomState(seed).random()  # noqa: NPY002
        assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(seed)))
