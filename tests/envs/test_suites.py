"""A suite that is added by one line."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torchrl.data import Unbounded

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.envs.action_specs import discrete_action
from lit_gfs.envs.make import complete_options
from lit_gfs.envs.serial import SerialEnv
from lit_gfs.envs.suites import SUITES, Suite, all_ids
from lit_gfs.errors import UserError


class ToyEnv(SerialEnv):
    """Shows how many steps an episode has taken; it ends after ``length`` of them."""

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        *,
        seed: int | None = None,
        render: bool = False,
        length: int = 3,
    ) -> None:
        observations = {"observation": Unbounded((num_envs, 1), dtype=torch.float32)}
        super().__init__(env_id, num_envs, observations, discrete_action(2, num_envs), 1, seed)
        self._length = length
        self._steps = [0] * num_envs

    def _restart_one(self, index: int, seed: int | None, observation: NDArray[Any]) -> None:
        self._steps[index] = 0
        observation[:] = 0

    def _step_one(self, index: int, action: Any, observation: NDArray[Any]) -> tuple[float, bool, bool]:
        self._steps[index] += 1
        observation[:] = self._steps[index]
        return 1.0, self._steps[index] == self._length, False

    def _render_one(self, index: int) -> NDArray[np.uint8]:
        raise NotImplementedError


SUITE = Suite(ids=lambda: ["Toy/Abacus-v0"], env_class=lambda env_id: ToyEnv)


@pytest.fixture(autouse=True)
def _toy_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SUITES, "Toy/<Name>-v0", __name__)


def test_a_suite_of_its_own_is_made() -> None:
    env = make_env("Toy/Abacus-v0", 2, seed=0, length=2)

    rollout = env.rollout(4, break_when_any_done=False)

    assert rollout["next", "observation"][1].flatten().tolist() == [1, 2, 1, 2]
    assert EnvSpec.from_env(env).num_actions == 2
    assert complete_options("Toy/Abacus-v0", {}) == {"length": 3}
    assert complete_options("Toy/Abacus-v0", {"length": 2}) == {"length": 2}


@pytest.mark.parametrize("env_id", ["Toy/Abcaus-v0", "Abacus-v0"])
def test_its_ids_are_named_where_one_is_unknown(env_id: str) -> None:
    with pytest.raises(UserError) as caught:
        make_env(env_id)

    message = str(caught.value)
    assert message.startswith(
        f"unknown environment '{env_id}'; expected a gymnasium id, 'ALE/<Game>-v5', 'MinAtar/<Game>-v1', "
        "'dm_control/<domain>-<task>-v0', 'tensor/<id>' or 'Toy/<Name>-v0'; did you mean 'Toy/Abacus-v0'"
    )


def test_its_options_are_named_where_one_is_unknown() -> None:
    with pytest.raises(UserError) as caught:
        make_env("Toy/Abacus-v0", lenght=2)

    assert str(caught.value) == (
        "'Toy/Abacus-v0' has no option 'lenght'; expected one of render, length; did you mean 'length'?"
    )


def test_an_id_belongs_to_one_suite() -> None:
    ids = all_ids()  # imports ale_py, which registers its games with gymnasium, too

    assert len(ids) == len(set(ids))
    assert {"CartPole-v1", "ALE/Pong-v5", "MinAtar/Breakout-v1", "dm_control/walker-walk-v0"} <= set(ids)
    assert all_ids() == ids
