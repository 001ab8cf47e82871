from __future__ import annotations

import math

import ale_py
import gymnasium
import numpy as np
import pytest
from scipy.stats import trim_mean

from lit_gfs.metrics.atari_scores import ATARI_SCORES
from lit_gfs.metrics.scores import human_normalized_score, interquartile_mean


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
        "UpNDown-ram-v4",
    ],
)
def test_spellings_of_a_game(env_id: str) -> None:
    assert human_normalized_score(env_id, 11693.2) == pytest.approx(1)


@pytest.mark.parametrize(
    "env_id",
    ["CartPole-v1", "dm_control/walker-walk-v0", "ALE/AirRaid-v5", "ALE/Pitfall2-v5", "other/Pong-v5", ""],
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


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 30, 101])
def test_interquartile_mean_against_scipy(count: int) -> None:
    scores = np.random.default_rng(count).normal(size=count)

    assert interquartile_mean(scores.tolist()) == pytest.approx(trim_mean(scores, 0.25))


def test_interquartile_mean_ignores_outliers() -> None:
    assert interquartile_mean([1e9, 2.0, 4.0, -1e9]) == 3.0


@pytest.mark.parametrize("scores", [[], [1.0, math.nan, 2.0]])
def test_interquartile_mean_refuses_missing_scores(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="at least one score and no NaN"):
        interquartile_mean(scores)
