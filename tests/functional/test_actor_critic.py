from __future__ import annotations

import pytest
import torch

from lit_gfs.functional.actor_critic import (
    critic_loss,
    deterministic_policy_loss,
    smallest_value,
    soft_policy_loss,
    soft_value,
    temperature_loss,
)

VALUES = torch.tensor([[1.0, 5.0, -2.0], [3.0, 4.0, -1.0]])
LOG_PROB = torch.tensor([0.5, -1.0, 2.0])


def test_the_smallest_value_counts() -> None:
    assert smallest_value(VALUES).tolist() == [1.0, 4.0, -2.0]
    assert smallest_value(VALUES[1:]).tolist() == [3.0, 4.0, -1.0]


def test_soft_values_add_the_entropy() -> None:
    value = soft_value(VALUES, LOG_PROB, torch.tensor(0.2))

    torch.testing.assert_close(value, torch.tensor([0.9, 4.2, -2.4]))


def test_each_critic_has_its_own_mean_squared_error() -> None:
    target = torch.tensor([2.0, 4.0, 0.0], requires_grad=True)
    values = VALUES.clone().requires_grad_()

    loss = critic_loss(values, target)

    # (1 + 1 + 4) / 3 + (1 + 0 + 1) / 3
    assert float(loss) == pytest.approx(8 / 3)
    loss.backward()
    assert target.grad is None
    torch.testing.assert_close(values.grad, 2 * (VALUES - target.detach()) / 3)


def test_the_policy_loss_trains_the_policy_alone() -> None:
    values, log_prob = VALUES.clone().requires_grad_(), LOG_PROB.clone().requires_grad_()
    temperature = torch.tensor(0.2, requires_grad=True)

    loss = soft_policy_loss(values, log_prob, temperature)

    assert float(loss) == pytest.approx(-(0.9 + 4.2 - 2.4) / 3)
    loss.backward()
    assert temperature.grad is None
    torch.testing.assert_close(log_prob.grad, torch.full((3,), 0.2 / 3))
    # The gradient reaches the smallest value of each column.
    torch.testing.assert_close(values.grad, -torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]) / 3)


def test_the_deterministic_policy_loss_is_the_negative_mean_value() -> None:
    assert float(deterministic_policy_loss(VALUES[0])) == pytest.approx(-4 / 3)


@pytest.mark.parametrize(("target", "sign"), [(2.0, 1), (-2.0, -1)])
def test_the_temperature_rises_while_the_entropy_is_below_its_target(target: float, sign: int) -> None:
    temperature = torch.tensor(0.5, requires_grad=True)
    log_prob = LOG_PROB.clone().requires_grad_()

    loss = temperature_loss(temperature, log_prob, target)

    # The entropy is -0.5.
    assert float(loss) == pytest.approx(0.5 * (-0.5 - target))
    loss.backward()
    assert log_prob.grad is None
    assert temperature.grad is not None
    assert float(temperature.grad) == pytest.approx(-0.5 - target)
    assert float(-temperature.grad) * sign > 0


@pytest.mark.parametrize("function", [critic_loss, lambda v, b: soft_value(v, b, torch.tensor(1.0))])
def test_shapes_are_never_broadcast(function: object) -> None:
    for values, of_batch in ((VALUES, LOG_PROB[:1]), (VALUES, LOG_PROB.unsqueeze(-1)), (VALUES[0], LOG_PROB)):
        with pytest.raises(ValueError, match=r"expected \(critics, batch\) and \(batch,\), got"):
            function(values, of_batch)  # type: ignore[operator]
