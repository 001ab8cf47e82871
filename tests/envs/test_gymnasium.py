"""Gymnasium's environments against copies of them stepped one by one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDictBase
from torchrl.envs import check_env_specs

from lit_gfs.datamodules.replay import make_replay_buffer
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.cartpole import CartPoleEnv
from lit_gfs.envs.simulators import env_seeds
from lit_gfs.errors import UserError


def play(env: Any, actions: torch.Tensor, seed: int) -> list[TensorDictBase]:
    """Reset with a seed and step; return the first state, then each step's ``next`` and what follows it."""
    env.set_seed(seed)
    state = env.reset()
    seen = [state.clone()]
    for action in actions:
        step, state = env.step_and_maybe_reset(state.set("action", action))
        seen += [step["next"].clone(), state.clone()]
    return seen


def draw_actions(env: Any, steps: int, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.stack([env.action_spec.rand() for _ in range(steps)])


@pytest.mark.parametrize(
    "env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "FrozenLake-v1", "MountainCarContinuous-v0"]
)
def test_specs(env_id: str) -> None:
    check_env_specs(make_env(env_id, 3, seed=0))


def test_env_specs() -> None:
    cartpole = EnvSpec.from_env(make_env("CartPole-v1", 3))
    assert cartpole == EnvSpec("CartPole-v1", (4,), "float32", 2, None, None, 1, max_episode_steps=500)
    assert cartpole.is_discrete
    assert not cartpole.is_pixels
    assert cartpole.action_dim == 1
    pendulum = EnvSpec.from_env(make_env("Pendulum-v1"))
    assert pendulum == EnvSpec(
        "Pendulum-v1", (3,), "float32", None, (-2.0,), (2.0,), 1, max_episode_steps=200
    )


def test_steps_equal_single_environments() -> None:
    """Acrobot, shortened so that episodes end: final observations, totals and flags."""
    env = make_env("Acrobot-v1", 3, max_episode_steps=13)
    actions = draw_actions(env, 40)
    seen = play(env, actions, 5)
    for index, seed in enumerate(env_seeds(5, 3).tolist()):
        reference = gymnasium.make("Acrobot-v1", max_episode_steps=13)
        observation, _ = reference.reset(seed=seed)
        assert seen[0]["observation"][index].tolist() == observation.tolist()
        total, length = 0.0, 0
        for action, next_, state in zip(actions, seen[1::2], seen[2::2], strict=True):
            observation, reward, terminated, truncated, _ = reference.step(action[index].item())
            total, length = total + float(reward), length + 1
            assert next_["observation"][index].tolist() == observation.tolist()
            assert next_["reward"][index].item() == reward
            assert next_["terminated"][index].item() == terminated
            assert next_["truncated"][index].item() == truncated
            assert next_["done"][index].item() == (terminated or truncated)
            assert next_["episode_return"][index].item() == total
            assert next_["episode_length"][index].item() == length
            if terminated or truncated:
                observation, _ = reference.reset()
                total, length = 0.0, 0
            assert state["observation"][index].tolist() == observation.tolist()
            assert state["episode_length"][index].item() == length


def cartpole_step(state: np.ndarray, action: int) -> np.ndarray:
    """Integrate the cart-pole equations (Barto, Sutton and Anderson, 1983) by one Euler step of 0.02 s."""
    x, velocity, angle, rate = state
    force = 10.0 if action == 1 else -10.0
    push = (force + 0.05 * rate**2 * np.sin(angle)) / 1.1
    spin = (9.8 * np.sin(angle) - np.cos(angle) * push) / (0.5 * (4 / 3 - 0.1 * np.cos(angle) ** 2 / 1.1))
    acceleration = push - 0.05 * spin * np.cos(angle) / 1.1
    return np.array(
        [x + 0.02 * velocity, velocity + 0.02 * acceleration, angle + 0.02 * rate, rate + 0.02 * spin]
    )


def test_cartpole_loses_no_step_at_the_end_of_episodes() -> None:
    """Each observation follows from the one acted in; after an end, from the newly drawn one."""
    env = make_env("CartPole-v1", 8)
    assert isinstance(env, CartPoleEnv)
    actions = draw_actions(env, 120)
    seen = play(env, actions, 2)
    ended = 0
    for before, next_, state, action in zip(seen[0::2], seen[1::2], seen[2::2], actions, strict=False):
        for index in range(8):
            expected = cartpole_step(before["observation"][index].double().numpy(), int(action[index]))
            np.testing.assert_allclose(next_["observation"][index], expected, atol=1e-5)
            fallen = abs(expected[0]) > 2.4 or abs(expected[2]) > 12 * 2 * np.pi / 360
            assert next_["terminated"][index].item() == fallen
            ended += fallen
        done = next_["done"].squeeze(-1)
        assert (state["observation"][done].abs() <= 0.05).all()
        assert torch.equal(state["observation"][~done], next_["observation"][~done])
        assert (next_["reward"] == 1).all()
        assert (state["episode_length"][done] == 0).all()
    assert ended > 20


@pytest.mark.parametrize(
    ("env_id", "limit"), [("CartPole-v1", 500), ("CartPole-v0", 200), ("Pendulum-v1", 200)]
)
def test_time_limits_truncate(env_id: str, limit: int) -> None:
    env = make_env(env_id, 2, seed=0)
    state = env.reset()
    for number in range(1, limit + 3):
        if env_id.startswith("CartPole"):
            # Pushing against the angle and its rate keeps the pole up.
            _, _, angle, rate = state["observation"].T
            action = (angle + 0.25 * rate > 0).long()
        else:
            action = torch.zeros(2, 1)
        step, state = env.step_and_maybe_reset(state.set("action", action))
        assert not step["next", "terminated"].any()
        assert step["next", "truncated"].flatten().tolist() == [number == limit] * 2
        assert step["next", "episode_length"].flatten().tolist() == [(number - 1) % limit + 1] * 2


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1"])
def test_a_seed_decides_everything_that_follows(env_id: str) -> None:
    options = {"max_episode_steps": 11}
    used = make_env(env_id, 4, seed=5, **options)
    actions = draw_actions(used, 50)
    play(used, actions[:17], 8)
    again, fresh = play(used, actions, 21), play(make_env(env_id, 4, **options), actions, 21)
    for mine, theirs in zip(again, fresh, strict=True):
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())
    assert torch.stack([step["done"] for step in again[1::2]]).any()
    assert len({tuple(row) for row in again[0]["observation"].tolist()}) == 4
    assert not torch.equal(again[0]["observation"], play(used, actions[:1], 22)[0]["observation"])
    assert not torch.equal(used.reset()["observation"], used.reset()["observation"])


def test_environments_without_a_seed_differ() -> None:
    first, second = (make_env("CartPole-v1").reset()["observation"] for _ in range(2))
    assert not torch.equal(first, second)


def test_the_seed_given_at_construction_is_that_of_set_seed() -> None:
    env = make_env("CartPole-v1", 2)
    env.set_seed(3)
    assert torch.equal(env.reset()["observation"], make_env("CartPole-v1", 2, seed=3).reset()["observation"])


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_partial_reset_of_episodes_that_go_on(env_id: str) -> None:
    env = make_env(env_id, 3, seed=0)
    _, state = env.step_and_maybe_reset(env.reset().set("action", env.action_spec.zero()))
    before = state["observation"].clone()
    state = env.reset(state.set("_reset", torch.tensor([[False], [True], [False]])))
    assert torch.equal(state["observation"][[0, 2]], before[[0, 2]])
    assert not torch.equal(state["observation"][1], before[1])
    step, _ = env.step_and_maybe_reset(state.set("action", env.action_spec.zero()))
    assert step["next", "episode_length"].flatten().tolist() == [2, 1, 2]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "MountainCar-v0"])
def test_rendering_shows_final_and_first_pictures(env_id: str) -> None:
    env = make_env(env_id, 2, seed=0, render=True, max_episode_steps=3)
    plain = make_env(env_id, 2, seed=0, max_episode_steps=3)
    actions = torch.ones(4, 2, dtype=torch.int64)
    seen, expected = play(env, actions, 1), play(plain, actions, 1)
    for mine, theirs in zip(seen, expected, strict=True):
        assert torch.equal(mine["observation"], theirs["observation"])
        assert mine["pixels"].dtype == torch.uint8
        assert mine["pixels"].shape[0] == 2
        assert mine["pixels"].shape[3] == 3
    final, first = seen[5], seen[6]
    assert final["done"].all()
    assert not torch.equal(final["pixels"], first["pixels"])
    assert torch.equal(seen[1]["pixels"], seen[2]["pixels"])


class Fake(gymnasium.Env[Any, Any]):
    """Shows what its spaces say; the observation is the largest of them."""

    def __init__(self, observation: Any, action: Any) -> None:
        self.observation_space, self.action_space = observation, action
        self.actions: list[Any] = []

    def _show(self) -> Any:
        space: Any = self.observation_space
        return int(space.start + space.n - 1) if isinstance(space, spaces.Discrete) else space.high

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._show(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.actions.append(action)
        return self._show(), 0.0, False, False, {}


BOX = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 1, (64, 64, 3), np.float32)


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    gymnasium.register("Fake-v0", lambda **spaces: Fake(**spaces))
    yield
    gymnasium.registry.pop("Fake-v0")


def test_discrete_spaces_that_do_not_start_at_zero() -> None:
    env = make_env("Fake-v0", 2, observation=spaces.Discrete(3, start=5), action=spaces.Discrete(4, start=-1))
    state = env.reset()
    assert state["observation"].tolist() == [[0, 0, 1], [0, 0, 1]]
    env.step(state.set("action", torch.tensor([0, 3])))
    assert [each.unwrapped.actions for each in env._simulators] == [[-1], [2]]


def test_images_of_bytes_have_their_channels_first() -> None:
    image = spaces.Box(0, np.arange(48, dtype=np.uint8).reshape(4, 4, 3), dtype=np.uint8)
    env = make_env("Fake-v0", 1, observation=image, action=BOX)
    observation = env.reset()["observation"]
    assert observation.dtype == torch.uint8
    assert observation[0].permute(1, 2, 0).flatten().tolist() == list(range(48))
    assert EnvSpec.from_env(env).is_pixels
    check_env_specs(env)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((84, 80, 1), (1, 84, 80)),
        ((84, 80, 3), (3, 84, 80)),
        ((84, 80, 4), (4, 84, 80)),
        ((84, 84, 2), (2, 84, 84)),
        ((64, 64, 6), (6, 64, 64)),
        ((6, 7, 2), (2, 6, 7)),
        ((10, 10, 9), (9, 10, 10)),
        ((5, 5, 20), (20, 5, 5)),
        ((20, 5, 5), (20, 5, 5)),
        ((1, 84, 80), (1, 84, 80)),
        ((4, 84, 80), (4, 84, 80)),
        ((17, 84, 80), (17, 84, 80)),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
def test_channels_are_the_first_axis_whichever_they_were(
    shape: tuple[int, ...], expected: tuple[int, ...], dtype: Any
) -> None:
    pixels = np.random.default_rng(0).integers(2, 254, shape).astype(dtype)
    env = make_env("Fake-v0", 1, observation=spaces.Box(0, pixels, dtype=dtype), action=BOX)

    observation = env.reset()["observation"][0].numpy()

    assert observation.shape == expected == EnvSpec.from_env(env).observation_shape
    assert observation.dtype == (np.uint8 if dtype == np.uint8 else np.float32)
    np.testing.assert_array_equal(observation, pixels if shape == expected else pixels.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, bool])
@pytest.mark.parametrize(
    "shape", [(84, 4, 84), (4, 80, 4), (10, 10, 10), (9, 10, 14), (2, 4, 3), (64, 4, 80)]
)
def test_axes_that_are_not_clear_are_asked_for(shape: tuple[int, ...], dtype: Any) -> None:
    box = spaces.Box(0, 1, shape, dtype)
    message = (
        rf"'Fake-v0' shows arrays of shape \({', '.join(map(str, shape))}\).*env_options.image_axes, 'hwc' or"
    )
    with pytest.raises(UserError, match=message):
        make_env("Fake-v0", 1, observation=box, action=BOX)
    for axes, expected in (
        ("hwc", (shape[2], shape[0], shape[1])),
        ("chw", shape),
        ("none", (shape[0] * shape[1] * shape[2],)),
    ):
        env = make_env("Fake-v0", 1, observation=box, action=BOX, image_axes=axes)
        assert EnvSpec.from_env(env).observation_shape == expected


class Skipping(gymnasium.Env[Any, Any]):
    """Shows every other frame: a stack is not the one before with a new frame at its end."""

    observation_space = spaces.Box(0, 255, (4, 8, 9), np.uint8)
    action_space = spaces.Discrete(2)

    def show(self) -> Any:
        numbers = np.arange(2 * self.steps, 2 * self.steps + 8, 2, dtype=np.uint8)
        return np.broadcast_to(numbers[:, None, None], (4, 8, 9)).copy()

    def reset(self, **options: Any) -> Any:
        self.steps = 0
        return self.show(), {}

    def step(self, action: Any) -> Any:
        self.steps += 2
        return self.show(), 0.0, self.steps >= 20, False, {}


def test_stacks_of_a_users_own_are_replayed_as_they_came() -> None:
    gymnasium.register("Skipping-v0", Skipping)
    env = make_env("Skipping-v0", 2)
    gymnasium.registry.pop("Skipping-v0")
    spec = EnvSpec.from_env(env)
    assert spec.observation_shape == (4, 8, 9)
    assert not spec.is_frame_stack
    buffer = make_replay_buffer(spec, capacity=100, num_envs=2, batch_size=8)
    rollout = env.rollout(8).exclude("episode_return")

    buffer.extend(rollout)

    held = buffer[:]
    flat = rollout.flatten(0, 1)
    assert torch.equal(held["observation"], flat["observation"])
    assert torch.equal(held["next", "observation"], flat["next", "observation"])


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (spaces.Sequence(BOX), BOX, "Sequence that cannot be flattened"),
        (spaces.Tuple([BOX, spaces.Sequence(BOX)]), BOX, "Tuple that cannot be flattened"),
        (spaces.Tuple([BOX, IMAGE]), BOX, r"Tuple with an image, 1 of shape \(64, 64, 3\)"),
        (BOX, spaces.Dict({"a": BOX}), "Dict.*expected Discrete, MultiDiscrete, MultiBinary or a Box of"),
        (BOX, spaces.Box(0, 5, (2,), np.int64), "expected Discrete, MultiDiscrete, MultiBinary or a Box of"),
    ],
)
def test_spaces_of_other_kinds(observation: Any, action: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env("Fake-v0", observation=observation, action=action)


def test_what_cannot_be_rendered_or_made() -> None:
    with pytest.raises(UserError, match="render_mode"):
        make_env("Fake-v0", observation=BOX, action=BOX, render=True)
    with pytest.raises(UserError, match="cannot be made"):
        make_env("Fake-v0")


@pytest.mark.parametrize("env_id", ["LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"])
def test_what_to_install_is_told(env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(entry: str) -> None:
        raise gymnasium.error.DependencyNotInstalled(
            'Box2D is not installed; `pip install "gymnasium[box2d]"`'
        )

    monkeypatch.setattr("lit_gfs.envs.gymnasium.load_env_creator", not_installed)

    with pytest.raises(UserError, match=rf"'{env_id}' cannot be made: .*pip install"):
        make_env(env_id)


def test_old_ids_are_served_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_env("MountainCar-v0", 2, seed=0).reset()
        make_env("CartPole-v0", 2, seed=0).reset()
    assert [str(each.message) for each in caught if "gymnasium" in str(each.filename)] == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options",
    [{}, {"kinematics_integrator": "semi-implicit euler"}, {"sutton_barto_reward": True}],
    ids=["euler", "semi-implicit", "sutton-barto"],
)
def test_cartpole_moves_bit_for_bit_as_gymnasiums(options: dict[str, Any]) -> None:
    """Until its first episode ends, every pole shows what `CartPoleVectorEnv` shows."""
    constructed = {key: value for key, value in options.items() if key != "kinematics_integrator"}
    env = make_env("CartPole-v1", 16, **constructed)
    reference: Any = gymnasium.make_vec(
        "CartPole-v1", 16, vectorization_mode="vector_entry_point", **constructed
    )
    for simulator in (env._simulator, reference):
        simulator.kinematics_integrator = options.get("kinematics_integrator", "euler")
    env.set_seed(4)
    state = env.reset()
    reference.reset(seed=0)
    reference.state = env._simulator.state.copy()
    running = np.ones(16, dtype=np.bool_)
    for action in draw_actions(env, 40):
        step, state = env.step_and_maybe_reset(state.set("action", action))
        observation, reward, terminated, _, _ = reference.step(action.numpy())
        next_ = step["next"]
        assert (next_["observation"].numpy() == observation)[running].all()
        assert (next_["reward"].squeeze(-1).numpy() == reward)[running].all()
        assert (next_["terminated"].squeeze(-1).numpy() == terminated)[running].all()
        running &= ~terminated
    assert not running.all()
