from __future__ import annotations

from typing import Any

import pytest
import torch
from tensordict import TensorDict

from lit_gfs.agents import DQN, PQN
from lit_gfs.agents.q_learning import QLearningAgent, epsilon_greedy
from lit_gfs.errors import UserError
from lit_gfs.networks import MinAtarCNN
from support.specs import continuous_spec, discrete_spec

DISCRETE = discrete_spec()
CONTINUOUS = continuous_spec((-2.0,), (2.0,))

BOARDS = discrete_spec(shape=(4, 10, 10), dtype="bool")

BOTH = pytest.mark.parametrize("agent_class", [DQN, PQN])


def test_every_environment_draws_its_own_exploration() -> None:
    torch.manual_seed(0)
    actions = epsilon_greedy(torch.tensor([0.0, 2.0, 1.0]).expand(9_000, 3), epsilon=0.3)

    shares = torch.bincount(actions, minlength=3) / 9_000
    assert shares.tolist() == pytest.approx([0.1, 0.8, 0.1], abs=0.02)


@BOTH
@pytest.mark.parametrize(("env_steps", "epsilon"), [(0, 1.0), (50, 0.6), (100, 0.2), (10_000, 0.2)])
def test_collection_explores_by_the_schedule(
    agent_class: type[QLearningAgent], env_steps: int, epsilon: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    agent = agent_class(DISCRETE, epsilon_start=1.0, epsilon_end=0.2, epsilon_decay_steps=100)  # type: ignore[call-arg]
    monkeypatch.setattr(agent_class, "env_steps", env_steps)
    observation = torch.randn(6_000, 2)

    acted = agent.collection_policy()(TensorDict({"observation": observation}, [6_000]))

    share = float((acted["action"] == agent(observation).argmax(-1)).float().mean())
    assert share == pytest.approx(1 - epsilon * 2 / 3, abs=0.03)


@BOTH
@pytest.mark.parametrize("epsilon", [0.0, 0.5])
def test_evaluation_explores_by_its_own_epsilon(agent_class: type[QLearningAgent], epsilon: float) -> None:
    torch.manual_seed(0)
    agent = agent_class(DISCRETE, epsilon_start=1.0, eval_epsilon=epsilon)  # type: ignore[call-arg]
    observation = torch.randn(6_000, 2)

    acted = agent.eval_policy()(TensorDict({"observation": observation}, [6_000]))

    share = float((acted["action"] == agent(observation).argmax(-1)).float().mean())
    assert share == pytest.approx(1 - epsilon * 2 / 3, abs=0.03 if epsilon else 0)


@BOTH
def test_continuous_actions_are_refused(agent_class: Any) -> None:
    message = rf"^{agent_class.__name__} .*'Point-v0' has a continuous action space .* use PPO, SAC or TD3$"
    with pytest.raises(UserError, match=message):
        agent_class(CONTINUOUS)


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [("gamma", 1.5), ("epsilon_start", -0.1), ("epsilon_decay_steps", -1), ("eval_epsilon", 2.0)],
)
def test_numbers_out_of_range_are_refused(agent_class: Any, name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"^{name} is {value}; expected a number"):
        agent_class(DISCRETE, **{name: value})


@BOTH
def test_small_images_need_no_choice_of_an_encoder(agent_class: type[QLearningAgent]) -> None:
    agent = agent_class(BOARDS)  # type: ignore[call-arg]

    assert isinstance(agent.q_network.encoder, MinAtarCNN)
    assert agent(torch.zeros(5, 4, 10, 10, dtype=torch.bool)).shape == (5, 3)
