from __future__ import annotations

import math

import ale_py
import gymnasium
import numpy as np
import pytest

from lit_gfs.metrics.atari_scores import ATARI_SCORES
from lit_gfs.metrics.scores import (
    final_score,
    first_crossing,
    human_normalized_score,
    instability,
    normalized_score,
    smooth,
    steps_to_reach,
)


def test_random_is_0_and_human_is_1() -> None:
    # Random and human score in Pong: -20.7 and 14.6.
    assert human_normalized_score("ALE/Pong-v5", -20.7) == pytest.approx(0)
    assert human_normalized_score("ALE/Pong-v5", 14.6) == pytest.approx(1)
    assert human_normalized_score("ALE/Pong-v5", 21) == pytest.approx(41.7 / 35.3)


@pytest.mark.parametrize(
    "env_id",
    [
        "ALE/UpNDown-v5",
        "UpNDown",
        "up_n_down",
        "UpNDownNoFrameskip-v4",
        "UpNDownDeterministic-v0",
        "UpNDown-ramNoFrameskip-v4",
        "ALE/UpNDown-ram-v5",
    ],
)
def test_spellings_of_a_game(env_id: str) -> None:
    assert human_normalized_score(env_id, 11693.2) == pytest.approx(1)


@pytest.mark.parametrize(
    "env_id",
    [
        *[
            "CartPole-v1",
            "dm_control/walker-walk-v0",
            "ALE/AirRaid-v5",
            "ALE/Pitfall2-v5",
            "other/Pong-v5",
            "",
        ],
        # A user's own games, and others', may have the names of Atari's.
        *["Tennis-v0", "Freeway-v1", "Pong-v5", "UpNDown-ram-v4"],
    ],
)
def test_environments_without_a_human_reference(env_id: str) -> None:
    assert human_normalized_score(env_id, 1.0) is None


def test_the_table_has_the_57_games_under_their_registered_names() -> None:
    gymnasium.register_envs(ale_py)

    assert len(ATARI_SCORES) == 57
    assert [game for game in ATARI_SCORES if f"ALE/{game}-v5" not in gymnasium.registry] == []
    assert all(human > random for random, human in ATARI_SCORES.values())


def test_the_table_sums_to_the_published_one() -> None:
    # The sums over DQN Zoo's file.
    assert math.fsum(random for random, _ in ATARI_SCORES.values()) == pytest.approx(50864.9)
    assert math.fsum(human for _, human in ATARI_SCORES.values()) == pytest.approx(606494.2)


def test_normalized_score() -> None:
    assert normalized_score(-300, floor=-500, reference=-100) == 0.5
    assert normalized_score(0, floor=-500, reference=-100) == 1.25
    with pytest.raises(ValueError, match="other than the floor"):
        normalized_score(1, floor=2, reference=2)


def test_final_score_is_the_mean_after_nine_tenths() -> None:
    # Above 0.9 * 1,000: the evaluations at 950 and 1,000, not the one at 900.
    assert final_score([100, 900, 950, 1_000], [0, 10, 20, 40]) == 30
    assert final_score([100, 900, 950, 1_000], [0, 10, 20, 40], share=1) == 17.5


def test_final_score_of_a_short_run_is_its_last_evaluation() -> None:
    assert final_score([0], [3]) == 3
    assert final_score([100, 200], [1, 2]) == 2


@pytest.mark.parametrize(("steps", "scores"), [([], []), ([1, 2], [1])])
def test_final_score_needs_evaluations(steps: list[float], scores: list[float]) -> None:
    with pytest.raises(ValueError, match="as many scores as steps"):
        final_score(steps, scores)


def test_smooth_is_a_trailing_mean() -> None:
    assert smooth([3, 5, 10, 0]) == [3, 4, 6, 5]
    assert smooth([3, 5, 10, 0], window=1) == [3, 5, 10, 0]


def test_instability_by_hand() -> None:
    # Smoothed: 0, 0, 0, 3, 6, 6, 3, 0. Start 0, best 3, 6, 6, 6, 6: lost 0 0 0 0 0 0 1/2 1, over 8 points.
    assert instability([0, 0, 0, 9, 9, 0, 0, 0]) == pytest.approx(1.5 / 8)


def test_a_run_that_only_rises_loses_nothing() -> None:
    assert instability([0, 1, 2, 2, 5]) == 0


def test_a_run_that_never_rises_has_nothing_to_lose() -> None:
    assert math.isnan(instability([-500, -500, -500]))
    assert math.isnan(instability([5, 4, 3]))
    assert math.isnan(instability([]))
    assert math.isnan(instability([1, math.nan, 3]))


def test_a_fall_below_the_start_counts_as_a_loss_of_all() -> None:
    # Smoothed: 0, 0.5, 1/3, -33: a rise of 0.5, of which 1/3 and then more than all is lost.
    assert instability([0, 1, 0, -100]) == pytest.approx((1 / 3 + 1) / 4)


def test_instability_from_a_known_start() -> None:
    # Solved by the first evaluation, half of it lost in the end.
    assert math.isnan(instability([10, 10, 4]))
    assert instability([10, 10, 4], start=6) == pytest.approx((2 / 4) / 3)
    # Nothing learned, whatever the first evaluation was.
    assert math.isnan(instability([-2, -1, -1], start=0))


def test_instability_has_no_unit() -> None:
    scores = np.random.default_rng(0).normal(size=30).cumsum()

    assert instability((7 * scores - 40).tolist()) == pytest.approx(instability(scores.tolist()))
    assert 0 < instability(scores.tolist()) < 1


def test_steps_to_reach_lies_between_evaluations() -> None:
    # Smoothed: 0, 3, 4 at 10, 20, 30.
    assert steps_to_reach([10, 20, 30], [0, 6, 6], 1.5) == 15
    assert steps_to_reach([10, 20, 30], [0, 6, 6], 3.5) == 25
    assert steps_to_reach([10, 20, 30], [0, 6, 6], -1) == 10
    assert steps_to_reach([10, 20, 30], [0, 6, 6], 6) == math.inf


def test_first_crossing_of_many_curves() -> None:
    curves = np.array([[0, 2, 0, 4], [0, 0, 0, 0], [5, 0, 0, 9]])

    crossings = first_crossing([0, 1, 2, 4], curves, [3, 1, 5])

    np.testing.assert_array_equal(crossings, [3.5, np.inf, 0])
