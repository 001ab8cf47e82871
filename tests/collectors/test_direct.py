"""Direct rollouts against TorchRL's own, from the same environments, policies and seeds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.collectors import Collector
from torchrl.data import Unbounded

from lit_gfs.agents import DQN, PPO, PQN
from lit_gfs.agents.agent import Agent
from lit_gfs.collectors.direct import DirectCollector
from lit_gfs.collectors.env_runner import EnvRunner
from lit_gfs.collectors.final_observations import FinalObservations
from lit_gfs.collectors.policy import Policy
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.action_specs import continuous_action
from lit_gfs.envs.base import BatchedEnv
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.envs.simulators import env_seeds
from support.fakes import CountingEnv

NEXT_KEYS = ["observation", "reward", "done", "terminated", "truncated", "episode_return", "episode_length"]


class ShrinkingEnv(SerialEnv):
    """Env i ends after i + 2 steps, truncated if i is odd; it adds actions up, and draws where it begins."""

    def __init__(self, num_envs: int) -> None:
        observations = {"observation": Unbounded((num_envs, 3), dtype=torch.float32)}
        action = continuous_action(-np.ones(2), np.ones(2), num_envs)
        super().__init__("Shrinking-v0", num_envs, observations, action, 1, 0)
        self.generators = [np.random.default_rng(0) for _ in range(num_envs)]
        self.state = np.zeros((num_envs, 3))

    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        if seed is not None:
            self.generators[index] = np.random.default_rng(seed)
        self.state[index, :2] = self.generators[index].normal(size=2)
        self.state[index, 2] = 0
        observation[:] = self.state[index]

    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        self.state[index, :2] += action
        self.state[index, 2] += 1
        observation[:] = self.state[index]
        ended = self.state[index, 2] >= index + 2
        return float(self.state[index, 0]) / 3, ended and index % 2 == 0, ended and index % 2 == 1

    def _render_one(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError


MAKE: dict[str, Callable[[], BatchedEnv]] = {
    "cartpole": lambda: make_env("CartPole-v1", 5, seed=0),
    "truncating": lambda: ShrinkingEnv(4),
    "one": lambda: ShrinkingEnv(1),
    "cheetah": lambda: make_env("dm_control/cheetah-run-v0", 2, seed=0, action_repeat=100),
    "breakout": lambda: make_env("ALE/Breakout-v5", 2, seed=0, max_frames=80, num_threads=1),
}
STEPS = 7


def make_agent(kind: Callable[[EnvSpec], Agent], env: BatchedEnv) -> Agent:
    torch.manual_seed(0)
    agent = kind(EnvSpec.from_env(env))
    agent.__class__ = type(f"Acting{kind.__name__}", (type(agent),), {"env_steps": 2_000})
    return agent


def make_collector(
    kind: type[Collector], env: BatchedEnv, policy: Any, steps: int = STEPS, **options: Any
) -> Any:
    defaults: dict[str, Any] = {
        "frames_per_batch": env.num_envs * steps,
        "total_frames": -1,
        "policy_device": "cpu",
        "env_device": "cpu",
        "storing_device": "cpu",
        "track_traj_ids": False,
        "trust_policy": True,
        "auto_register_policy_transforms": False,
        "return_same_td": True,
    }
    return kind(env, policy, **{**defaults, **options})


def collect(collector: Any, seed: int, rollouts: int = 1) -> list[TensorDictBase]:
    """Reset and seed everything, as a barrier does, and collect."""
    torch.manual_seed(seed)
    collector.env.set_seed(seed)
    collector.reset()
    stream = iter(collector)
    return [next(stream).clone() for _ in range(rollouts)]


def assert_equal(direct: TensorDictBase, general: TensorDictBase, keys: list[Any]) -> None:
    assert direct.batch_size == general.batch_size
    assert direct.device == general.device
    for key in keys:
        assert direct[key].dtype == general[key].dtype, key
        assert direct[key].shape == general[key].shape, key
        # Batches of other layouts may go through other kernels, which round the last bits differently.
        torch.testing.assert_close(direct[key], general[key], rtol=1e-5, atol=1e-6)


def keys_of(env: BatchedEnv, outputs: list[str]) -> list[Any]:
    lost = ["end_of_life"] if "end_of_life" in env.observation_spec else []
    return ["observation", *outputs, *(("next", key) for key in [*NEXT_KEYS, *lost])]


@pytest.mark.parametrize("suite", MAKE)
@pytest.mark.parametrize("steps", [1, STEPS])
def test_running_ahead_changes_nothing_but_when(suite: str, steps: int) -> None:
    """With the same weights, running ahead gives the same rollouts; a reset drops the step that has begun."""
    collectors = []
    for runs_ahead in (True, False):
        env = MAKE[suite]()
        policy = make_agent(PPO, env).collection_policy()
        collectors.append(make_collector(DirectCollector, env, policy, steps, runs_ahead=runs_ahead))
    keys = keys_of(collectors[0].env, ["action", "sample", "log_prob", "value"])

    for seed in (3, 4):
        ahead, behind = (collect(collector, seed, 30 // steps) for collector in collectors)
        for mine, expected in zip(ahead, behind, strict=True):
            assert_equal(mine, expected, keys)

    for collector in collectors:
        collector.shutdown()


def test_running_ahead_acts_before_it_is_asked_for_the_next_rollout() -> None:
    env = MAKE["cartpole"]()
    seen: list[Tensor] = []

    def act(observation: Tensor) -> dict[str, Tensor]:
        seen.append(observation)
        return {"action": torch.ones(len(observation), dtype=torch.int64)}

    policy = Policy(act, ["action"])
    for runs_ahead, calls in ((True, STEPS + 1), (False, STEPS)):
        seen.clear()
        collect(make_collector(DirectCollector, env, policy, runs_ahead=runs_ahead), 0)
        assert len(seen) == calls


@pytest.mark.parametrize("suite", MAKE)
@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_direct_rollout_equals_torchrls(suite: str, steps: int) -> None:
    collectors = []
    for kind in (DirectCollector, Collector):
        env = MAKE[suite]()
        policy = make_agent(PPO, env).collection_policy()
        collectors.append(make_collector(kind, env, policy, steps))
    assert collectors[0].is_direct
    keys = keys_of(collectors[0].env, ["action", "sample", "log_prob", "value"])

    ended = 0
    for seed in (3, 4):
        # The second turn begins in the middle of episodes.
        rollouts = [collect(collector, seed, 30 // steps) for collector in collectors]
        for direct, general in zip(*rollouts, strict=True):
            assert_equal(direct, general, keys)
            assert set(direct.keys(True, True)) == set(keys)
            ended += int(direct["next", "done"].sum())

    assert ended > 0
    for collector in collectors:
        collector.shutdown()
        assert collector.closed


@pytest.mark.parametrize("kind", [DQN, PQN])
def test_value_methods_draw_the_same_random_actions(kind: Callable[[EnvSpec], Agent]) -> None:
    collectors = []
    for collector in (DirectCollector, Collector):
        env = MAKE["cartpole"]()
        agent = make_agent(kind, env)
        assert 0.1 < agent.epsilon < 0.9  # type: ignore[attr-defined]
        collectors.append(make_collector(collector, env, agent.collection_policy()))
    outputs = ["action"] if kind is DQN else ["action", "value"]
    for direct, general in zip(*(collect(collector, 1, 5) for collector in collectors), strict=True):
        assert_equal(direct, general, keys_of(collectors[0].env, outputs))


def test_the_policy_runs_in_the_precision_around_it() -> None:
    rollouts, exact = [], None
    for collector in (DirectCollector, Collector):
        env = MAKE["cartpole"]()
        made = make_collector(collector, env, make_agent(PPO, env).collection_policy())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rollouts += collect(made, 1)
        (exact,) = collect(made, 1)
    assert_equal(*rollouts, keys_of(env, ["action", "sample", "log_prob", "value"]))
    assert exact is not None
    assert not torch.equal(rollouts[0]["value"], exact["value"])


@pytest.mark.parametrize("suite", ["cartpole", "breakout"])
def test_what_goes_to_another_device_and_back_stays_the_same(
    suite: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The staging of observations, without the other device."""
    rollouts = []
    for remote in (True, False):
        env = MAKE[suite]()
        made = make_collector(DirectCollector, env, make_agent(PPO, env).collection_policy())
        if remote:
            spec = env.observation_spec["observation"]
            made._has_remote_policy, made._transfer_buffer = True, torch.empty(spec.shape, dtype=spec.dtype)
        rollouts += collect(made, 1)
    assert_equal(*rollouts, keys_of(env, ["action", "sample", "log_prob", "value"]))


def test_a_seed_without_a_reset_takes_effect_when_torchrl_would_have_it() -> None:
    rollouts = []
    for kind in (DirectCollector, Collector):
        env = ShrinkingEnv(1)
        collector = make_collector(kind, env, make_agent(PPO, env).collection_policy(), steps=5)
        rollouts += collect(collector, 1)
        collector.set_seed(9)
        rollouts += [next(iter(collector)).clone()]
    for direct, general in zip(rollouts[:2], rollouts[2:], strict=True):
        assert_equal(direct, general, keys_of(env, ["action"]))
    # The episode that was open ends first.
    marks = rollouts[1]["observation"][0, :, 0].tolist()
    assert rollouts[1]["next", "episode_length"].flatten().tolist() == [2, 1, 2, 1, 2]
    assert marks[1] == float(np.float32(np.random.default_rng(env_seeds(9, 1)[0]).normal()))


@pytest.mark.parametrize("index", [None, 1])
def test_a_reset_begins_new_episodes(index: int | None) -> None:
    env = ShrinkingEnv(3)
    collector = make_collector(DirectCollector, env, make_agent(PPO, env).collection_policy(), steps=1)
    collect(collector, 1)
    collector.reset(index)
    steps = next(iter(collector))["next", "episode_length"].flatten().tolist()
    assert steps == ([1, 1, 1] if index is None else [2, 1, 2])


def test_the_iteration_protocol() -> None:
    env = ShrinkingEnv(2)
    seen: list[str] = []
    collector = make_collector(
        DirectCollector,
        env,
        make_agent(PPO, env).collection_policy(),
        total_frames=42,
        return_same_td=False,
        pre_collect_hook=lambda: seen.append("before"),
        post_collect_hook=lambda rollout: seen.append("after"),
    )
    assert collector.is_direct
    rollouts = list(collector)
    assert seen == ["before", "after"] * 3
    assert [rollout.numel() for rollout in rollouts] == [14, 14, 14]
    # Copies: the first one is not written over.
    assert not torch.equal(rollouts[0]["observation"], rollouts[1]["observation"])
    assert collector.state_dict()["frames"] == 42
    again = make_collector(DirectCollector, ShrinkingEnv(2), make_agent(PPO, env).collection_policy())
    again.load_state_dict(collector.state_dict())
    assert again.state_dict()["frames"] == 42


def test_the_next_rollout_is_written_over_the_same_one() -> None:
    env = ShrinkingEnv(2)
    rollouts = iter(make_collector(DirectCollector, env, make_agent(PPO, env).collection_policy()))
    first, second = next(rollouts), next(rollouts)
    assert first["observation"].data_ptr() == second["observation"].data_ptr()


@pytest.mark.parametrize(
    "options",
    [
        {"track_traj_ids": True},
        {"postproc": lambda rollout: rollout},
        {"max_frames_per_traj": 3},
        {"init_random_frames": 28},
    ],
)
def test_what_a_direct_rollout_does_not_do_is_left_to_torchrl(options: dict[str, Any]) -> None:
    collectors = []
    for kind in (DirectCollector, Collector):
        env = ShrinkingEnv(4)
        collectors.append(make_collector(kind, env, make_agent(PPO, env).collection_policy(), **options))
    assert not collectors[0].is_direct
    for direct, general in zip(*(collect(collector, 1, 3) for collector in collectors), strict=True):
        assert set(direct.keys(True, True)) == set(general.keys(True, True))
        assert_equal(direct, general, list(general.keys(True, True)))


def test_other_environments_and_policies_are_left_to_torchrl() -> None:
    counting = CountingEnv([3, 4])
    counting.num_envs = 2  # type: ignore[attr-defined]
    policy = make_agent(PPO, counting).collection_policy()  # type: ignore[arg-type]
    collector = make_collector(DirectCollector, counting, policy)  # type: ignore[arg-type]
    assert not collector.is_direct
    assert next(iter(collector))["next", "episode_length"][0].flatten().tolist() == [1, 2, 3, 1, 2, 3, 1]
    collector = make_collector(DirectCollector, ShrinkingEnv(2), None)
    assert not collector.is_direct
    assert next(iter(collector))["next", "episode_length"][0].flatten().tolist() == [1, 2, 1, 2, 1, 2, 1]


def both_forms(kind: Callable[[EnvSpec], Agent]) -> tuple[Agent, TensorDictBase, TensorDictBase]:
    """A rollout of Breakout with truncations, with only final observations and with all of them."""
    forms = []
    for only_final in (True, False):
        env = MAKE["breakout"]()
        agent = make_agent(kind, env)
        collector = make_collector(
            DirectCollector, env, agent.collection_policy(), 30, only_final_observations=only_final
        )
        forms += collect(collector, 5)
    return agent, *forms


def test_only_final_observations() -> None:
    _, final, full = both_forms(PPO)
    ends = full["next", "done"].squeeze(-1).clone()
    assert ends.any()
    assert not ends[:, -1].all()
    ends[:, -1] = True
    kept = final["next", "observation"]
    assert isinstance(kept, FinalObservations)
    assert len(kept.observation) == int(ends.sum())
    assert torch.equal(kept[ends], full["next", "observation"][ends])
    some = ends.clone()
    some[0, -1] = False
    assert torch.equal(kept[some], full["next", "observation"][some])
    assert_equal(final, full, [key for key in full.keys(True, True) if key != ("next", "observation")])
    some[1, 0] = True
    with pytest.raises(ValueError, match="step 0 of env 1 did not end an episode"):
        kept[some]
    # What is left out is what the rollout shows one step later.
    goes_on = ~ends[:, :-1]
    assert torch.equal(full["next", "observation"][:, :-1][goes_on], final["observation"][:, 1:][goes_on])


@pytest.mark.parametrize("kind", [PPO, PQN])
def test_agents_learn_the_same_from_only_final_observations(kind: Callable[[EnvSpec], Agent]) -> None:
    agent, final, full = both_forms(kind)
    assert (full["next", "truncated"] & ~full["next", "terminated"]).any()
    processed = [agent.process_rollout(rollout) for rollout in (final, full)]  # type: ignore[attr-defined]
    assert_equal(*processed, list(processed[1].keys()))
    wrong = full.clone()
    wrong["next", "observation"][full["next", "truncated"].squeeze(-1)] = 0
    target = "value_target" if kind is PPO else "target"
    assert not torch.equal(agent.process_rollout(wrong)[target], processed[0][target])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "suite", "only_final"),
    [(PPO, "breakout", True), (PQN, "breakout", True), (DQN, "breakout", False), (PPO, "cartpole", False)],
)
def test_experience_keeps_what_its_agent_needs(
    kind: Callable[[EnvSpec], Agent], suite: str, only_final: bool
) -> None:
    env = MAKE[suite]()
    agent = make_agent(kind, env)
    agent.announce_objective_shift = lambda reason: None  # type: ignore[method-assign]
    runner = EnvRunner(env, agent, 4, seed=0, rank=0, world_size=1, precision=nullcontext)
    runner.pass_barrier(0)
    rollout = runner.collect()
    assert isinstance(rollout["next", "observation"], FinalObservations) == only_final
    assert runner.env_steps == rollout.numel()


@pytest.mark.parametrize(("updates", "alike"), [(0, True), (1, False)])
def test_checkpoints_at_one_step_count_draw_differently(updates: int, alike: bool) -> None:
    env = MAKE["cartpole"]()
    runner = EnvRunner(env, make_agent(PPO, env), 4, 0, rank=0, world_size=1, precision=nullcontext)
    runner.pass_barrier(0)
    drawn = torch.rand(3)
    runner.request_barrier()
    runner.pass_barrier(updates)
    assert torch.rand(3).equal(drawn) == alike


@pytest.mark.parametrize("cuts", [True, False])
def test_barriers_that_cut_many_episodes_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, cuts: bool
) -> None:
    env = make_env("Acrobot-v1", 3, seed=0, max_episode_steps=7)
    monkeypatch.setattr(type(env), "is_repeatable", False)
    agent = make_agent(PPO, env)
    agent.announce_objective_shift = lambda reason: None  # type: ignore[method-assign]
    runner = EnvRunner(env, agent, 7 if cuts else 70, 0, rank=0, world_size=1, precision=nullcontext)
    told: list[str] = []
    monkeypatch.setattr("lit_gfs.collectors.env_runner.rank_zero_warn", told.append)

    for _ in range(2):
        runner.pass_barrier(0)
        runner.collect()
        if cuts:
            runner.collect(steps=3)
        assert runner.state_dict() == {}
    runner.pass_barrier(0)

    expected = (
        "checkpoints have cut 3 of 6 episodes of Acrobot-v1; a larger data.checkpoint_every leaves them"
    )
    assert [line.startswith(expected) for line in told] == [True] * cuts
