from __future__ import annotations

import pytest

from lit_gfs.utils.ranks import is_first_process, share


@pytest.mark.parametrize(("total", "world_size", "shares"), [(10, 4, [3, 3, 2, 2]), (2, 3, [1, 1, 0])])
def test_the_lower_ranks_take_the_remainder(total: int, world_size: int, shares: list[int]) -> None:
    assert [share(total, rank, world_size) for rank in range(world_size)] == shares


@pytest.mark.parametrize(
    "told",
    [
        {"RANK": "1", "LOCAL_RANK": "0"},
        {"LOCAL_RANK": "1", "SLURM_PROCID": "0"},
        {"SLURM_PROCID": "3"},
        {"NODE_RANK": "1"},
        {"OMPI_COMM_WORLD_RANK": "2"},
    ],
)
def test_a_process_that_is_told_of_a_rank_above_zero_is_not_the_first(
    told: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert is_first_process()
    for name in told:
        monkeypatch.setenv(name, "0")
    assert is_first_process()

    for name, rank in told.items():
        monkeypatch.setenv(name, rank)
    assert not is_first_process()
