from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tensordict import TensorDict
from torch import Tensor

from lit_gfs.agents import TD3
from lit_gfs.callbacks import GradientFlowMonitor, RepresentationMonitor
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.errors import UserError
from lit_gfs.networks import PlainTrunk
from support.fakes import Records
from support.specs import continuous_spec, discrete_spec
from support.training import MakeTrainer, weights
from support.transitions import assert_standardizes, continuous_batch

SPEC = continuous_spec(low=(-1.0, 0.0), high=(3.0, 1.0))
LOW, HIGH = torch.tensor([-1.0, 0.0]), torch.tensor([3.0, 1.0])
small = partial(PlainTrunk, depth=2, width=16)
DDPG: dict[str, Any] = {"critics": 1, "policy_delay": 1, "target_noise": 0.0}


def make_agent(**options: Any) -> TD3:
    torch.manual_seed(0)
    agent = TD3(SPEC, **{"trunk": small, **options})
    torch.nn.init.normal_(agent.target_actor.head.weight, generator=torch.Generator().manual_seed(1))
    return agent


def scaled(action: Tensor) -> Tensor:
    return (action - torch.tensor([1.0, 0.5])) / torch.tensor([2.0, 0.5])


def losses(agent: TD3, batch: TensorDict) -> dict[str, Tensor]:
    """Return what a step records, with the loss of all parameters."""
    values: dict[str, Tensor] = {}
    agent.record = values.update  # type: ignore[method-assign, assignment]
    return {"loss": agent.loss(batch), **values}


def test_targets_take_the_smaller_value_of_a_noisy_action() -> None:
    agent, batch = make_agent(gamma=0.9, target_noise=5.0, target_noise_clip=0.5), continuous_batch(SPEC)
    next_ = batch["next"]

    torch.manual_seed(3)
    target = losses(agent, batch)["loss/target"]

    torch.manual_seed(3)
    noise = (5.0 * torch.randn(16, 2)).clamp(-0.5, 0.5)
    greedy = (
        torch.tensor([1.0, 0.5]) + torch.tensor([2.0, 0.5]) * agent.target_actor(next_["observation"]).tanh()
    )
    action = (greedy + torch.tensor([2.0, 0.5]) * noise).clamp(LOW, HIGH)
    values = [critic(next_["observation"], scaled(action)) for critic in agent.target_critics]
    expected = next_["reward"].squeeze(-1) + 0.9 * torch.minimum(*values) * ~next_["terminated"].squeeze(-1)
    torch.testing.assert_close(target, expected)


def test_acting_and_learning_see_standardized_observations() -> None:
    agent, plain = make_agent(normalize_observation=True), make_agent()
    assert_standardizes(agent, plain, continuous_batch(SPEC))


def test_ddpg_is_the_case_of_one_critic_without_delay_and_noise() -> None:
    agent, batch = make_agent(gamma=0.9, **DDPG), continuous_batch(SPEC)
    next_ = batch["next"]
    (critic,), (slow,) = agent.critics, agent.target_critics

    loss = losses(agent, batch)["loss"]

    with torch.no_grad():
        next_value = slow(next_["observation"], agent.target_actor(next_["observation"]).tanh())
        target = next_["reward"].squeeze(-1) + 0.9 * next_value * ~next_["terminated"].squeeze(-1)
    of_critic = (critic(batch["observation"], scaled(batch["action"])) - target).square().mean()
    of_actor = -critic(batch["observation"], agent.actor(batch["observation"]).tanh()).mean()
    torch.testing.assert_close(loss, of_critic + of_actor)
    # Each loss trains its own parameters.
    loss.backward()
    for part, alone in ((agent.critics, of_critic), (agent.actor, of_actor)):
        parameters = list(part.parameters())
        for p, gradient in zip(
            parameters, torch.autograd.grad(alone, parameters, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(p.grad, gradient)


def test_ddpg_can_be_captured_and_a_delay_decides_on_the_host() -> None:
    assert make_agent(**DDPG).decides_on_host == ""
    assert make_agent().decides_on_host == "policy_delay decides in each step whether the policy learns"


def pendulum(**options: Any) -> ReplayDataModule:
    defaults: dict[str, Any] = {
        "num_envs": 2,
        "total_steps": 100,
        "eval_every": 50,
        "eval_episodes": 1,
        "eval_step_limit": 20,
        "learning_starts": 40,
        "steps_per_update": 2,
        "batch_size": 16,
        "seed": 3,
    }
    return ReplayDataModule("Pendulum-v1", **{**defaults, **options})


class Steps(Callback):
    """Notes after each optimizer step what has changed, and whether the actor had a gradient."""

    def __init__(self) -> None:
        self.had_gradient: list[bool] = []
        self.changed: dict[str, list[bool]] = {
            part: [] for part in ("actor", "critics", "target_actor", "target_critics")
        }
        self._before: dict[str, Tensor] = {}
        self._steps = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._before = {part: weights(getattr(pl_module, part)) for part in self.changed}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        gradients = [parameter.grad is not None for parameter in pl_module.actor.parameters()]
        assert len(set(gradients)) == 1
        self.had_gradient.append(gradients[0])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *arguments: Any) -> None:
        if trainer.global_step == self._steps:
            return
        self._steps = trainer.global_step
        for part, were in self.changed.items():
            now = weights(getattr(pl_module, part))
            were.append(not torch.equal(now, self._before[part]))
            self._before[part] = now


@pytest.mark.parametrize(("delay", "accumulated"), [(1, 1), (2, 1), (3, 1), (2, 2)])
def test_the_policy_and_the_targets_move_in_every_delayed_step_alone(
    make_trainer: MakeTrainer, delay: int, accumulated: int
) -> None:
    """Adam moves a parameter with a gradient of zero, so in the other steps the actor has none."""
    data, steps = pendulum(eval_every=100), Steps()
    torch.manual_seed(0)
    agent = TD3(data.env_spec, trunk=small, policy_delay=delay)

    make_trainer(callbacks=[steps], limit_val_batches=0, accumulate_grad_batches=accumulated).fit(agent, data)

    count = 30 // accumulated
    due = [(step + 1) % delay == 0 for step in range(count)]
    assert steps.had_gradient == due
    assert steps.changed["critics"] == [True] * count
    for part in ("actor", "target_actor", "target_critics"):
        assert steps.changed[part] == due, part


def test_exploration_adds_noise_within_the_bounds_and_evaluation_none() -> None:
    agent, observation = make_agent(exploration_noise=0.1), torch.zeros(20_000, 3)

    explored = agent.explore(observation)

    greedy = agent.eval_policy().act(observation)["action"]
    assert (greedy == greedy[0]).all()
    torch.testing.assert_close(greedy[0], torch.tensor([1.0, 0.5]), atol=0.05, rtol=0)
    torch.testing.assert_close(explored.std(0), 0.1 * (HIGH - LOW) / 2, rtol=0.05, atol=0)
    assert ((explored >= LOW) & (explored <= HIGH)).all()


def test_both_targets_start_equal_after_an_initialization() -> None:
    agent = make_agent()
    torch.nn.init.ones_(agent.actor.head.weight)
    torch.nn.init.ones_(agent.critics[0].head.weight)

    agent.on_weights_initialized()

    assert torch.equal(weights(agent.actor), weights(agent.target_actor))
    assert torch.equal(weights(agent.critics), weights(agent.target_critics))
    assert list(agent.named_layers()) == [
        *("trunk.layer_01", "trunk.layer_02", "head"),
        *(
            f"critic_{number}.{name}"
            for number in (1, 2)
            for name in ("trunk.layer_01", "trunk.layer_02", "head")
        ),
    ]


def test_processes_that_need_all_gradients_are_refused(make_trainer: MakeTrainer) -> None:
    data = pendulum()
    agent, trainer = TD3(data.env_spec, trunk=small), make_trainer(limit_val_batches=0)
    trainer.strategy._ddp_kwargs = {"find_unused_parameters": False}  # type: ignore[attr-defined]

    with pytest.raises(
        UserError, match=r"policy_delay is 2, .*; expected ddp_find_unused_parameters_true, or"
    ):
        trainer.fit(agent, data)


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(UserError, match=r"TD3 needs continuous actions, .* use DQN, PQN or PPO"):
        TD3(discrete_spec())


@pytest.mark.parametrize(
    "options",
    [{"policy_delay": 0}, {"exploration_noise": -0.1}, {"target_noise": -0.1}, {"target_noise_clip": -0.1}],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=name):
        make_agent(**options)


@pytest.mark.parametrize("interval", [2, 3, 4])
def test_monitors_measure_steps_in_which_the_policy_learns(interval: int, make_trainer: MakeTrainer) -> None:
    source, records = pendulum(total_steps=120), Records()
    monitors = [
        GradientFlowMonitor(every_n_steps=interval, per_layer=True),
        RepresentationMonitor(every_n_steps=interval),
    ]
    agent = TD3(source.env_spec, trunk=small, policy_delay=2)
    make_trainer(callbacks=monitors, logger=records, log_every_n_steps=1).fit(agent, source)
    for tag in ("gradient_flow/norm/head", "policy/churn"):
        measured = [row[tag] for row in records.rows.values() if tag in row]
        assert len(measured) > 2
        assert all(value > 0 for value in measured), tag
