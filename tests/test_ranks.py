from __future__ import annotations

import pytest

from lit_gfs.ranks import share


@pytest.mark.parametrize(("total", "world_size", "shares"), [(10, 4, [3, 3, 2, 2]), (2, 3, [1, 1, 0])])
def test_the_lower_ranks_take_the_remainder(total: int, world_size: int, shares: list[int]) -> None:
    assert [share(total, rank, world_size) for rank in range(world_size)] == shares
