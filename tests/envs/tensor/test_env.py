"""Episodes, resets, seeds, time limits and snapshots of environments in tensors."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torchrl.envs import EnvBase, check_env_specs

from lit_gfs.envs import make_env
from lit_gfs.envs.make import complete_options
from lit_gfs.envs.tensor import TensorEnv
from lit_gfs.envs.tensor.game import TensorGame
from lit_gfs.envs.tensor.suite import tensor_envs
from lit_gfs.errors import UserError


class Counts(NamedTuple):
    left: Tensor
    mark: Tensor


class Countdown(TensorGame[Counts]):
    """Env i ends after i + 1 steps. It shows (steps left, a mark of the episode), and pays the action."""

    observation_shape = (2,)
    observation_dtype = torch.float32
    opening_draws = 1
    step_draws = 2

    def opening(self, draws: Tensor) -> Counts:
        return Counts(torch.arange(1, len(draws) + 1), draws[:, 0].float())

    def step(self, state: Counts, action: Tensor, draws: Tensor) -> tuple[Counts, Tensor, Tensor]:
        after = state._replace(left=state.left - 1)
        return after, action.double(), after.left == 0

    def show(self, state: Counts) -> Tensor:
        return torch.stack([state.left.float(), state.mark], 1)

    def pictures(self, state: Counts) -> Tensor:
        raise NotImplementedError


def countdown(count: int, **options: Any) -> TensorEnv:
    return TensorEnv("Countdown-v0", count, Countdown(), [0, 5, 7], **{"seed": 0, **options})


def act(state: TensorDictBase, env: EnvBase, action: int = 1) -> TensorDictBase:
    return state.set("action", torch.full(env.batch_size, action))


@pytest.mark.parametrize("env_id", sorted(tensor_envs()))
@pytest.mark.parametrize("num_envs", [1, 3])
def test_specs(env_id: str, num_envs: int) -> None:
    check_env_specs(make_env(env_id, num_envs, seed=0, render=True))


def test_the_end_of_an_episode() -> None:
    env = countdown(2)
    first: TensorDictBase = env.reset()
    step, state = env.step_and_maybe_reset(act(first, env))
    next_ = step["next"]
    assert next_["observation"][:, 0].tolist() == [0, 1]
    assert torch.equal(next_["observation"][:, 1], first["observation"][:, 1])
    assert next_["reward"].tolist() == [[5], [5]]
    assert next_["terminated"].tolist() == next_["done"].tolist() == [[True], [False]]
    assert not next_["truncated"].any()
    assert next_["episode_return"].tolist() == [[5], [5]]
    assert state["episode_return"].tolist() == [[0], [5]]
    assert state["episode_length"].tolist() == [[0], [1]]
    assert state["observation"][:, 0].tolist() == [1, 1]
    assert state["observation"][0, 1] != first["observation"][0, 1]
    step, state = env.step_and_maybe_reset(act(state, env, 2))
    assert step["next", "episode_return"].tolist() == [[7], [12]]
    assert step["next", "episode_length"].tolist() == [[1], [2]]
    assert step["next", "done"].all()


def test_the_direct_step_equals_torchrls() -> None:
    direct, general = countdown(4), countdown(4)
    states: list[TensorDictBase] = [direct.reset(), general.reset()]
    for time in range(12):
        for state in states:
            act(state, direct, time % 3)
        steps = [direct.step_and_maybe_reset(states[0]), EnvBase.step_and_maybe_reset(general, states[1])]
        for mine, theirs in zip(*steps, strict=True):
            for key in mine.keys(True, True):
                assert mine[key].dtype == theirs[key].dtype, key
                assert torch.equal(mine[key], theirs[key]), key
        states = [step[1] for step in steps]


def test_a_partial_reset_begins_episodes_where_it_is_asked_for() -> None:
    env = countdown(3)
    _, state = env.step_and_maybe_reset(act(env.reset(), env))
    marks = state["observation"][:, 1].clone()
    state["_reset"] = torch.tensor([[False], [False], [True]])
    state = env.reset(state)
    assert state["observation"][:, 0].tolist() == [1, 1, 3]
    assert (state["observation"][:, 1] == marks).tolist() == [True, True, False]
    assert state["episode_length"].tolist() == [[0], [1], [0]]
    step, _ = env.step_and_maybe_reset(act(state, env))
    assert step["next", "episode_return"].tolist() == [[5], [10], [5]]


def test_a_limit_truncates_and_an_end_at_the_limit_is_both() -> None:
    env = countdown(4, time_limit=2)
    env.reset()
    env.advance(torch.zeros(4, dtype=torch.int64))
    step = env.advance(torch.zeros(4, dtype=torch.int64))
    assert step.terminated.tolist() == [True, True, False, False]
    assert step.truncated.tolist() == [False, True, True, True]
    assert step.done.all()
    assert env.open_episodes == 0


def test_sticky_actions_repeat_the_games_last_action_across_episodes() -> None:
    env = countdown(3, sticky_action_prob=0.5)
    env.reset()
    assert env._episodes is not None
    draws = torch.zeros(3, 4, dtype=torch.float64)
    draws[:, 0] = torch.tensor([0.49, 0.5, 0.0])
    episodes, step, _, _ = env.transition(env._episodes, torch.tensor([1, 1, 2]), draws)
    assert step.reward.tolist() == [0, 5, 0]
    episodes, step, _, _ = env.transition(episodes, torch.tensor([2, 2, 2]), draws * 0)
    assert step.reward.tolist() == [0, 5, 0]
    assert step.done.tolist() == [True, True, False]


def test_a_transition_is_a_pure_function() -> None:
    env = countdown(3, sticky_action_prob=0.3)
    env.reset()
    assert env._episodes is not None
    before = [value.clone() for value in tree_leaves(env._episodes)]
    draws = torch.rand(3, 4, dtype=torch.float64)
    outcomes = [env.transition(env._episodes, torch.tensor([1, 2, 1]), draws) for _ in range(2)]
    assert all(map(torch.equal, outcomes[0][1], outcomes[1][1]))
    assert all(map(torch.equal, *(tree_leaves(after) for after, *_ in outcomes)))
    assert all(map(torch.equal, before, tree_leaves(env._episodes)))


def play(env: Any, steps: int) -> list[Tensor]:
    """Return what an environment shows and pays under the same actions every time."""
    generator = torch.Generator().manual_seed(0)
    seen = [env.observations["observation"]]
    for _ in range(steps):
        action = torch.randint(env.action_spec.space.n, (env.num_envs,), generator=generator)
        seen += [*env.advance(action), env.observations["observation"]]
    return seen


@pytest.mark.parametrize("env_id", sorted(tensor_envs()))
def test_a_seed_decides_everything_and_environments_differ(env_id: str) -> None:
    env: Any = make_env(env_id, 3, seed=0)
    runs = []
    for seed in (5, 6, 5):
        env.set_seed(seed)
        env.reset()
        runs.append(play(env, 80))
    assert all(map(torch.equal, runs[0], runs[2]))
    assert not all(map(torch.equal, runs[0], runs[1]))
    shown = torch.stack(runs[0][0::8])
    assert not torch.equal(shown[:, 0], shown[:, 1])


@pytest.mark.parametrize("env_id", sorted(tensor_envs()))
def test_what_was_shown_is_not_written_to_later(env_id: str) -> None:
    env: Any = make_env(env_id, 2, seed=0)
    env.reset()
    seen = play(env, 40)
    before = [values.clone() for values in seen]
    play(env, 40)
    assert all(map(torch.equal, before, seen))


# Episodes end after 60 steps at the latest.
@pytest.mark.parametrize("steps", [0, 1, 70])
@pytest.mark.parametrize("env_id", sorted(tensor_envs()))
def test_a_restored_environment_goes_on_as_the_one_that_never_stopped(env_id: str, steps: int) -> None:
    env, other = (make_env(env_id, 3, seed=seed, max_episode_steps=60) for seed in (1, 2))
    env.reset()
    other.reset()
    play(env, steps)
    play(other, 17)
    assert env.is_restorable
    file = io.BytesIO()
    torch.save(env.snapshot(), file)
    file.seek(0)

    assert other.restore(torch.load(file, weights_only=True))

    assert all(map(torch.equal, play(env, 70), play(other, 70)))


def test_a_restored_environment_begins_episodes_where_it_is_asked_for() -> None:
    env = countdown(2)
    env.step(act(env.reset(), env))  # the first episode has ended, and the next one has begun
    snapshot = env.snapshot()
    assert snapshot is not None
    env.restore(snapshot)
    marks = env.observations["observation"][:, 1].clone()

    env.reset(TensorDict({"_reset": torch.tensor([[True], [False]])}, [2]))

    assert (env.observations["observation"][:, 1] == marks).tolist() == [False, True]


def test_there_is_no_snapshot_before_a_reset_or_while_a_seed_waits() -> None:
    env = countdown(2)
    assert env.snapshot() is None
    env.reset()
    assert env.snapshot() is not None
    env.set_seed(3)
    assert env.snapshot() is None


def test_a_step_works_on_tensors_without_content() -> None:
    """On the meta device, any look at a number raises an error: no step waits for a result."""
    for env_id in tensor_envs():
        env: Any = make_env(env_id, 4, seed=0)
        env.reset()
        meta = tree_map(lambda value: value.to("meta"), env._episodes)
        env._actions = None if env._actions is None else env._actions.to("meta")
        action = torch.zeros(4, dtype=torch.int64, device="meta")
        after, step, observation, _ = env.transition(meta, action, env._draw().to("meta"))
        assert all(value.device.type == "meta" for value in tree_leaves((after, step, observation)))
        assert observation.shape == env.observation_spec["observation"].shape
        assert step.observation.dtype == env.observation_spec["observation"].dtype


@pytest.mark.parametrize(
    ("env_id", "suggestion"),
    [
        ("tensor/CartPol-v1", "tensor/CartPole-v1"),
        ("tensor/cartpole", "tensor/CartPole-v1"),
        ("tensor/ALE/Pong-v5", ""),
        ("tensor/", ""),
    ],
)
def test_unknown_ids_name_the_nearest(env_id: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=f"unknown environment '{env_id}'.*{suggestion}") as caught:
        make_env(env_id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_episode_steps": 0}, "max_episode_steps is 0; expected a whole number of at least 1"),
        ({"max_steps": 3}, "has no option 'max_steps'; .*; did you mean 'max_episode_steps'"),
        ({"device": "cuda"}, "has no option 'device'; expected one of render, "),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env("tensor/CartPole-v1", **options)


def test_options_have_the_defaults_of_the_twin() -> None:
    assert complete_options("tensor/CartPole-v1", {}) == {
        "sutton_barto_reward": False,
        "max_episode_steps": 500,
    }
