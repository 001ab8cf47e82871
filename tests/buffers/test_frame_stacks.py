from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from ale_py.vector_env import AtariVectorEnv
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import RandomSampler, ReplayBuffer, TensorDictReplayBuffer

from lit_gfs.buffers.frame_stacks import FrameStackStorage
from lit_gfs.buffers.writer import RolloutWriter, uniform_replay_buffer
from lit_gfs.errors import UserError

STACK = 4
SLACK = 0.03


def frame_replay_buffer(capacity: int, num_envs: int, batch_size: int) -> ReplayBuffer:
    return uniform_replay_buffer(FrameStackStorage(capacity, num_envs), batch_size)


class Stream:
    """Environments that number their transitions in ``action``, and a record of every transition given out.

    Args:
        num_envs: Environments.
        seed: Of frames, rewards and episode ends.
        episode_end: Probability that a step ends an episode.
        frame: Shape of a frame. Pixels are 0 or 1, so that frames of few pixels often repeat by chance.
    """

    def __init__(
        self, num_envs: int, seed: int, episode_end: float = 0.1, frame: tuple[int, ...] = (2, 2)
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.num_envs = num_envs
        self.episode_end = episode_end
        self.frame = frame
        self.seen: list[TensorDict] = []
        self.reset()

    def reset(self) -> None:
        """Begin new episodes in all environments."""
        self.current = np.stack([self.initial_stack() for _ in range(self.num_envs)])

    def initial_stack(self) -> np.ndarray:
        """Make zeros before a frame, repetitions of a frame, or any frames at all."""
        stack = self.rng.integers(0, 2, (STACK, *self.frame), np.uint8)
        kind = self.rng.integers(3)
        if kind == 0:
            stack[: self.rng.integers(1, STACK + 1)] = 0
        elif kind == 1:
            stack[:] = stack[-1]
        return stack

    def step(self) -> TensorDict:
        """Return the next transition of each environment, ``(num_envs,)``."""
        newest = self.rng.integers(0, 2, (self.num_envs, 1, *self.frame), np.uint8)
        next_observation = np.concatenate([self.current[:, 1:], newest], 1)
        terminated = self.rng.random(self.num_envs) < self.episode_end / 2
        truncated = ~terminated & (self.rng.random(self.num_envs) < self.episode_end / 2)
        number = len(self.seen) * self.num_envs
        transition = make_transition(
            self.current, np.arange(number, number + self.num_envs), next_observation, terminated, truncated
        )
        transition["next", "reward"] = torch.from_numpy(self.rng.random((self.num_envs, 1), np.float32))
        self.seen.append(transition)
        self.current = next_observation.copy()
        for env in np.nonzero(terminated | truncated)[0]:
            self.current[env] = self.initial_stack()
        return transition

    def rollout(self, steps: int) -> TensorDict:
        """Return transitions ``(num_envs, steps)``."""
        return torch.stack([self.step() for _ in range(steps)], 1)

    def expected(self, numbers: Tensor) -> TensorDict:
        """Return the transitions with these numbers as they were given out."""
        return torch.cat(self.seen)[numbers]


def make_transition(
    observation: np.ndarray,
    action: np.ndarray,
    next_observation: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> TensorDict:
    """Make a TensorDict ``(num_envs,)`` of one transition of each environment, without its reward."""
    return TensorDict(
        {
            "observation": torch.from_numpy(observation.copy()),
            "action": torch.from_numpy(action.astype(np.int64)),
            "next": {
                "observation": torch.from_numpy(next_observation.copy()),
                "terminated": torch.from_numpy(terminated.copy())[:, None],
                "truncated": torch.from_numpy(truncated.copy())[:, None],
                "done": torch.from_numpy(terminated | truncated)[:, None],
            },
        },
        [len(action)],
    )


def assert_same(left: TensorDict, right: TensorDict) -> None:
    assert set(left.keys(True, True)) == set(right.keys(True, True))
    for key, value in left.items(True, True):
        assert value.dtype == right[key].dtype
        assert torch.equal(value, right[key]), key


def assert_exact(buffer: ReplayBuffer, seen: list[TensorDict]) -> None:
    """Check every transition in the buffer against the record; they must be the latest ones."""
    held = buffer[:]
    numbers, num_envs = held["action"], len(seen[0])
    oldest = int(numbers.min()) // num_envs
    assert_same(held, torch.cat(seen[oldest:])[numbers - oldest * num_envs])
    of_env = defaultdict(list)
    for number in numbers.tolist():
        of_env[number % num_envs].append(number // num_envs)
    assert len(of_env) == num_envs
    for steps in of_env.values():
        assert steps == list(range(len(seen) - len(steps), len(seen)))


def expected_lengths(seen: list[TensorDict], capacity: int) -> list[int]:
    """Count, one transition at a time, how many of each environment still have all of their frames."""
    num_envs = len(seen[0])
    lane = capacity // num_envs
    ring = lane + STACK + math.ceil(SLACK * lane)
    lengths = []
    for env in range(num_envs):
        frames, oldest, done = 0, [], True
        for transition in seen:
            if done:
                stack = transition["observation"][env].tolist()
                while len(stack) > 1 and stack[0] == stack[1]:
                    stack = stack[1:]
                start, frames = frames, frames + len(stack)
            frames += 1
            oldest.append(max(frames - 1 - STACK, start))
            done = bool(transition["next", "done"][env])
        lengths.append(sum(frame >= frames - ring for frame in oldest[-lane:]))
    return lengths


# -- exactness -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_every_stack_is_rebuilt_exactly(seed: int) -> None:
    rng = np.random.default_rng(1000 + seed)
    num_envs = int(rng.integers(1, 5))
    capacity = num_envs * int(rng.integers(1, 40))
    stream = Stream(num_envs, seed, episode_end=rng.choice([0.0, 0.02, 0.2, 0.6]))
    buffer = frame_replay_buffer(capacity, num_envs, batch_size=8)
    for _ in range(30):
        if rng.random() < 0.1:
            buffer.storage.end_episodes()
            stream.reset()
            if stream.seen:
                last = stream.seen[-1]["next"]
                last["truncated"] |= ~last["done"]
                last["done"].fill_(True)
        rollout = stream.rollout(int(rng.choice([1, 1, 1, 2, 7, 30])))
        indices = buffer.extend(rollout)
        assert_exact(buffer, stream.seen)
        lengths = expected_lengths(stream.seen, capacity)
        assert len(buffer) == sum(lengths)
        held = indices >= 0
        assert torch.equal(buffer[indices[held]]["action"], rollout["action"][held])
        assert (held.sum(1) == torch.tensor(lengths).clamp(max=rollout.shape[1])).all()
        batch = buffer.sample()
        assert_same(batch, stream.expected(batch["action"]))
    assert buffer.write_count == len(stream.seen) * num_envs > capacity


@pytest.mark.parametrize(("game", "steps", "reset_at"), [("breakout", 600, None), ("pong", 200, 90)])
def test_real_games_are_rebuilt_exactly(game: str, steps: int, reset_at: int | None) -> None:
    num_envs, rng = 3, np.random.default_rng(0)
    env = AtariVectorEnv(game, num_envs, autoreset_mode="SameStep", reward_clipping=False, num_threads=1)
    buffer = frame_replay_buffer(capacity=num_envs * 70, num_envs=num_envs, batch_size=32)
    observation, info = env.reset(seed=5)
    lives, seen, unsent = info["lives"], [], 0
    for step in range(steps):
        if step == reset_at:
            buffer.extend(torch.stack(seen[-unsent:], 1))
            unsent = 0
            buffer.storage.end_episodes()
            seen[-1]["next", "truncated"].fill_(True)
            seen[-1]["next", "done"].fill_(True)
            observation, info = env.reset(seed=6)
        actions = rng.integers(0, len(env.ale.get_action_set()), num_envs)
        after, reward, terminated, truncated, info = env.step(actions)
        next_observation = after.copy()
        done = terminated | truncated
        if done.any():
            next_observation[done] = info["final_obs"][done]
        transition = make_transition(
            observation,
            np.arange(step * num_envs, (step + 1) * num_envs),
            next_observation,
            terminated,
            truncated,
        )
        transition["next", "reward"] = torch.from_numpy(reward.astype(np.float32))[:, None]
        transition["next", "end_of_life"] = torch.from_numpy(info["lives"] < lives)[:, None]
        seen.append(transition)
        observation, lives, unsent = after, info["lives"], unsent + 1
        if rng.random() < 0.5:
            buffer.extend(torch.stack(seen[-unsent:], 1))
            unsent = 0
            if step % 10 == 0:
                assert_exact(buffer, seen)
    env.close()
    if unsent:
        buffer.extend(torch.stack(seen[-unsent:], 1))
    assert_exact(buffer, seen)
    if reset_at is None:
        assert sum(int(transition["next", "done"].sum()) for transition in seen) >= num_envs
    # The slack of 70 transitions has room for one start of an episode (2 frames): nothing is lost to it.
    assert len(buffer) == num_envs * 70


def test_a_sample_has_exactly_the_keys_of_a_transition() -> None:
    stream = Stream(2, seed=0, frame=(84, 84))
    rollout = stream.rollout(5)
    rollout["collector"] = TensorDict({"mask": torch.ones(2, 5)}, (2, 5))
    buffer = frame_replay_buffer(20, num_envs=2, batch_size=6)
    buffer.extend(rollout)
    batch = buffer.sample()
    assert batch.shape == (6,)
    assert batch["observation"].shape == batch["next", "observation"].shape == (6, STACK, 84, 84)
    assert set(batch.keys()) == {"observation", "action", "next"}
    assert set(batch["next"].keys()) == {"observation", "reward", "done", "terminated", "truncated"}


def test_it_works_in_any_buffer_of_torchrl() -> None:
    buffer = TensorDictReplayBuffer(
        storage=FrameStackStorage(20, num_envs=2),
        sampler=RandomSampler(),
        writer=RolloutWriter(),
        collate_fn=lambda batch: batch,
        batch_size=6,
    )
    stream = Stream(2, seed=0)
    buffer.extend(stream.rollout(5))
    batch = buffer.sample()
    assert_same(batch.exclude("index"), stream.expected(batch["action"]))
    assert_same(buffer.storage[3], stream.expected(buffer.storage[3]["action"]))


def test_a_frame_may_have_channels() -> None:
    stream = Stream(2, seed=0, frame=(5, 4, 3))
    buffer = frame_replay_buffer(20, num_envs=2, batch_size=6)
    buffer.extend(stream.rollout(25))
    assert_exact(buffer, stream.seen)


# -- episode ends --------------------------------------------------------------------------------------------


def test_end_episodes_truncates_what_is_open_and_nothing_else() -> None:
    stream = Stream(3, seed=0, episode_end=0.0)
    rollout = stream.rollout(2)
    rollout["next", "terminated"][1, -1] = True
    rollout["next", "done"][1, -1] = True
    buffer = frame_replay_buffer(30, num_envs=3, batch_size=4)
    buffer.storage.end_episodes()  # nothing to end
    buffer.extend(rollout)
    buffer.storage.end_episodes()
    held = buffer[:]
    last = held[held["action"].sort().indices][-3:]["next"]
    assert last["truncated"].squeeze().tolist() == [True, False, True]
    assert last["terminated"].squeeze().tolist() == [False, True, False]
    assert last["done"].all()
    assert int(held["next", "done"].sum()) == 3
    assert torch.equal(last["observation"], rollout["next", "observation"][:, -1])


def test_a_stream_that_does_not_go_on_is_refused_and_leaves_no_trace() -> None:
    stream = Stream(2, seed=1, episode_end=0.0, frame=(4, 4))
    buffer = frame_replay_buffer(30, num_envs=2, batch_size=4)
    buffer.extend(stream.rollout(3))
    stream.reset()
    after_reset = stream.rollout(2)
    with pytest.raises(ValueError, match=r"env 0 do not go on at step 0 .* end_episodes"):
        buffer.extend(after_reset)
    assert_exact(buffer, stream.seen[:3])
    buffer.storage.end_episodes()
    buffer.extend(after_reset)
    assert len(buffer) == 10

    gap = stream.rollout(4)[:, [0, 1, 3]]
    with pytest.raises(ValueError, match="env 0 do not go on at step 2"):
        buffer.extend(gap)
    gap["next", "observation"][1, 0, 0] += 1
    with pytest.raises(ValueError, match="env 1 do not go on at step 0"):
        buffer.extend(gap[:, :2])


def test_other_keys_or_environments_than_before_are_refused() -> None:
    stream = Stream(2, seed=1)
    buffer = frame_replay_buffer(30, num_envs=2, batch_size=4)
    with pytest.raises(ValueError, match="the rollout has 1 envs; expected 2"):
        buffer.extend(stream.rollout(2)[:1])
    with pytest.raises(ValueError, match="'terminated', 'truncated'"):
        buffer.extend(stream.rollout(2).exclude(("next", "terminated")))
    buffer.extend(stream.rollout(2))
    more = stream.rollout(2)
    more["next", "end_of_life"] = more["next", "done"].clone()
    with pytest.raises(ValueError, match="'end_of_life'"):
        buffer.extend(more)
    with pytest.raises(TypeError, match="extend with a rollout"):
        buffer.add(more[0, 0])


# -- sampling ------------------------------------------------------------------------------------------------


def test_sampling_is_uniform_over_valid_transitions() -> None:
    # One environment ends an episode at every step, so that it keeps fewer transitions than the other.
    stream = Stream(2, seed=3, episode_end=0.0)
    buffer = frame_replay_buffer(80, num_envs=2, batch_size=1000)
    for _ in range(100):
        stream.current[0] = np.random.default_rng(len(stream.seen)).integers(0, 2, (STACK, 2, 2))
        transition = stream.rollout(1)
        transition["next", "done"][0] = True
        transition["next", "terminated"][0] = True
        buffer.extend(transition)
    held = buffer[:]["action"]
    per_env = torch.bincount(held % 2)
    assert per_env[1] == 40
    assert 5 <= per_env[0] <= 20
    assert len(set(held.tolist())) == len(buffer)

    torch.manual_seed(0)
    drawn = torch.cat([buffer.sample()["action"] for _ in range(100)])
    assert set(drawn.tolist()) == set(held.tolist())
    counts = torch.bincount(drawn)[held].double()
    expected = len(drawn) / len(held)
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    freedom = len(held) - 1
    assert abs(chi_square - freedom) < 3.5 * math.sqrt(2 * freedom)


def test_the_global_generator_decides_what_is_drawn() -> None:
    buffer = frame_replay_buffer(80, num_envs=2, batch_size=16)
    buffer.extend(Stream(2, seed=0).rollout(30))
    torch.manual_seed(7)
    first, second = buffer.sample(), buffer.sample()
    torch.manual_seed(7)
    assert_same(first, buffer.sample())
    assert not torch.equal(first["action"], second["action"])


@pytest.mark.parametrize("index", [-1, 20])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    storage = FrameStackStorage(40, num_envs=2)
    storage.extend(Stream(2, seed=0).rollout(10))
    assert len(storage) == 20
    assert 19 in storage
    assert index not in storage
    with pytest.raises(IndexError, match="expected 0 to 19"):
        storage[torch.tensor([0, index])]


# -- memory and state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "is_full"), [(67, True), (30, False)])
def test_slack_holds_for_episodes_as_long_as_documented(length: int, is_full: bool) -> None:
    # What ALE's vector environment begins an episode with: three zero frames and a real one.
    buffer = frame_replay_buffer(2000, num_envs=1, batch_size=4)
    stack = np.zeros((1, STACK, 1, 1), np.uint8)
    for episode in range(2 * 2000 // length):
        stack[:, :-1], stack[:, -1] = 0, 1 + episode % 200
        steps = []
        for step in range(length):
            next_observation = np.concatenate(
                [stack[:, 1:], np.full((1, 1, 1, 1), 1 + (episode + step) % 250, np.uint8)], 1
            )
            ends = np.array([step == length - 1])
            steps.append(make_transition(stack, np.zeros(1), next_observation, ends, np.zeros(1, bool)))
            steps[-1]["next", "reward"] = torch.zeros(1, 1)
            stack = next_observation
        buffer.extend(torch.stack(steps, 1))
    assert (len(buffer) == 2000) == is_full
    assert len(buffer) > 2000 * 0.95


def test_a_million_transitions_fit_in_seven_and_a_half_gigabytes() -> None:
    buffer = frame_replay_buffer(2000, num_envs=1, batch_size=4)
    stream = Stream(1, seed=0, frame=(84, 84), episode_end=0.01)
    buffer.extend(stream.rollout(2500))
    tensors = TensorDict(buffer.storage.rows(buffer.storage.first_row, buffer.storage.row_count))
    used = sum(value.numel() * value.element_size() for value in tensors.values(True, True))
    assert len(buffer) > 1950
    assert used / 2000 * 1_000_000 < 7.5e9


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("deterministic", [False, True])
def test_untouched_memory_costs_nothing(deterministic: bool) -> None:
    rollout = Stream(2, seed=0, frame=(84, 84)).rollout(2)
    before = resident_bytes()
    torch.use_deterministic_algorithms(deterministic)
    try:
        buffer = frame_replay_buffer(100_000, num_envs=2, batch_size=4)
        buffer.extend(rollout)
    finally:
        torch.use_deterministic_algorithms(False)
    assert resident_bytes() - before < 100e6  # of 727e6
    assert len(buffer) == 4


def test_emptying() -> None:
    buffer = frame_replay_buffer(60, num_envs=3, batch_size=8)
    buffer.extend(Stream(3, seed=1).rollout(5))
    buffer.empty()
    assert len(buffer) == buffer.write_count == 0
    with pytest.raises(RuntimeError, match="empty"):
        buffer.sample()
    stream = Stream(3, seed=0)
    buffer.extend(stream.rollout(5))
    assert_exact(buffer, stream.seen)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"capacity": 3, "num_envs": 4},
            "capacity is 3; expected at least one transition for each of 4 envs",
        ),
        ({"capacity": 3, "num_envs": 0}, "num_envs is 0"),
        ({"capacity": 30, "num_envs": 3, "episode_slack": -0.1}, "episode_slack is -0.1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FrameStackStorage(**arguments)
