from __future__ import annotations

import pytest
import torch
from tensordict.nn import TensorDictModule
from torchrl.data import Unbounded

from lit_gfs.collectors.evaluation import run_episodes
from lit_gfs.envs import make_env
from support.fakes import CountingEnv

POLICY = TensorDictModule(
    lambda observation: torch.zeros(len(observation), dtype=torch.int64), ["observation"], ["action"]
)


@pytest.mark.parametrize("episodes", [1, 2, 3, 4, 5, 7, 9])
def test_every_environment_plays_its_share(episodes: int) -> None:
    env = CountingEnv([3, 4, 7])

    played = run_episodes(env, POLICY, episodes)

    expected = [(3, 4, 7)[index % 3] for index in range(episodes)]
    assert played["episode_length"].tolist() == expected
    assert played["episode_return"].tolist() == [length * (length + 1) / 2 for length in expected]


def test_frames_of_the_first_environment_are_handed_over_until_the_last_episode_ends() -> None:
    class Filming(CountingEnv):
        def __init__(self, lengths: list[int]) -> None:
            super().__init__(lengths)
            self.observation_spec["pixels"] = Unbounded((len(lengths), 2, 2, 3), dtype=torch.uint8)

        def _observe(self) -> dict[str, torch.Tensor]:
            frames = self.steps.view(-1, 1, 1, 1).expand(-1, 2, 2, 3).to(torch.uint8)
            return {**super()._observe(), "pixels": frames.clone()}

    frames: list[torch.Tensor] = []
    run_episodes(Filming([3]), POLICY, 2, on_frame=frames.append)

    assert [int(frame[0, 0, 0]) for frame in frames] == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("episodes", [1, 2, 4])
def test_an_episode_without_end_is_cut_and_counts_as_far_as_it_went(episodes: int) -> None:
    played = run_episodes(CountingEnv([3, 10**9]), POLICY, episodes, limit=10)

    lengths = [(3, 10)[index % 2] for index in range(episodes)]
    assert played["episode_length"].tolist() == lengths
    assert played["episode_return"].tolist() == [length * (length + 1) / 2 for length in lengths]
    assert played["cut"].tolist() == [length == 10 for length in lengths]


def test_environments_that_play_on_keep_what_they_show_when_another_episode_is_cut() -> None:
    env, seen = make_env("CartPole-v1", 4, seed=0), []

    def act(observation: torch.Tensor) -> torch.Tensor:
        seen.append(observation.clone())
        return torch.arange(4) // 2  # the pole falls at different times

    run_episodes(env, TensorDictModule(act, ["observation"], ["action"]), 12, limit=9)

    shown = torch.stack(seen)
    assert len(shown) > 18
    assert shown.abs().sum(-1).min() > 0
