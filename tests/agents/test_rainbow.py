"""The parts of Rainbow as options of DQN, and distributions as values of PQN and PPO."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn

from lit_gfs.agents import DQN, PPO, PQN
from lit_gfs.callbacks import RepresentationMonitor
from lit_gfs.errors import UserError
from lit_gfs.functional.value_distributions import C51, HLGauss
from lit_gfs.networks import ResidualTrunk
from support.fakes import Records
from support.specs import discrete_spec
from support.training import MakeTrainer, replay_data, rollout_data, weights

SPEC = discrete_spec()
SUPPORT: dict[str, Any] = {"v_min": -2, "v_max": 10, "atoms": 13}
OF_THE_AGENT: dict[str, dict[str, Any]] = {
    "double": {"double": True},
    "dueling": {"dueling": True},
    "noisy": {"noisy": True, "epsilon_start": 0, "epsilon_end": 0},
    "c51": {"loss": "c51", **SUPPORT},
    "hl_gauss": {"loss": "hl_gauss", **SUPPORT},
}
OF_THE_DATA: dict[str, dict[str, Any]] = {"n_step": {"n_step": 3}, "prioritized": {"priority_exponent": 0.5}}
PARTS = [*OF_THE_AGENT, *OF_THE_DATA]
RAINBOW = ("double", "dueling", "noisy", "c51", "n_step", "prioritized")


def options_of(table: dict[str, dict[str, Any]], parts: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for part in parts for name, value in table.get(part, {}).items()}


def make_agent(*parts: str, **options: Any) -> DQN:
    return DQN(SPEC, **options_of(OF_THE_AGENT, parts), **options)


def make_batch(size: int = 6, n_step: int = 1, **columns: Tensor) -> TensorDict:
    """Make transitions that do not end, with rewards of 1."""
    no = torch.zeros(size, n_step, dtype=torch.bool)
    next_ = {
        "observation": torch.randn(size, 2),
        "reward": torch.ones(size, n_step),
        "done": no,
        "terminated": no,
        "truncated": no,
        **({"steps": torch.full((size, 1), n_step)} if n_step > 1 else {}),
    }
    entries = {"observation": torch.randn(size, 2), "action": torch.arange(size) % 3, "next": next_}
    return TensorDict({**entries, **columns}, [size])


def recorded(agent: DQN, batch: TensorDict) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    agent.record = found.update  # type: ignore[method-assign, assignment]
    found["returned"] = agent.training_step(batch, 0)
    return found


COUPLES = [pair for pair in combinations(PARTS, 2) if set(pair) != {"c51", "hl_gauss"}]


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("parts", [*COUPLES, RAINBOW], ids="+".join)
def test_parts_train_together(parts: tuple[str, ...], make_trainer: MakeTrainer) -> None:
    data = replay_data(total_steps=60, **options_of(OF_THE_DATA, parts))
    agent = make_agent(*parts, target_sync_every=20)
    before, records = weights(agent), Records("loss/")

    make_trainer(logger=records, log_every_n_steps=5).fit(agent, data)

    assert weights(agent).isfinite().all()
    changed = {
        name
        for name, now in agent.q_network.named_parameters()
        if not torch.equal(now, _part(before, agent, name))
    }
    assert changed == {name for name, _ in agent.q_network.named_parameters()}
    (last,) = list(records.rows.values())[-1:]
    assert ("loss/support_clipped" in last) == bool({"c51", "hl_gauss"} & set(parts))
    assert ("replay/priority" in last) == ("prioritized" in parts)


def _part(before: Tensor, agent: DQN, wanted: str) -> Tensor:
    """Return a parameter of the Q-network out of the vector of all parameters."""
    at = 0
    for name, parameter in agent.named_parameters():
        if name == f"q_network.{wanted}":
            return before[at : at + parameter.numel()].view_as(parameter)
        at += parameter.numel()
    raise KeyError(wanted)


def test_targets_of_several_steps_by_hand() -> None:
    agent = make_agent(gamma=0.5)
    batch = make_batch(3, n_step=3)
    next_ = batch["next"]
    next_["reward"] = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 0.0], [8.0, 0.0, 0.0]])
    next_["steps"] = torch.tensor([[3], [2], [1]])
    next_["terminated"] = torch.tensor([[False] * 3, [False] * 3, [True, False, False]])

    target = recorded(agent, batch)["loss/target"]

    best = agent.target_network(next_["observation"]).max(-1).values
    expected = torch.stack([3 + 0.125 * best[0], 2 + 0.25 * best[1], torch.tensor(8.0)])
    torch.testing.assert_close(target, expected)


@pytest.mark.parametrize("double", [False, True])
def test_the_distribution_of_the_best_next_action_is_the_target(double: bool) -> None:
    torch.manual_seed(0)
    agent = make_agent("c51", gamma=0.9, double=double)
    for network in (agent.q_network, agent.target_network):
        nn.init.normal_(network.head.weight)
    batch = make_batch(40)

    found = recorded(agent, batch)

    atoms = torch.linspace(-2, 10, 13)
    logits = agent.target_network(batch["next", "observation"])
    chooser = agent.q_network(batch["next", "observation"]) if double else logits
    best = (chooser.softmax(-1) * atoms).sum(-1).argmax(-1)
    chosen = logits[torch.arange(40), best].softmax(-1)
    wanted = C51(-2, 10, 13).projected(chosen, (1 + 0.9 * atoms).expand(40, 13))
    taken = agent.q_network(batch["observation"])[torch.arange(40), batch["action"]]
    torch.testing.assert_close(found["returned"], -(wanted * taken.log_softmax(-1)).sum(-1).mean())
    torch.testing.assert_close(found["loss/target"], 1 + 0.9 * (chosen * atoms).sum(-1))


def test_a_gaussian_around_the_expected_target_is_the_target() -> None:
    agent = make_agent("hl_gauss", gamma=0.9)
    batch = make_batch(20)

    found = recorded(agent, batch)

    target = 1 + 0.9 * agent.values.mean(agent.target_network(batch["next", "observation"])).max(-1).values
    taken = agent.q_network(batch["observation"])[torch.arange(20), batch["action"]]
    wanted = HLGauss(-2, 10, 13).encoded(target)
    torch.testing.assert_close(found["loss/target"], target)
    torch.testing.assert_close(found["returned"], -(wanted * taken.log_softmax(-1)).sum(-1).mean())


@pytest.mark.parametrize("parts", [(), ("c51",)], ids=["scalar", "c51"])
def test_weights_multiply_losses_and_priorities_are_without_them(parts: tuple[str, ...]) -> None:
    agent = make_agent(*parts, **({} if parts else {"loss": "mse"}))
    batch = make_batch(4)
    plain = recorded(agent, batch)
    batch["weight"] = torch.tensor([1.0, 0.0, 0.0, 0.0])

    found = recorded(agent, batch)

    assert "replay/priority" not in plain
    losses = found["replay/priority"] if parts else found["loss/td_error"].square()
    torch.testing.assert_close(found["returned"], losses[0] / 4)
    torch.testing.assert_close(plain["returned"], losses.mean())
    if not parts:
        torch.testing.assert_close(found["replay/priority"], found["loss/td_error"])


@pytest.mark.parametrize("parts", [("c51",), ("hl_gauss",), ("double", "dueling", "c51")], ids="+".join)
def test_probabilities_and_priorities_keep_their_precision_under_autocast(parts: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    agent, batch = make_agent(*parts), make_batch(8, weight=torch.ones(8))
    exact = recorded(agent, batch)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = recorded(agent, batch)

    assert found["returned"].dtype == found["replay/priority"].dtype == torch.float32
    # The networks' outputs are rounded to 8 bits; sums and logarithms of probabilities are not.
    torch.testing.assert_close(found["returned"], exact["returned"], atol=0, rtol=0.01)
    torch.testing.assert_close(found["replay/priority"], exact["replay/priority"], atol=0, rtol=0.02)
    assert not torch.equal(found["returned"], exact["returned"])


@pytest.mark.usefixtures("counting_envs")
def test_all_parts_train_together_in_mixed_precision(make_trainer: MakeTrainer) -> None:
    data = replay_data(total_steps=60, **options_of(OF_THE_DATA, RAINBOW))
    agent = make_agent(*RAINBOW, target_sync_every=20)
    before = weights(agent)

    make_trainer(precision="bf16-mixed").fit(agent, data)

    now = weights(agent)
    assert now.dtype == torch.float32
    assert now.isfinite().all()
    assert not torch.equal(now, before)


class Told:
    """Stands in for the datamodule, and keeps the priorities that it is told."""

    env_steps, total_steps, frame_skip = 10, 100, 1

    def __init__(self) -> None:
        self.priorities: list[Tensor] = []

    def update_priorities(self, priority: Tensor) -> None:
        self.priorities.append(priority)


def test_a_loss_that_is_only_asked_for_changes_no_priority(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    monkeypatch.setattr(DQN, "source", told)
    agent, batch = make_agent(), make_batch(5, weight=torch.ones(5))

    agent.loss(batch)
    assert told.priorities == []
    agent.training_step(batch, 0)

    assert [tuple(each.shape) for each in told.priorities] == [(5,)]
    assert not told.priorities[0].requires_grad


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("accumulated", [1, 3])
def test_every_batch_gets_its_priorities_before_the_next_is_drawn(
    accumulated: int, make_trainer: MakeTrainer
) -> None:
    data = replay_data(total_steps=80, priority_exponent=1.0)
    agent = make_agent()
    seen: list[tuple[Tensor, Tensor]] = []
    update = data.update_priorities

    def noted(priority: Tensor) -> None:
        update(priority)
        sampler = data._loader.buffer._sampler  # type: ignore[union-attr]
        slots = torch.from_numpy(sampler._drawn[0])
        seen.append((priority, sampler.state_dict()["priorities"][slots]))

    data.update_priorities = noted  # type: ignore[method-assign]
    make_trainer(accumulate_grad_batches=accumulated).fit(agent, data)

    assert len(seen) == 30
    for priority, kept in seen:
        torch.testing.assert_close(kept, priority.double() + 1e-6)


@pytest.mark.usefixtures("counting_envs")
def test_importance_weights_become_full_over_the_run(make_trainer: MakeTrainer) -> None:
    data = replay_data(total_steps=120, priority_exponent=0.5, importance_exponent=0.4)
    exponents = {}

    class Watched(DQN):
        def training_step(self, batch: TensorDict, batch_idx: int) -> Tensor:
            exponents[self.env_steps] = data._present_importance()
            return super().training_step(batch, batch_idx)

    make_trainer().fit(Watched(data.env_spec), data)

    assert exponents[60] == pytest.approx(0.7)
    assert exponents[120] == 1.0


@pytest.mark.parametrize("parts", [(), ("dueling",), ("c51",), ("hl_gauss", "dueling", "noisy")])
def test_the_policy_head_gives_expected_values(parts: tuple[str, ...]) -> None:
    agent = make_agent(*parts).eval()
    observation = torch.randn(7, 2)

    q_values = agent(observation)

    assert q_values.shape == (7, 3)
    torch.testing.assert_close(agent.policy_head(agent.policy_features(observation)), q_values)
    acted = agent.eval_policy()(TensorDict({"observation": observation}, [7]))
    assert torch.equal(acted["action"], q_values.argmax(-1))
    assert {"trunk.layer_01", "head"} <= agent.named_layers().keys()


def test_noise_acts_in_collection_and_not_in_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DQN, "source", Told())
    torch.manual_seed(0)
    agent = make_agent("noisy")
    assert agent.epsilon == 0
    same = TensorDict({"observation": torch.randn(1, 2).expand(500, 2)}, [500])

    explored = agent.collection_policy()(same.clone())["action"]
    again = agent.collection_policy()(same.clone())["action"]
    agent.eval()
    greedy = agent.eval_policy()(same.clone())["action"]

    assert len(set(explored.tolist())) > 1, "every environment has noise of its own"
    assert not torch.equal(explored, again), "every step has noise of its own"
    assert len(set(greedy.tolist())) == 1


def test_networks_have_noise_of_their_own() -> None:
    agent = make_agent("noisy")
    observation = torch.randn(4, 2)

    online, target = agent.q_network(observation), agent.target_network(observation)

    assert not torch.allclose(online, target)
    agent.eval()
    assert torch.equal(agent.q_network(observation), agent.target_network(observation))


def test_noise_is_in_every_linear_layer_of_any_trunk() -> None:
    agent = DQN(SPEC, trunk=partial(ResidualTrunk, depth=5, width=8), noisy=True)
    linear = [each for each in agent.q_network.modules() if isinstance(each, nn.Linear)]

    assert len(linear) == 6
    assert all(each.weight_sigma is not None for each in linear)
    assert list(agent.named_layers()) == list(
        DQN(SPEC, trunk=partial(ResidualTrunk, depth=5, width=8)).named_layers()
    )


def test_monitors_see_expected_values(counting_envs: Any, make_trainer: MakeTrainer) -> None:
    data, records = replay_data(total_steps=80), Records("policy/")
    agent = make_agent("c51", "dueling", "noisy")

    make_trainer(logger=records, callbacks=[RepresentationMonitor(every_n_steps=5)]).fit(agent, data)

    for row in records.rows.values():
        assert 0 <= row["policy/churn"] <= 1
    assert len(records.rows) > 3


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("loss", ["c51", "hl_gauss"])
@pytest.mark.parametrize("name", ["PQN", "PPO"])
def test_rollouts_are_learned_from_with_distributions(
    name: str, loss: str, make_trainer: MakeTrainer
) -> None:
    data, records = rollout_data(), Records("loss/")
    agent: Any = (
        PQN(data.env_spec, loss=loss, dueling=True, noisy=True, **SUPPORT)
        if name == "PQN"
        else PPO(data.env_spec, value_loss=loss, **SUPPORT)
    )
    before = weights(agent)

    make_trainer(logger=records, log_every_n_steps=2).fit(agent, data)

    now = weights(agent)
    assert now.isfinite().all()
    assert not torch.equal(now, before)
    assert all(0 <= row["loss/support_clipped"] <= 1 for row in records.rows.values())
    value = (
        agent.actor_critic.value(torch.randn(5, 2)) if name == "PPO" else agent(torch.randn(5, 2)).amax(-1)
    )
    assert value.shape == (5,)
    assert ((value > -2) & (value < 10)).all(), "an expectation lies within its support"


def test_a_gradient_step_of_ppo_moves_the_value_to_its_target() -> None:
    torch.manual_seed(0)
    agent = PPO(SPEC, value_loss="hl_gauss", **SUPPORT)
    optimizer = torch.optim.Adam(agent.parameters(), lr=1e-2)
    observation, target = torch.randn(32, 2), torch.full((32,), 4.0)
    for _ in range(150):
        optimizer.zero_grad()
        _, outputs = agent.actor_critic(observation)
        agent._value_loss(outputs, target, target).backward()
        optimizer.step()

    torch.testing.assert_close(agent.actor_critic.value(observation), target, atol=0.1, rtol=0)


def test_values_that_are_distributions_are_not_clipped() -> None:
    with pytest.raises(
        UserError, match=r"clip_value is 0.2, but with value_loss hl_gauss .*expected clip_value null"
    ):
        PPO(SPEC, value_loss="hl_gauss", clip_value=0.2)


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_step": 0}, "n_step is 0; expected a whole number of at least 1"),
        ({"priority_exponent": 1.5}, "priority_exponent is 1.5; expected a number between 0 and 1"),
        ({"importance_exponent": -0.1}, "importance_exponent is -0.1; expected a number between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        replay_data(**options)
