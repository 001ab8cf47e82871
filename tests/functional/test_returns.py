from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from lit_gfs.errors import UserError
from lit_gfs.functional.returns import generalized_advantage, lambda_return, learner_reward, td_target

GAMMA, LAMBDA = 0.9, 0.8


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def flags(*values: int) -> Tensor:
    return torch.tensor([values], dtype=torch.bool)


def random_rollout(num_envs: int = 5, steps: int = 40) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(kind: str) -> Tensor:
        function = torch.rand if kind == "uniform" else torch.randn
        return function(num_envs, steps, generator=generator, dtype=torch.float64)

    done = draw("uniform") < 0.15
    terminated = done & (draw("uniform") < 0.5)
    done[0], terminated[0] = False, False
    done[1, -1], terminated[1, -1] = True, True
    done[2, -1], terminated[2, -1] = True, False
    return {
        "reward": draw("normal"),
        "value": draw("normal"),
        "next_value": draw("normal"),
        "done": done,
        "terminated": terminated,
    }


def without_value(rollout: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in rollout.items() if name != "value"}


def test_td_target_bootstraps_unless_terminated() -> None:
    target = td_target(torch.tensor([1.0, 1.0]), torch.tensor([10.0, 10.0]), torch.tensor([False, True]), 0.5)

    assert target.tolist() == [6.0, 1.0]


def test_td_target_ignores_what_follows_a_terminal_state() -> None:
    target = td_target(row(2.0), row(float("nan")), flags(1), GAMMA)

    assert target.tolist() == [[2.0]]


def test_advantage_by_hand() -> None:
    # delta_1 = 2 + 0.9 * 3 - 1 = 3.7; delta_0 = 1 + 0.9 * 1 - 0.5 = 1.4; A_0 = 1.4 + 0.72 * 3.7 = 4.064
    advantage, target = generalized_advantage(
        row(1, 2), row(0.5, 1), row(1, 3), flags(0, 0), flags(0, 0), GAMMA, LAMBDA
    )

    assert advantage.tolist()[0] == pytest.approx([4.064, 3.7])
    assert target.tolist()[0] == pytest.approx([4.564, 4.7])


def test_lambda_return_by_hand() -> None:
    # G_1 = 2 + 0.9 * 3 = 4.7; G_0 = 1 + 0.9 * (0.2 * 1 + 0.8 * 4.7) = 4.564
    returns = lambda_return(row(1, 2), row(1, 3), flags(0, 0), flags(0, 0), GAMMA, LAMBDA)

    assert returns.tolist()[0] == pytest.approx([4.564, 4.7])


def test_termination_and_truncation_differ_by_the_bootstrap_only() -> None:
    arguments = (row(1, 2), row(0.5, 1), row(7, 3), flags(1, 0))
    truncated, _ = generalized_advantage(*arguments, flags(0, 0), GAMMA, LAMBDA)
    terminated, _ = generalized_advantage(*arguments, flags(1, 0), GAMMA, LAMBDA)

    # The episode ended at step 0 with a final value of 7: 1 + 0.9 * 7 - 0.5, or 1 - 0.5.
    assert truncated.tolist()[0] == pytest.approx([6.8, 3.7])
    assert terminated.tolist()[0] == pytest.approx([0.5, 3.7])
    assert lambda_return(row(1, 2), row(7, 3), flags(1, 0), flags(0, 0), GAMMA, LAMBDA).tolist()[
        0
    ] == pytest.approx([7.3, 4.7])
    assert lambda_return(row(1, 2), row(7, 3), flags(1, 0), flags(1, 0), GAMMA, LAMBDA).tolist()[
        0
    ] == pytest.approx([1.0, 4.7])


@pytest.mark.parametrize("truncated", [True, False])
def test_nothing_leaks_over_the_end_of_an_episode(truncated: bool) -> None:
    rollout = random_rollout()
    rollout["done"][:, 9] = True
    rollout["terminated"][:, 9] = not truncated
    changed = {name: tensor.clone() for name, tensor in rollout.items()}
    for name in ("reward", "value", "next_value"):
        changed[name][:, 10:] += 100

    for gamma, lambda_ in [(GAMMA, LAMBDA), (1.0, 1.0)]:
        before, after = (
            generalized_advantage(**r, gamma=gamma, lambda_=lambda_)[0] for r in (rollout, changed)
        )
        assert torch.equal(before[:, :10], after[:, :10])
        before, after = (
            lambda_return(**without_value(r), gamma=gamma, lambda_=lambda_) for r in (rollout, changed)
        )
        assert torch.equal(before[:, :10], after[:, :10])


@pytest.mark.parametrize("lambda_", [0.0, 0.65, 1.0])
@pytest.mark.parametrize("gamma", [0.5, 0.99, 1.0])
def test_against_sums_over_k_step_returns(gamma: float, lambda_: float) -> None:
    """The forward view: weight (1 - lambda) lambda^(k-1) on the k-step return, the rest on the longest."""
    rollout = random_rollout()
    reward, next_value, done, terminated = (
        rollout[name] for name in ("reward", "next_value", "done", "terminated")
    )
    num_envs, steps = reward.shape
    expected = torch.zeros_like(reward)
    for env in range(num_envs):
        for start in range(steps):
            partial, weight = 0.0, 1.0
            for k, t in enumerate(range(start, steps)):
                partial += gamma**k * reward[env, t]
                k_step = partial + gamma ** (k + 1) * next_value[env, t] * (not terminated[env, t])
                if done[env, t] or t == steps - 1:
                    expected[env, start] += weight * k_step
                    break
                expected[env, start] += weight * (1 - lambda_) * k_step
                weight *= lambda_

    returns = lambda_return(**without_value(rollout), gamma=gamma, lambda_=lambda_)

    torch.testing.assert_close(returns, expected, rtol=1e-10, atol=1e-10)


def consistent_rollout() -> dict[str, Tensor]:
    """Within an episode the next value is the value of the next step."""
    rollout = random_rollout()
    next_values = torch.cat([rollout["value"][:, 1:], rollout["next_value"][:, -1:]], dim=1)
    rollout["next_value"] = torch.where(rollout["done"], rollout["next_value"], next_values)
    return rollout


@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_advantage_plus_value_is_the_lambda_return(lambda_: float) -> None:
    rollout = consistent_rollout()

    advantage, target = generalized_advantage(**rollout, gamma=0.99, lambda_=lambda_)

    returns = lambda_return(**without_value(rollout), gamma=0.99, lambda_=lambda_)
    torch.testing.assert_close(target, returns, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(advantage, returns - rollout["value"], rtol=1e-5, atol=1e-5)


def test_a_trailing_dimension_makes_no_difference() -> None:
    rollout = random_rollout()
    columns = {name: tensor.unsqueeze(-1) for name, tensor in rollout.items()}

    flat = generalized_advantage(**rollout, gamma=0.99, lambda_=0.95)
    column = generalized_advantage(**columns, gamma=0.99, lambda_=0.95)

    for got, expected in zip(column, flat, strict=True):
        assert torch.equal(got, expected.unsqueeze(-1))
    returns = lambda_return(**without_value(columns), gamma=0.99, lambda_=0.65)
    expected_returns = lambda_return(**without_value(rollout), gamma=0.99, lambda_=0.65)
    assert torch.equal(returns, expected_returns.unsqueeze(-1))


def test_repeated_sweeps_find_the_values_of_a_two_state_chain() -> None:
    """Left pays 1 and leads right; right pays 2 and leads left: v_left = (1 + 2 gamma) / (1 - gamma^2)."""
    state = torch.arange(20).unsqueeze(0) % 2
    reward = 1.0 + state.double()
    v = torch.zeros(2, dtype=torch.float64)
    never = torch.zeros(1, 20, dtype=torch.bool)

    for _ in range(60):
        targets = lambda_return(reward, v[1 - state], never, never, GAMMA, LAMBDA)
        v = torch.stack([targets[0, 0], targets[0, 1]])

    assert v.tolist() == pytest.approx([(1 + 2 * GAMMA) / (1 - GAMMA**2), (2 + GAMMA) / (1 - GAMMA**2)])
    advantage, _ = generalized_advantage(reward, v[state], v[1 - state], never, never, GAMMA, LAMBDA)
    torch.testing.assert_close(advantage, torch.zeros_like(advantage), rtol=0, atol=1e-5)


def test_shapes_must_agree() -> None:
    rollout = random_rollout()
    rollout["reward"] = rollout["reward"].unsqueeze(-1)

    with pytest.raises(ValueError, match=r"\(5, 40, 1\), \(5, 40\)"):
        generalized_advantage(**rollout, gamma=GAMMA, lambda_=LAMBDA)
    with pytest.raises(ValueError, match="one shape"):
        lambda_return(**without_value(rollout), gamma=GAMMA, lambda_=LAMBDA)
    with pytest.raises(ValueError, match="one shape"):
        td_target(torch.zeros(4, 1), torch.zeros(4), torch.zeros(4, dtype=torch.bool), GAMMA)


def test_lives_that_an_environment_does_not_report_cannot_end_episodes() -> None:
    keys = ("reward", "done", "terminated")
    next_ = TensorDict({key: torch.zeros(3, 1, dtype=torch.bool) for key in keys}, [3])
    learner_reward(next_)
    with pytest.raises(
        UserError, match="end_of_life_is_terminal is true, but the environment reports no lives"
    ):
        learner_reward(next_, end_of_life_is_terminal=True)
