from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tensordict import TensorDict
from torch import Tensor, nn

from lit_gfs.agents import SAC
from lit_gfs.callbacks import PathSensitiveInit
from lit_gfs.datamodules import ReplayDataModule
from lit_gfs.errors import UserError
from lit_gfs.networks import PlainTrunk, SimbaTrunk
from lit_gfs.optim import Kron
from support.specs import continuous_spec, discrete_spec
from support.training import MakeTrainer, weights
from support.transitions import assert_standardizes, continuous_batch

SPEC = continuous_spec(low=(-1.0, 0.0), high=(3.0, 1.0))
small = partial(PlainTrunk, depth=2, width=16)


def make_agent(**options: Any) -> SAC:
    torch.manual_seed(0)
    return SAC(SPEC, **{"trunk": small, "initial_temperature": 0.3, **options})


def recorded(agent: SAC, batch: TensorDict) -> dict[str, Tensor]:
    """Return what a training step records."""
    values: dict[str, Tensor] = {}
    agent.record = values.update  # type: ignore[method-assign, assignment]
    agent.training_step(batch, 0)
    return values


def test_targets_are_soft_values_and_bootstrap_unless_terminated() -> None:
    agent, batch = make_agent(gamma=0.9), continuous_batch(SPEC)
    next_ = batch["next"]

    torch.manual_seed(3)
    target = recorded(agent, batch)["loss/target"]

    torch.manual_seed(3)
    agent.policy(batch["observation"]).sample()
    action, log_prob = agent.policy(next_["observation"]).sample_with_log_prob()
    scaled = torch.stack([(action[:, 0] - 1) / 2, (action[:, 1] - 0.5) / 0.5], -1)
    first, second = (critic(next_["observation"], scaled) for critic in agent.target_critics)
    soft = torch.minimum(first, second) - 0.3 * log_prob
    expected = next_["reward"].squeeze(-1) + 0.9 * soft * ~next_["terminated"].squeeze(-1)
    torch.testing.assert_close(target, expected)
    assert not target.requires_grad


def test_targets_of_several_steps_discount_by_the_steps_that_were_taken() -> None:
    agent, batch = make_agent(gamma=0.9), continuous_batch(SPEC)
    count = len(batch)
    several = batch.clone()
    rewards = torch.arange(3.0 * count).view(count, 3)
    taken = torch.tensor([1, 2, 3] * count)[:count]
    real = torch.arange(3) < taken[:, None]
    several["next"] = TensorDict(
        {
            "observation": batch["next", "observation"],
            "reward": rewards * real,
            "done": torch.zeros(count, 3, dtype=torch.bool),
            "terminated": torch.zeros(count, 3, dtype=torch.bool),
            "steps": taken[:, None],
        },
        batch_size=[count],
    )

    torch.manual_seed(3)
    target = recorded(agent, several)["loss/target"]

    # The value of the next state is the target without rewards, when one step was taken.
    batch["next", "reward"] = torch.zeros(count, 1)
    batch["next", "terminated"] = torch.zeros(count, 1, dtype=torch.bool)
    torch.manual_seed(3)
    value = recorded(agent, batch)["loss/target"] / 0.9
    summed = (rewards * real * 0.9 ** torch.arange(3)).sum(-1)
    torch.testing.assert_close(target, summed + 0.9**taken * value)


def parts_of(agent: SAC) -> dict[str, list[nn.Parameter]]:
    return {
        "actor": list(agent.actor.parameters()),
        "critics": list(agent.critics.parameters()),
        "temperature": list(agent.temperature.parameters()),
    }


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop])
def test_one_step_of_the_sum_is_a_step_of_each_of_three_optimizers(optimizer: Any) -> None:
    """The three losses are written here once more, and each has a backward pass and an optimizer."""
    rates = {"actor": 1e-3, "critics": 3e-3, "temperature": 7e-3}
    options = {"critic_learning_rate": rates["critics"], "temperature_learning_rate": rates["temperature"]}
    build = partial(optimizer, lr=rates["actor"], weight_decay=0.1)
    ours, theirs = make_agent(optimizer=build, **options), make_agent()
    one: Any = ours.configure_optimizers()
    decay = {"actor": 0.1, "critics": 0.1, "temperature": 0.0}
    three = {
        part: optimizer(parameters, lr=rates[part], weight_decay=decay[part])
        for part, parameters in parts_of(theirs).items()
    }

    for step in range(5):
        batch = continuous_batch(SPEC, seed=step)
        torch.manual_seed(step)
        one.zero_grad()
        ours.training_step(batch, 0).backward()
        one.step()

        torch.manual_seed(step)
        losses = three_losses(theirs, batch)
        for part, loss in losses.items():
            # Only its own parameters get the gradient of a loss.
            gradients = torch.autograd.grad(loss, parts_of(theirs)[part], retain_graph=True)
            for parameter, gradient in zip(parts_of(theirs)[part], gradients, strict=True):
                parameter.grad = gradient
        for each in three.values():
            each.step()

    for part, parameters in parts_of(theirs).items():
        for expected, parameter in zip(parameters, parts_of(ours)[part], strict=True):
            torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-6, msg=part)


def three_losses(agent: SAC, batch: TensorDict) -> dict[str, Tensor]:
    def values(critics: Any, observation: Tensor, action: Tensor) -> list[Tensor]:
        scaled = (action - torch.tensor([1.0, 0.5])) / torch.tensor([2.0, 0.5])
        return [critic(observation, scaled) for critic in critics]

    next_, alpha = batch["next"], agent.temperature.log_value.exp()
    action, log_prob = agent.policy(batch["observation"]).sample_with_log_prob()
    with torch.no_grad():
        next_action, next_log_prob = agent.policy(next_["observation"]).sample_with_log_prob()
        next_value = torch.minimum(*values(agent.target_critics, next_["observation"], next_action))
        soft = (next_value - alpha * next_log_prob) * ~next_["terminated"].squeeze(-1)
        target = next_["reward"].squeeze(-1) + agent.gamma * soft
    taken = values(agent.critics, batch["observation"], batch["action"])
    drawn = values(agent.critics, batch["observation"], action)
    # -1 for each dimension of an action in [-1, 1], whose unit is 2 and 1/2 of the environment's.
    entropy_target = -2.0 + math.log(2.0) + math.log(0.5)
    return {
        "critics": sum(((value - target) ** 2).mean() for value in taken),  # type: ignore[dict-item]
        "actor": (alpha.detach() * log_prob - torch.minimum(*drawn)).mean(),
        "temperature": -(alpha * (log_prob.detach() + entropy_target)).mean(),
    }


def test_the_losses_reach_disjoint_parameters() -> None:
    agent, batch = make_agent(), continuous_batch(SPEC)
    parts = parts_of(agent)
    sets = [{id(each) for each in parameters} for parameters in parts.values()]
    assert sum(map(len, sets)) == len(set.union(*sets))

    loss = agent.training_step(batch, 0)
    loss.backward()

    trained = set.union(*sets)
    for parameter in agent.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained)
    # The critics' gradient is that of their own loss: the actor's would change with the temperature.
    before = [parameter.grad.clone() for parameter in parts["critics"]]  # type: ignore[union-attr]
    agent.zero_grad()
    torch.manual_seed(0)
    observation = batch["observation"]
    action, _ = agent.policy(observation).sample_with_log_prob()
    agent.values_of_policy(agent.critics, observation, action).mean().backward()
    assert all(parameter.grad is None for parameter in parts["critics"])
    assert all(each.abs().sum() > 0 for each in before)
    assert any(parameter.grad is not None for parameter in parts["actor"])


def test_the_temperature_has_no_decay_and_its_own_rate() -> None:
    agent = make_agent(
        optimizer=partial(torch.optim.AdamW, lr=1e-4, weight_decay=0.1), critic_learning_rate=3e-4
    )

    groups = agent.configure_optimizers().param_groups  # type: ignore[union-attr]

    assert [group["lr"] for group in groups] == [1e-4, 3e-4, 1e-4]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.1, 0.0]
    assert groups[2]["params"] == [agent.temperature.log_value]


@pytest.mark.parametrize("optimizer", [Kron, partial(torch.optim.AdamW, lr=1e-3)])
def test_other_optimizers_train_all_parts(optimizer: Any) -> None:
    agent = make_agent(optimizer=optimizer)
    before = weights(agent)
    built: Any = agent.configure_optimizers()

    agent.training_step(continuous_batch(SPEC), 0).backward()
    built.step()

    changed = weights(agent) != before
    frozen = torch.cat(
        [torch.full((p.numel(),), not p.requires_grad, dtype=torch.bool) for p in agent.parameters()]
    )
    assert not changed[frozen].any()
    assert changed[~frozen].float().mean() > 0.9


def test_a_rate_of_zero_keeps_the_temperature() -> None:
    agent = make_agent(temperature_learning_rate=0.0)
    built: Any = agent.configure_optimizers()

    agent.training_step(continuous_batch(SPEC), 0).backward()
    built.step()

    assert float(agent.temperature()) == pytest.approx(0.3)


def test_layers_are_the_actors_first_and_targets_are_none() -> None:
    agent = make_agent(critic_trunk=partial(SimbaTrunk, depth=3, width=8))

    critic = [
        "trunk.input",
        *(f"trunk.branch_01.{part}" for part in ("norm", "first", "second")),
        "trunk.output",
        "head",
    ]
    assert list(agent.named_layers()) == [
        *("trunk.layer_01", "trunk.layer_02", "head", "log_std_head"),
        *(f"critic_{number}.{name}" for number in (1, 2) for name in critic),
    ]
    assert agent.trunk is agent.actor.trunk
    assert agent.policy_head(agent.policy_features(torch.randn(5, 3))).shape == (5, 2)
    assert len(agent.networks()) == 5


def test_the_head_reads_features_of_standardized_observations() -> None:
    agent, observation = make_agent(normalize_observation=True), 7 + 3 * torch.randn(50, 3)
    assert agent.observation_norm is not None
    agent.observation_norm.observe(observation)
    agent.observation_norm.commit()

    means = agent.policy_head(agent.policy_features(observation))

    torch.testing.assert_close(means, agent(observation)[0])


def test_acting_and_learning_see_standardized_observations() -> None:
    agent, plain = make_agent(normalize_observation=True), make_agent()
    assert_standardizes(agent, plain, continuous_batch(SPEC))


def test_actor_and_critics_have_sizes_of_their_own() -> None:
    agent = make_agent(critic_trunk=partial(SimbaTrunk, depth=5, width=8), critics=1)

    assert (agent.trunk.depth, agent.trunk.width) == (2, 16)
    assert [(critic.trunk.depth, critic.trunk.width) for critic in agent.critics] == [(5, 8)]
    assert make_agent(critics=3).values(agent.critics, torch.zeros(4, 3), torch.zeros(4, 2)).shape == (1, 4)


def test_targets_move_by_their_share_and_start_equal_after_an_initialization() -> None:
    agent = make_agent(target_tau=0.1)
    assert torch.equal(weights(agent.critics), weights(agent.target_critics))
    before = weights(agent.target_critics)
    nn.init.ones_(agent.critics[0].head.weight)

    agent.move_targets(agent.target_tau)
    torch.testing.assert_close(weights(agent.target_critics), 0.9 * before + 0.1 * weights(agent.critics))

    agent.on_weights_initialized()
    assert torch.equal(weights(agent.critics), weights(agent.target_critics))


def test_a_critics_value_of_a_drawn_action_is_scaled_by_its_bounds() -> None:
    agent, observation = make_agent(), torch.randn(4, 3)
    corners = torch.tensor([[-1.0, 0.0], [3.0, 1.0], [1.0, 0.5], [3.0, 0.0]])
    scaled = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [1.0, -1.0]])

    values = agent.values(agent.critics, observation, corners)

    torch.testing.assert_close(values[1], agent.critics[1](observation, scaled))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (
            discrete_spec(),
            "SAC needs continuous actions, but 'Counting-v0' has 3 discrete actions; use DQN, PQN",
        ),
        (
            continuous_spec(low=(-1.0, -math.inf), high=(1.0, 1.0)),
            "SAC needs actions between two bounds, but dimension 1 of 'Point-v0' is from -inf to 1; use PPO",
        ),
        (
            continuous_spec(low=(0.0, 0.0), high=(0.0, 1.0)),
            "SAC needs actions between two bounds, but dimension 0 of 'Point-v0' is from 0 to 0; use PPO",
        ),
    ],
)
def test_other_actions_are_refused(spec: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SAC(spec)


@pytest.mark.parametrize(
    "options",
    [
        {"target_tau": 0.0},
        {"target_tau": 1.5},
        {"initial_temperature": 0.0},
        {"target_entropy": 1.0},
        {"critics": 0},
        {"critic_learning_rate": -1.0},
        {"temperature_learning_rate": -1.0},
        {"random_steps": -1},
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(UserError, match=name):
        make_agent(**options)


def pendulum(**options: Any) -> ReplayDataModule:
    defaults: dict[str, Any] = {
        "num_envs": 2,
        "total_steps": 120,
        "eval_every": 60,
        "eval_episodes": 1,
        "eval_step_limit": 20,
        "learning_starts": 40,
        "steps_per_update": 4,
        "batch_size": 16,
        "seed": 3,
    }
    return ReplayDataModule("Pendulum-v1", **{**defaults, **options})


class Actions(Callback):
    """Keeps the collected actions, and whether the policy acted at random."""

    def __init__(self) -> None:
        self.taken: list[tuple[bool, Tensor]] = []
        self.statistics: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        note = pl_module.on_collection_end

        def noting(rollout: Any) -> None:
            note(rollout)
            self.taken.append((pl_module.acts_randomly, rollout["action"].clone()))

        pl_module.on_collection_end = noting

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.keep(pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.keep(pl_module)

    def keep(self, agent: Any) -> None:
        if agent.observation_norm is not None:
            self.statistics.append(torch.cat([b.flatten() for b in agent.observation_norm.buffers()]).clone())


@pytest.mark.parametrize(("random_steps", "expected"), [(None, 40), (0, 0), (64, 64)])
def test_actions_are_random_at_first(
    make_trainer: MakeTrainer, random_steps: int | None, expected: int
) -> None:
    data, actions = pendulum(), Actions()
    torch.manual_seed(0)
    agent = SAC(data.env_spec, trunk=small, random_steps=random_steps)
    # A policy that is not random always pushes to the right.
    nn.init.zeros_(agent.actor.head.weight)
    nn.init.constant_(agent.actor.head.bias, 30.0)

    make_trainer(callbacks=[actions], limit_val_batches=0).fit(agent, data)

    taken = torch.cat([action.flatten() for _, action in actions.taken])
    random, own = taken[:expected], taken[max(expected, 1) :]
    assert len(taken) == 120
    assert (own == 2.0).all()
    assert (random != 2.0).all()
    assert random.abs().max() <= 2.0 if expected else True


def test_statistics_of_observations_are_those_of_all_collected_ones(make_trainer: MakeTrainer) -> None:
    data, actions = pendulum(), Actions()
    agent = SAC(data.env_spec, trunk=small, normalize_observation=True)
    seen: list[Tensor] = []
    note = agent.on_collection_end

    def noting(rollout: Any) -> None:
        seen.append(rollout["observation"].flatten(0, 1).clone())
        note(rollout)

    agent.on_collection_end = noting  # type: ignore[method-assign]
    make_trainer(callbacks=[actions]).fit(agent, data)

    observations = torch.cat(seen).double()
    assert agent.observation_norm is not None
    assert float(agent.observation_norm.count) == len(observations) == 120
    torch.testing.assert_close(agent.observation_norm.mean, observations.mean(0))
    torch.testing.assert_close(agent.observation_norm.variance, observations.var(0, correction=0))
    # Evaluations change nothing.
    for before, after in zip(actions.statistics[::2], actions.statistics[1::2], strict=True):
        assert torch.equal(before, after)
    # Acting, evaluation, actor, critics and targets read the same normalized observations.
    observation = 100 + observations[:5].float()
    outputs = agent(observation, torch.zeros(5, 1))
    agent.observation_norm, normalized = None, agent.normalize(observation)
    for output, same in zip(outputs, agent(normalized, torch.zeros(5, 1)), strict=True):
        assert torch.equal(output, same)


def test_bfloat16_reaches_every_part(make_trainer: MakeTrainer) -> None:
    """Autocast keeps copies of weights within a step; one without a gradient would cut the actor off."""
    data = pendulum()
    torch.manual_seed(0)
    agent = SAC(data.env_spec, trunk=small)
    before = {part: weights(getattr(agent, part)) for part in ("actor", "critics", "temperature")}

    make_trainer(precision="bf16-mixed", limit_val_batches=0).fit(agent, data)

    for part, was in before.items():
        now = weights(getattr(agent, part))
        # Dead units of a network in bfloat16 do not move.
        assert (now != was).float().mean() > 0.7, part
        assert now.isfinite().all()


@pytest.mark.parametrize("accumulated", [1, 2])
def test_batches_are_optimizer_steps_unless_they_are_accumulated(
    make_trainer: MakeTrainer, accumulated: int
) -> None:
    data = pendulum()
    agent, trainer = SAC(data.env_spec, trunk=small), make_trainer(accumulate_grad_batches=accumulated)

    trainer.fit(agent, data)

    assert trainer.global_step == 20 // accumulated


@pytest.mark.parametrize(
    "trunk", [partial(SimbaTrunk, depth=5, width=16), partial(PlainTrunk, depth=3, width=16)]
)
def test_path_sensitive_initialization_reaches_all_networks_and_the_targets(
    trunk: Any, make_trainer: MakeTrainer
) -> None:
    data, init = pendulum(total_steps=48), PathSensitiveInit(mirrored="auto")
    agent = SAC(data.env_spec, trunk=trunk)

    class Equal(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            assert torch.equal(weights(agent.critics), weights(agent.target_critics))

    make_trainer(callbacks=[init, Equal()], limit_val_batches=0).fit(agent, data)

    report = init.report
    assert report is not None
    assert report.left_alone == {}
    networks = ["critics.0", "critics.1", "actor"]
    assert all(any(name.startswith(each) for name in report.shares) for each in networks)
    if trunk.func is PlainTrunk:  # a chain in each network
        assert all(any(name.startswith(each) for name in report.mirrored) for each in networks)
        return
    # Networks of one structure get the same factors, but for their inputs and the draws of their weights.
    factors = [
        [report.branch_scales[f"{each}.trunk.branches.{index}.first"] for index in range(2)]
        for each in networks
    ]
    for each in factors[1:]:
        assert each == pytest.approx(factors[0], rel=0.1)
