"""The policy of an agent, as it goes to other machines."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lit_gfs.collectors.policy import Policy
from lit_gfs.errors import UserError, in_one_line

VERSION = "weights_version"
"""The entry of a rollout ``(num_envs, T)`` int64: optimizer steps behind the weights that chose an action."""


_OF_THIS_PROCESS = ("build_encoder", "build_trunk", "build_optimizer", "given_arguments", "training_step")
"""Attributes that no policy needs: builders, which may hold the command line, and a step with CUDA graphs."""


class ShippedPolicy(Policy):
    """An agent's exploring policy in another process, whose weights and settings are sent to it.

    Besides the outputs of the agent's policy it writes `VERSION`.

    Args:
        agent: A copy of the agent on the CPU, without a Trainer.
        settings: The first settings.
    """

    def __init__(self, agent: Any, settings: dict[str, float]) -> None:
        policy = agent.collection_policy()
        super().__init__(
            self._act_with_version, [*policy.out_keys, VERSION], lambda: self._received["settings"]
        )
        self.agent = agent
        self._acts = policy.function
        self._received: dict[str, Any] = {"settings": settings, "version": 0}

    def receive(self, sent: dict[str, Any]) -> None:
        """Take over what `present_state` returned on the learner's side."""
        self._received = sent
        for own, tensor in zip(_tensors(self.agent), sent["tensors"], strict=True):
            own.copy_(tensor)

    def _act_with_version(self, observation: Tensor, **settings: float) -> dict[str, Tensor]:
        version = torch.full(observation.shape[:1], self._received["version"])
        return {**self._acts(observation, **settings), VERSION: version}


def present_state(agent: Any, policy: Policy, version: int) -> dict[str, Any]:
    """Return copies of the weights and of the settings of a policy, for `ShippedPolicy.receive`.

    Args:
        agent: The agent that learns.
        policy: Its policy, of `collection_policy`.
        version: Optimizer steps behind the weights.
    """
    tensors = [tensor.detach().to("cpu", copy=True) for tensor in _tensors(agent)]
    return {"tensors": tensors, "settings": policy.settings(), "version": version}


def packed(agent: Any, policy: Policy) -> bytes:
    """Return an agent as bytes, without its Trainer and without the hooks that callbacks have put into it.

    Args:
        agent: The agent that learns.
        policy: Its policy, of `collection_policy`.

    Raises:
        UserError: If the agent holds something else that belongs to this process.
    """
    from ray import cloudpickle  # packs classes and functions of a user's script too

    bare = copy.copy(agent)  # without the Trainer: Lightning leaves it out of copies
    for name in _OF_THIS_PROCESS:
        bare.__dict__.pop(name, None)
    content = io.BytesIO()
    try:
        with _without_hooks(bare):
            torch.save((bare, policy.settings()), content, pickle_module=cloudpickle)
    except (TypeError, pickle.PicklingError) as error:
        raise UserError(
            f"data.remote_collectors: {type(agent).__name__} cannot be sent to other processes: "
            f"{in_one_line(error)}; expected attributes that can be pickled"
        ) from error
    return content.getvalue()


def unpacked(content: bytes) -> ShippedPolicy:
    """Return the policy of a `packed` agent, on the CPU."""
    # Bytes that this run's own learner has packed a moment ago.
    agent, settings = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    return ShippedPolicy(agent.to("cpu"), settings)


def _tensors(agent: nn.Module) -> list[Tensor]:
    return [*(parameter.data for parameter in agent.parameters()), *agent.buffers()]


@contextmanager
def _without_hooks(module: nn.Module) -> Iterator[None]:
    """Take the hooks off all modules within; they belong to callbacks of this process."""
    kept = [(each, name) for each in module.modules() for name in vars(each) if name.endswith("_hooks")]
    hooks = [vars(each)[name] for each, name in kept]
    try:
        for each, name in kept:
            vars(each)[name] = type(vars(each)[name])()
        yield
    finally:
        for (each, name), value in zip(kept, hooks, strict=True):
            vars(each)[name] = value
