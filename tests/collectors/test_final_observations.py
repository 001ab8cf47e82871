from __future__ import annotations

import pytest
import torch

from lit_gfs.collectors.final_observations import FinalObservations
from lit_gfs.functional.returns import next_values


def final_observations(
    next_observations: torch.Tensor, kept: torch.Tensor, order: torch.Tensor
) -> FinalObservations:
    env, time = (each[order] for each in kept.nonzero(as_tuple=True))
    return FinalObservations(env, time, next_observations[env, time])


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 1, 3]])
def test_only_what_was_never_acted_in_is_evaluated(order: list[int]) -> None:
    next_observations = torch.arange(12.0).view(3, 4, 1) + 100
    value = torch.arange(12.0).view(3, 4)
    done, terminated = torch.zeros(3, 4, dtype=torch.bool), torch.zeros(3, 4, dtype=torch.bool)
    done[0, 1] = done[1, 2] = done[2, 3] = True
    terminated[1, 2] = terminated[2, 3] = True
    kept = done.clone()
    kept[:, -1] = True
    for given in (next_observations, final_observations(next_observations, kept, torch.tensor(order))):
        asked: list[float] = []

        def value_of(observation: torch.Tensor, asked: list[float] = asked) -> torch.Tensor:
            asked += observation.flatten().tolist()
            return -observation.squeeze(-1)

        result = next_values(value, given, done, terminated, value_of)

        # Truncated at (0, 1); still open at (0, 3) and (1, 3).
        assert asked == [101, 103, 107]
        expected = [[1, -101, 3, -103], [5, 6, None, -107], [9, 10, 11, None]]
        for row, wanted in zip(result.tolist(), expected, strict=True):
            assert [a for a, b in zip(row, wanted, strict=True) if b is not None] == [
                b for b in wanted if b is not None
            ]


def test_an_observation_that_is_not_kept_cannot_be_asked_for() -> None:
    kept = torch.tensor([[False, True], [False, True]])
    final = final_observations(torch.zeros(2, 2, 3), kept, torch.tensor([0, 1]))
    assert final[kept].shape == (2, 3)
    assert final[torch.zeros(2, 2, dtype=torch.bool)].shape == (0, 3)
    with pytest.raises(ValueError, match="step 0 of env 1 did not end an episode"):
        final[torch.tensor([[False, True], [True, False]])]
