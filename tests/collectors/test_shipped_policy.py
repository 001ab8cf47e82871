"""A policy that was sent to another process acts as the agent does, with the weights that it received."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import pytest
import torch

from lit_gfs.agents import PPO
from lit_gfs.collectors.shipped_policy import VERSION, packed, present_state, unpacked
from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.errors import UserError
from lit_gfs.networks import PlainTrunk


def build(in_features: int, lock: Any) -> PlainTrunk:
    return PlainTrunk(in_features, depth=2, width=8)


def agent() -> PPO:
    # What the command line makes of a trunk holds locks.
    trunk = partial(build, lock=threading.Lock())
    return PPO(EnvSpec.from_env(make_env("CartPole-v1")), trunk=trunk, normalize_observation=True)


def test_it_acts_as_the_agent_with_the_weights_that_it_received() -> None:
    here, lock = agent(), threading.Lock()
    policy = here.collection_policy()
    calls: list[Any] = []
    here.actor_critic.register_forward_hook(lambda *_: calls.append(lock))  # of a callback
    shipped = unpacked(packed(here, policy))
    with torch.no_grad():
        for parameter in here.parameters():
            parameter.add_(0.1)
    here.actor_critic.observation_norm.observe(torch.randn(9, 4))  # type: ignore[union-attr]
    here.actor_critic.observation_norm.commit()  # type: ignore[union-attr]

    shipped.receive(present_state(here, policy, version=7))

    observation = torch.randn(5, 4)
    torch.manual_seed(1)
    expected = policy.act(observation)
    torch.manual_seed(1)
    outputs = dict(shipped.act(observation))
    assert outputs.pop(VERSION).tolist() == [7] * 5
    assert outputs.keys() == expected.keys()
    assert all(torch.equal(outputs[key], expected[key]) for key in expected)
    assert calls == [lock]  # the hook stayed here


def test_an_agent_that_cannot_be_sent_is_named() -> None:
    here = agent()
    here.mine = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(UserError, match="PPO cannot be sent to other processes: TypeError: cannot pickle"):
        packed(here, here.collection_policy())
