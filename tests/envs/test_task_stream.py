"""Several games by turns, as one environment."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torchrl.envs import check_env_specs

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.minatar.stream import MinAtarStream
from lit_gfs.envs.task_stream import TaskStream
from lit_gfs.errors import UserError


def make_stream(**options: Any) -> MinAtarStream:
    env = make_env("MinAtar/Stream-v0", 4, seed=3, **options)
    assert isinstance(env, MinAtarStream)
    return env


def play(env: Any, first: TensorDict, steps: int) -> list[TensorDict]:
    """Act at random with the same draws each time."""
    generator = torch.Generator().manual_seed(0)
    played, data = [], first
    for _ in range(steps):
        data["action"] = torch.randint(6, (4,), generator=generator)
        both, data = env.step_and_maybe_reset(data)
        played.append(both["next"].clone())
    return played


@pytest.mark.parametrize(("steps", "task"), [(0, 0), (9, 0), (10, 1), (29, 2), (30, 0), (41, 1)])
def test_the_schedule_is_a_cycle_in_environment_steps(steps: int, task: int) -> None:
    assert TaskStream(("a", "b", "c"), 10).task_at(steps) == task


def test_it_is_an_environment_with_all_actions_and_the_most_channels() -> None:
    env = make_stream(games=["Breakout", "Freeway"])
    check_env_specs(env)
    spec = EnvSpec.from_env(env)
    assert spec.observation_shape == (7, 10, 10)
    assert spec.num_actions == 6


@pytest.mark.parametrize("task", [0, 1])
def test_each_task_is_the_game_of_its_name(task: int) -> None:
    names = ["Breakout", "Asterix"]
    stream = make_stream(games=names)
    stream.begin_task(task)
    stream.set_seed(5)
    game = make_env(f"MinAtar/{names[task]}-v0", 4)
    game.set_seed(5)

    ours, theirs = play(stream, stream.reset(), 60), play(game, game.reset(), 60)

    channels = theirs[0]["observation"].shape[1]
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one["observation"][:, :channels], other["observation"])
        assert not one["observation"][:, channels:].any()
        assert torch.equal(one["reward"], other["reward"])
        assert torch.equal(one["done"], other["done"])


def test_a_change_of_task_begins_new_episodes_of_the_other_game() -> None:
    env = make_stream(games=["Breakout", "Freeway"])
    play(env, env.reset(), 20)
    env.begin_task(1)

    first = env.reset()

    assert first["observation"].shape == (4, 7, 10, 10)
    assert (first["episode_length"] == 0).all()
    chicken = first["observation"][:, 0]  # Freeway's first channel: one chicken on each board
    assert (chicken.sum((1, 2)) == 1).all()
    assert len(play(env, first, 20)) == 20


def test_a_snapshot_holds_the_task() -> None:
    env = make_stream(games=["Breakout", "Freeway"])
    env.reset()
    env.begin_task(1)
    first = env.reset()
    play(env, first, 5)
    snapshot = env.snapshot()
    assert snapshot is not None
    whole = play(env, env._tensordict({**env._state_entries(), **env._not_done()}), 30)

    other = make_stream(games=["Breakout", "Freeway"])
    other.reset()
    assert other.restore(snapshot)
    assert other.task == 1
    again = play(other, other._tensordict({**other._state_entries(), **other._not_done()}), 30)

    for one, another in zip(whole, again, strict=True):
        assert torch.equal(one["observation"], another["observation"])
        assert torch.equal(one["reward"], another["reward"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"games": ["Breakot"]}, r"games has 'Breakot'; expected .*did you mean 'Breakout'"),
        ({"games": []}, "the stream has no tasks; expected at least one"),
        ({"switch_every": 0}, "switch_every is 0; expected a whole number of at least 1"),
        ({"switch_every": 1.5}, "switch_every is 1.5; expected a whole number"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_stream(**options)
