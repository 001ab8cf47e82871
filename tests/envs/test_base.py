"""What every suite shares, on simulators whose episodes are written down by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import Unbounded
from torchrl.envs import EnvBase, check_env_specs

from lit_gfs.envs.action_specs import discrete_action
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.envs.simulators import env_seeds


class ScriptedEnv(SerialEnv):
    """Env i ends after ``lengths[i]`` steps, truncated if i is odd. It shows (episode, step), pays i + 1."""

    def __init__(self, lengths: list[int], frame_skip: int = 1) -> None:
        count = len(lengths)
        super().__init__(
            "Scripted-v0",
            count,
            {"observation": Unbounded((count, 2), dtype=torch.float32)},
            discrete_action(3, count),
            frame_skip,
            0,
        )
        self.lengths = lengths
        self.episodes = [0] * count
        self.steps = [0] * count
        self.seeds: list[int | None] = [None] * count

    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        if seed is not None:
            self.seeds[index] = seed
            self.episodes[index] = 0
        self.episodes[index] += 1
        self.steps[index] = 0
        observation[:] = self.episodes[index], 0

    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        self.steps[index] += 1
        observation[:] = self.episodes[index], self.steps[index]
        ended = self.steps[index] >= self.lengths[index]
        return index + 1.0, ended and index % 2 == 0, ended and index % 2 == 1

    def _render_one(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError


def act(state: TensorDictBase, env: EnvBase) -> TensorDictBase:
    return state.set("action", torch.zeros(env.batch_size, dtype=torch.int64))


def test_specs() -> None:
    check_env_specs(ScriptedEnv([2, 3]))


def test_the_end_of_an_episode() -> None:
    env = ScriptedEnv([2, 3])
    step, state = env.step_and_maybe_reset(act(env.reset(), env))
    assert not step["next", "done"].any()
    step, state = env.step_and_maybe_reset(act(state, env))
    next_ = step["next"]
    assert next_["observation"].tolist() == [[1, 2], [1, 2]]
    assert next_["reward"].tolist() == [[1], [2]]
    assert next_["terminated"].tolist() == [[True], [False]]
    assert next_["done"].tolist() == [[True], [False]]
    assert not next_["truncated"].any()
    assert next_["episode_return"].tolist() == [[2], [4]]
    assert next_["episode_length"].tolist() == [[2], [2]]
    assert state["observation"].tolist() == [[2, 0], [1, 2]]
    assert state["episode_return"].tolist() == [[0], [4]]
    assert state["episode_length"].tolist() == [[0], [2]]
    assert not state["done"].any()
    step, state = env.step_and_maybe_reset(act(state, env))
    assert step["next", "truncated"].tolist() == [[False], [True]]
    assert not step["next", "terminated"].any()
    assert step["next", "episode_return"].tolist() == [[1], [6]]
    assert state["episode_length"].tolist() == [[1], [0]]


def test_a_finished_episode_is_not_reset_twice() -> None:
    env = ScriptedEnv([1, 5])
    state = act(env.reset(), env)
    for _ in range(4):
        step = env.step(state)
        state = act(env.maybe_reset(env.step_mdp(step)), env)
    assert env.episodes == [5, 1]
    assert state["observation"].tolist() == [[5, 0], [1, 4]]


def test_a_single_environment_that_ends_in_every_step_keeps_its_generator() -> None:
    env = ScriptedEnv([1])
    state = env.reset()
    for episode in range(1, 5):
        assert state["observation"].tolist() == [[episode, 0]]
        _, state = env.step_and_maybe_reset(act(state, env))


def test_stepping_on_without_a_reset_goes_on_in_the_new_episode() -> None:
    env = ScriptedEnv([2])
    state = act(env.reset(), env)
    lengths = []
    for _ in range(4):
        lengths.append(env.step(state.clone())["next", "episode_length"].item())
    assert lengths == [1, 2, 1, 2]


def test_partial_reset_of_episodes_that_have_not_ended() -> None:
    env = ScriptedEnv([9, 9, 9])
    step, state = env.step_and_maybe_reset(act(env.reset(), env))
    state["_reset"] = torch.tensor([[False], [True], [False]])
    state = env.reset(state)
    assert state["observation"].tolist() == [[1, 1], [2, 0], [1, 1]]
    assert state["episode_length"].tolist() == [[1], [0], [1]]
    step, _ = env.step_and_maybe_reset(act(state, env))
    assert step["next", "episode_length"].tolist() == [[2], [1], [2]]
    assert step["next", "episode_return"].tolist() == [[2], [2], [6]]


def test_full_resets_take_a_new_seed_once() -> None:
    env = ScriptedEnv([5, 5])
    env.set_seed(3)
    env.reset()
    assert env.seeds == env_seeds(3, 2).tolist()
    assert env.episodes == [1, 1]
    env.reset()
    assert env.episodes == [2, 2]


def test_seeds_differ_between_environments_and_between_seeds() -> None:
    seeds = np.concatenate([env_seeds(seed, 256) for seed in range(20)])
    assert len(np.unique(seeds)) == len(seeds)
    assert seeds.min() >= 0
    assert seeds.max() < 2**31


@pytest.mark.parametrize("extra", [{}, {"logits": (3,), "value": ()}, {"nested": None}])
def test_the_direct_step_equals_torchrls(extra: dict[str, Any]) -> None:
    direct, general = ScriptedEnv([1, 2, 3]), ScriptedEnv([1, 2, 3])
    states = [direct.reset(), general.reset()]
    keys = set(states[0].keys(True, True))
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        written: dict[str, Any] = {"action": torch.randint(3, (3,), generator=generator)}
        for key, shape in extra.items():
            if shape is None:
                written[key] = TensorDict({"x": torch.rand(3, 2, generator=generator)}, [3], device="cpu")
            else:
                written[key] = torch.rand(3, *shape, generator=generator)
        for state in states:
            state.update(TensorDict(written, [3], device="cpu").clone())
        steps = [direct.step_and_maybe_reset(states[0]), EnvBase.step_and_maybe_reset(general, states[1])]
        assert set(steps[0][0].keys(True, True)) == set(steps[1][0].keys(True, True))
        assert set(steps[0][1].keys(True, True)) == keys
        for mine, theirs in zip(*steps, strict=True):
            assert mine.device == theirs.device
            assert mine.batch_size == theirs.batch_size
            for key in mine.keys(True, True):
                assert mine[key].dtype == theirs[key].dtype, key
                assert torch.equal(mine[key], theirs[key]), key
        assert steps[0][0] is states[0]
        states = [step[1] for step in steps]
    assert direct.episodes == general.episodes == [13, 7, 5]


class NoOp(torch.nn.Module):
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return tensordict.set("action", torch.zeros(tensordict.batch_size, dtype=torch.int64))


def collector(env: EnvBase, steps: int) -> Collector:
    frames = env.batch_size.numel() * steps
    return Collector(
        env,
        NoOp(),
        frames_per_batch=frames,
        total_frames=-1,
        track_traj_ids=False,
        trust_policy=True,
        auto_register_policy_transforms=False,
    )


def test_a_collector_gets_every_step_once() -> None:
    rollouts = iter(collector(ScriptedEnv([2, 3]), 4))
    first, second = next(rollouts), next(rollouts)
    steps = torch.cat([first["observation"], second["observation"]], dim=1)
    next_ = torch.cat([first["next", "observation"], second["next", "observation"]], dim=1)
    assert steps[0].tolist() == [[1 + t // 2, t % 2] for t in range(8)]
    assert next_[0].tolist() == [[1 + t // 2, t % 2 + 1] for t in range(8)]
    assert steps[1].tolist() == [[1 + t // 3, t % 3] for t in range(8)]


def test_a_collector_reset_begins_anew() -> None:
    env = ScriptedEnv([9, 9])
    collecting = collector(env, 3)
    rollouts = iter(collecting)
    next(rollouts)
    env.set_seed(1)
    collecting.reset()
    rollout = next(rollouts)
    assert rollout["next", "observation"][0].tolist() == [[1, 1], [1, 2], [1, 3]]
    assert rollout["next", "episode_length"][0].flatten().tolist() == [1, 2, 3]


def test_resets_leave_shared_flags_false() -> None:
    env = ScriptedEnv([2, 3])
    collecting = collector(env, 7)
    rollouts = iter(collecting)
    for index in (None, 0, None):
        rollout = next(rollouts)
        assert rollout["next", "done"].any()
        assert not any(rollout[key].any() for key in ("done", "terminated", "truncated"))
        collecting.reset(index)
    _, state = env.step_and_maybe_reset(act(env.reset(), env))
    assert not any(state[key].any() for key in ("done", "terminated", "truncated"))


def test_steps_hand_out_memory_of_their_own() -> None:
    env = ScriptedEnv([2, 3])
    state: TensorDictBase = env.reset()
    kept: list[tuple[Tensor, Tensor]] = []
    for _ in range(6):
        step, state = env.step_and_maybe_reset(act(state, env))
        kept += [(value, value.clone()) for value in step["next"].values()]
        kept += [(value, value.clone()) for value in state.values()]
    assert all(torch.equal(value, copy) for value, copy in kept)


def test_frame_skip_is_told_but_not_applied_by_torchrl() -> None:
    env = ScriptedEnv([9], frame_skip=4)
    assert env.frame_skip == 4
    step, _ = env.step_and_maybe_reset(act(env.reset(), env))
    assert step["next", "observation"].tolist() == [[1, 1]]


@pytest.mark.parametrize("lengths", [[1, 2, 3], [2]])
def test_a_step_without_tensordicts_equals_one_with_them(lengths: list[int]) -> None:
    lean, general = ScriptedEnv(lengths), ScriptedEnv(lengths)
    lean.reset()
    state: TensorDictBase = general.reset()
    for time in range(12):
        if time in (4, 8):
            # A seed that no full reset has asked for yet: it waits until all episodes end at once.
            lean.set_seed(time)
            general.set_seed(time)
        step = lean.advance(np.zeros(len(lengths), dtype=np.int64))
        expected, state = EnvBase.step_and_maybe_reset(general, act(state, general))
        next_ = expected["next"]
        assert np.array_equal(step.observations["observation"], next_["observation"].numpy())
        for key in ("reward", "done", "terminated", "truncated", "episode_return", "episode_length"):
            assert getattr(step, key).tolist() == next_[key].squeeze(-1).tolist(), key
        assert np.array_equal(lean.observations["observation"], state["observation"].numpy())
    assert lean.episodes == general.episodes
    assert lean.seeds == general.seeds


def test_steps_without_tensordicts_hand_out_memory_of_their_own() -> None:
    env = ScriptedEnv([2, 3])
    env.reset()
    kept = []
    for _ in range(7):
        step = env.advance(np.zeros(2, dtype=np.int64))
        arrays = [step.observations["observation"], *step[1:], env.observations["observation"]]
        kept += [(array, array.copy()) for array in arrays]
    assert all(np.array_equal(array, copy) for array, copy in kept)


def test_a_reset_right_after_an_episode_begins_one_more() -> None:
    """The step has answered TorchRL's reset already: another one is a new wish."""
    envs = [ScriptedEnv([1, 5]), ScriptedEnv([1, 5])]
    states: list[TensorDictBase] = [env.reset() for env in envs]
    envs[0].advance(np.zeros(2, dtype=np.int64))
    _, states[1] = EnvBase.step_and_maybe_reset(envs[1], act(states[1], envs[1]))
    for env, state in zip(envs, states, strict=True):
        state["_reset"] = torch.tensor([[True], [False]])
        assert env.reset(state)["observation"][0].tolist() == [3, 0]
        assert env.episodes == [3, 1]
