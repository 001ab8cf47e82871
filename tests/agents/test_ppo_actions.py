"""PPO on every kind of action, and the agents that only choose one of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict

from lit_gfs.agents import DQN, PPO, PQN
from lit_gfs.datamodules import RolloutDataModule
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.errors import UserError
from support import odd_envs
from support.training import MakeTrainer

INFINITE = float("inf")


def spec_of(action: Any) -> EnvSpec:
    return EnvSpec.from_env(make_env("Odd-v0", action=action))


def act(agent: PPO, count: int = 400) -> TensorDict:
    torch.manual_seed(0)
    return agent.collection_policy()(TensorDict({"observation": torch.randn(count, 2)}, [count]))


def test_dimensions_without_bounds_get_the_sample_itself() -> None:
    low = np.array([-INFINITE, 0, -2, -3e38], np.float32)
    high = np.array([INFINITE, INFINITE, 6, 3e38], np.float32)
    acted = act(PPO(spec_of(spaces.Box(low, high))))

    sample, action = acted["sample"], acted["action"]
    assert sample.abs().max() > 1.5
    torch.testing.assert_close(action[:, 0], sample[:, 0])
    torch.testing.assert_close(action[:, 1], sample[:, 1].clamp(min=0))
    torch.testing.assert_close(action[:, 2], 2 + 4 * sample[:, 2].clamp(-1, 1))
    torch.testing.assert_close(action[:, 3], sample[:, 3])


def test_bounds_are_never_left_by_rounding() -> None:
    generator = np.random.default_rng(0)
    low = generator.normal(size=50).astype(np.float32)
    high = low + generator.random(50, dtype=np.float32)
    action = act(PPO(spec_of(spaces.Box(low, high))))["action"]

    assert (action >= torch.from_numpy(low)).all()
    assert (action <= torch.from_numpy(high)).all()


def test_several_choices_are_sampled_and_their_log_probabilities_kept() -> None:
    agent = PPO(spec_of(spaces.MultiDiscrete([4, 2])))
    acted = act(agent)

    assert torch.equal(acted["action"], acted["sample"])
    assert acted["action"].unique(dim=0).shape == (8, 2)
    logits = agent.actor_critic.policy(acted["observation"])
    expected = sum(
        torch.distributions.Categorical(logits=part).log_prob(acted["sample"][:, index])
        for index, part in enumerate(logits.split([4, 2], -1))
    )
    torch.testing.assert_close(acted["log_prob"], expected)
    greedy = agent.eval_policy()(TensorDict({"observation": torch.zeros(1, 2)}, [1]))["action"]
    zero = agent.actor_critic.policy(torch.zeros(1, 2))
    assert greedy.tolist() == [[int(zero[0, :4].argmax()), int(zero[0, 4:].argmax())]]


TARGET = np.array([2, 0, 1])


def _learns(action: Any, reward: Callable[[Any], float], make_trainer: MakeTrainer) -> float:
    """Train on an environment that pays for the right action, and return what an evaluation pays a step."""
    gymnasium.register(
        "Paying-v0",
        odd_envs.Odd,
        kwargs={"action": action, "pay": lambda number, taken: reward(taken)},
    )
    try:
        torch.manual_seed(0)
        data = RolloutDataModule(
            env_id="Paying-v0",
            num_envs=8,
            total_steps=4_096,
            eval_every=4_096,
            eval_episodes=8,
            rollout_steps=32,
            epochs=4,
            minibatches=4,
            seed=0,
        )
        agent = PPO(
            data.env_spec,
            optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
            gamma=0.0,
            anneal_learning_rate=False,
        )
        trainer = make_trainer()
        trainer.fit(agent, data)
        return float(trainer.callback_metrics["eval/episode_return"]) / 6
    finally:
        gymnasium.registry.pop("Paying-v0")


def test_learns_several_choices(make_trainer: MakeTrainer) -> None:
    paid = _learns(
        spaces.MultiDiscrete([3, 2, 4]), lambda taken: float((taken == TARGET).mean()), make_trainer
    )
    assert paid == 1  # a random policy gets 0.36


def test_learns_switches(make_trainer: MakeTrainer) -> None:
    wanted = np.array([[1, 0], [1, 1]])
    paid = _learns(spaces.MultiBinary([2, 2]), lambda taken: float((taken == wanted).mean()), make_trainer)
    assert paid == 1  # a random policy gets 0.5


def test_learns_numbers_without_bounds_in_a_table(make_trainer: MakeTrainer) -> None:
    wanted = np.array([[0.5, -0.5], [1.5, 0.0]])
    paid = _learns(
        spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
        lambda taken: -float(np.abs(taken - wanted).mean()),
        make_trainer,
    )
    assert paid > -0.3  # a policy that stays at 0 gets -0.625


@pytest.mark.parametrize("agent", [DQN, PQN])
@pytest.mark.parametrize(
    ("action", "kind"),
    [
        (spaces.MultiDiscrete([3, 2]), "actions of several choices of dimension 2"),
        (spaces.MultiBinary(3), "actions of several choices of dimension 3"),
        (spaces.Box(-np.inf, np.inf, (2, 2)), "a continuous action space of dimension 4"),
    ],
)
def test_agents_of_action_values_refuse_all_but_one_choice(agent: Any, action: Any, kind: str) -> None:
    with pytest.raises(UserError, match=f"{agent.__name__} needs discrete actions, .*{kind}; use PPO"):
        agent(spec_of(action))
