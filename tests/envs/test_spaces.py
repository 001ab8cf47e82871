"""Observations and actions of every kind of space, and environments that do not keep to theirs."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.spaces.utils import flatten
from torchrl.envs import check_env_specs

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.spaces import find_axes
from lit_gfs.errors import EnvironmentFault, UserError
from support import odd_envs  # noqa: F401 - registers Odd-v0

VECTOR = spaces.Box(-1, 1, (2,), np.float32)
IMAGE = spaces.Box(0, 255, (9, 9, 3), np.uint8)


def shown_by(observation: Any, value: Any, **options: Any) -> torch.Tensor:
    """Return what an environment shows first, ``(*shape)``."""
    env = make_env("Odd-v0", 1, observation=observation, show=lambda space: value, **options)
    check_env_specs(env)
    return env.reset()["observation"][0]


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_planes_of_zeros_and_ones_become_bytes_that_encoders_scale_to_them(dtype: Any) -> None:
    planes = np.random.default_rng(0).integers(0, 2, (8, 8, 5)).astype(dtype)

    observation = shown_by(spaces.Box(0, 1, (8, 8, 5), dtype), planes)

    assert observation.dtype == torch.uint8
    assert observation.shape == (5, 8, 8)
    np.testing.assert_array_equal(observation.numpy() / 255, planes.transpose(2, 0, 1))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_pictures_of_other_numbers_up_to_255_are_scaled(dtype: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(dtype)

    observation = shown_by(spaces.Box(0, 255, (9, 9, 3), dtype), pixels)

    assert observation.dtype == torch.float32
    np.testing.assert_allclose(observation.numpy(), pixels.transpose(2, 0, 1) / 255, rtol=1e-6)


def test_a_large_plane_of_bytes_is_a_gray_picture_and_a_small_one_a_table() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 36), np.uint8)
    picture = shown_by(spaces.Box(0, 255, (40, 36), np.uint8), pixels)
    table = shown_by(spaces.Box(0, 255, (9, 8), np.uint8), pixels[:9, :8])
    asked = shown_by(spaces.Box(0, 255, (9, 8), np.uint8), pixels[:9, :8], image_axes="hw")

    np.testing.assert_array_equal(picture.numpy(), pixels[None])
    np.testing.assert_allclose(table.numpy(), pixels[:9, :8] / 255, rtol=1e-6)
    np.testing.assert_array_equal(asked.numpy(), pixels[None, :9, :8])


@pytest.mark.parametrize(
    ("high", "expected"), [(255, [0, 0.2, 1]), (51, [0, 1, 5]), (1, [0, 51, 255]), ([1, 51, 255], [0, 1, 1])]
)
def test_bytes_of_a_vector_are_scaled_by_the_largest_that_is_declared(high: Any, expected: Any) -> None:
    box = spaces.Box(0, np.broadcast_to(np.array(high, np.uint8), 3).copy(), dtype=np.uint8)

    observation = shown_by(box, np.array([0, 51, 255], np.uint8))

    np.testing.assert_allclose(observation.numpy(), expected, rtol=1e-6)


PLACE = spaces.Dict(
    where=spaces.Tuple([spaces.Discrete(3, start=2), VECTOR]),
    bag=spaces.MultiBinary([2, 2]),
    memory=spaces.Box(0, 255, (4,), np.uint8),
)


@pytest.mark.parametrize(
    "space",
    [
        spaces.MultiDiscrete([3, 4], start=[1, -2]),
        spaces.MultiDiscrete([[2, 2], [3, 5]]),
        spaces.MultiBinary(5),
    ],
)
def test_choices_and_switches_are_flattened_as_gymnasium_does_it(space: Any) -> None:
    space.seed(3)
    value = space.sample()

    observation = shown_by(space, value)

    assert observation.dtype == torch.float32
    assert observation.tolist() == flatten(space, value).tolist()


def test_dictionaries_are_flattened_as_gymnasium_does_it_and_their_bytes_scaled() -> None:
    value = {"where": (3, np.array([0.5, -1], np.float32)), "bag": np.array([[1, 0], [0, 1]], np.int8)}
    value["memory"] = np.array([0, 51, 102, 255], np.uint8)

    expected = [0, 1, 0, 0.5, -1, 1, 0, 0, 1, 0, 0.2, 0.4, 1]
    assert shown_by(PLACE, value).tolist() == pytest.approx(expected)


def test_one_entry_of_a_dictionary_can_be_chosen() -> None:
    space = spaces.Dict(view=IMAGE, mission=spaces.Text(9))
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    value = {"view": pixels, "mission": "open"}

    message = (
        r"shows a Dict with an image, 'view' of shape \(9, 9, 3\); expected env_options.observation_key, "
        r"'view' or 'mission', .*FilterObservation"
    )
    with pytest.raises(UserError, match=message):
        shown_by(space, value)
    with pytest.raises(UserError, match="observation_key is 'veiw'; expected 'view' or 'mission'"):
        shown_by(space, value, observation_key="veiw")
    expected = pixels.transpose(2, 0, 1)
    np.testing.assert_array_equal(shown_by(space, value, observation_key="view").numpy(), expected)
    np.testing.assert_array_equal(shown_by(spaces.Dict(view=IMAGE), value).numpy(), expected)


@pytest.mark.parametrize(
    ("space", "options", "message"),
    [
        (VECTOR, {"image_axes": "hwc"}, r"image_axes is 'hwc'.*shape \(2,\); expected 'none'"),
        (spaces.MultiBinary(3), {"image_axes": "hwc"}, "shows no image; expected null"),
        (IMAGE, {"image_axes": "whc"}, "image_axes is 'whc'.*expected 'hwc' or 'chw' or 'none'"),
        (VECTOR, {"observation_key": "a"}, "observation_key is 'a'; expected null"),
        (spaces.Box(0, 255, (4, 9, 9, 3), np.uint8), {}, r"\(4, 9, 9, 3\), and their axes are not clear"),
    ],
)
def test_options_that_do_not_fit_a_space(space: Any, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_env("Odd-v0", observation=space, **options)


def test_axes_are_found_by_the_shape_alone() -> None:
    assert [
        find_axes(shape) for shape in [(5, 5, 2), (2, 5, 5), (8, 4, 2), (2, 4, 8), (3, 4, 5), (6, 6, 6)]
    ] == [
        "hwc",
        "chw",
        "hwc",
        "chw",
        None,
        None,
    ]


@pytest.mark.parametrize(
    ("space", "rows", "expected"),
    [
        (spaces.MultiDiscrete([3, 2], start=[1, -5]), [0, 1], [1, -4]),
        (spaces.MultiDiscrete([[2, 3], [4, 5]]), [1, 2, 3, 4], [[1, 2], [3, 4]]),
        (spaces.MultiBinary([2, 2]), [1, 0, 0, 1], [[1, 0], [0, 1]]),
        (spaces.Box(-1, 1, (2, 2), np.float32), [-1, 0.5, 0, 1], [[-1, 0.5], [0, 1]]),
        (spaces.Box(-1, 0.1, (2,), np.float64), [0.1, -2], [0.1, -1]),
        (spaces.Box(-np.inf, np.inf, (), np.float32), [7], 7),
    ],
)
def test_actions_reach_the_environment_in_its_own_shape_and_type(
    space: Any, rows: Any, expected: Any
) -> None:
    env = make_env("Odd-v0", 2, action=space)
    check_env_specs(env)
    state = env.reset()
    dtype = torch.float32 if isinstance(space, spaces.Box) else torch.int64

    env.step(state.set("action", torch.tensor([rows, rows], dtype=dtype)))

    taken = env._simulators[1].unwrapped.actions[-1]
    assert space.contains(taken)
    assert taken.tolist() == expected


def test_the_spec_describes_every_kind_of_action() -> None:
    def spec(action: Any) -> EnvSpec:
        return EnvSpec.from_env(make_env("Odd-v0", 3, action=action))

    choices = spec(spaces.MultiDiscrete([[3, 2]]))
    assert (choices.action_choices, choices.num_actions, choices.action_dim) == ((3, 2), None, 2)
    assert (choices.action_low, choices.is_discrete) == (None, False)
    assert spec(spaces.MultiBinary(3)).action_choices == (2, 2, 2)
    half = spec(spaces.Box(np.array([0, -1], np.float32), np.array([np.inf, 1], np.float32)))
    assert (half.action_low, half.action_high) == ((0.0, -1.0), (np.inf, 1.0))
    assert half.action_choices is None


@pytest.mark.parametrize(
    ("space", "value", "message"),
    [
        (
            VECTOR,
            np.zeros(1),
            r"environment 0 of Odd-v0 showed an observation of shape \(1,\); its space has \(2,\)",
        ),
        (VECTOR, 0.5, r"shape \(\); its space has \(2,\)"),
        (IMAGE, np.zeros((9, 9, 1)), r"shape \(9, 9, 1\); its space has \(9, 9, 3\)"),
        (spaces.Discrete(3), -1, "showed -1; its space has 0 to 2"),
        (spaces.MultiDiscrete([2, 2]), [0, 2], r"showed \[0, 2\]; its space is MultiDiscrete"),
        (spaces.MultiBinary(2), [[0, 1]], r"showed \[\[0, 1\]\]; its space is MultiBinary"),
        (spaces.Dict(a=VECTOR, b=VECTOR), {"a": [0], "b": [0, 1]}, r"shape \(3,\); its space has \(4,\)"),
    ],
)
def test_what_is_not_of_its_space_is_a_fault(space: Any, value: Any, message: str) -> None:
    env = make_env("Odd-v0", 2, observation=space, show=lambda space: value)
    with pytest.raises(EnvironmentFault, match=message):
        env.reset()


def step_of(**options: Any) -> Any:
    """Take three steps and return the last."""
    env = make_env("Odd-v0", 2, **options)
    state = env.reset()
    for _ in range(3):
        step, state = env.step_and_maybe_reset(state.set("action", env.action_spec.zero()))
    return step["next"]


@pytest.mark.parametrize(
    "reward", [2, np.array([2.0]), np.array([[2]]), [2.0], torch.tensor(2.0), np.float32(2), np.array(2)]
)
def test_rewards_of_any_numeric_type_are_taken(reward: Any) -> None:
    assert step_of(pay=lambda number, action: reward)["reward"].tolist() == [[2.0], [2.0]]


@pytest.mark.parametrize(
    ("reward", "text"),
    [
        (float("nan"), "nan in step 3 of its episode"),
        (float("-inf"), "-inf in step 3 of its episode"),
        (1e39, r"1e\+39 in step 3 of its episode"),
        (None, r"None in step 3 of its episode \(expected a number\)"),
        (np.ones(2), r"\[1. 1.\] in step 3 of its episode \(expected a number\)"),
        ("1.0", r"1.0 in step 3 of its episode \(expected a number\)"),
    ],
)
def test_rewards_that_are_no_finite_number_are_a_fault(reward: Any, text: str) -> None:
    with pytest.raises(EnvironmentFault, match=rf"environment 0 of Odd-v0 gave a reward of {text}"):
        step_of(pay=lambda number, action: reward if number == 3 else 0.0)


@pytest.mark.parametrize("reward", [1e30, -2e38])
def test_huge_rewards_are_told_of_once_and_returns_stay_finite(
    reward: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_gfs.envs.checks._warned_of_rewards", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        next_ = step_of(pay=lambda number, action: reward)
        step_of(pay=lambda number, action: reward)

    (told,) = [str(each.message) for each in caught if "gave a reward" in str(each.message)]
    assert f"environment 0 of Odd-v0 gave a reward of {reward:g}" in told
    assert "model.reward_scale" in told
    assert next_["episode_return"].isfinite().all()
    assert next_["reward"].tolist() == [[pytest.approx(reward)]] * 2


@pytest.mark.parametrize(
    "fold",
    [lambda *values: values[:4], lambda *values: (*values, 0), lambda *values: None],
    ids=["4", "6", "no"],
)
@pytest.mark.parametrize("limit", [{}, {"max_episode_steps": 5}], ids=["unlimited", "limited"])
def test_steps_of_other_apis_name_gymnasiums_five_values(fold: Any, limit: Any) -> None:
    expected = r"gymnasium's step returns five values \(observation, reward, terminated, truncated, info\)"
    with pytest.raises(EnvironmentFault, match=expected):
        step_of(fold=fold, **limit)
