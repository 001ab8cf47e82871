"""The curvature of our agents' losses, against the whole Hessian."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch.autograd.functional import hessian
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector

from lit_gfs.agents import DQN, PPO
from lit_gfs.callbacks.curvature import CurvatureMonitor
from lit_gfs.networks import PlainTrunk
from support.fakes import Records
from support.training import replay_data, rollout_data


class Follow(Callback):
    """Keeps the batch and the state of the agent after every step."""

    def __init__(self):
        self.batches, self.states = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch is not None:
            self.batches.append(batch)
            self.states.append({name: value.clone() for name, value in pl_module.state_dict().items()})


class Loss(nn.Module):
    def __init__(self, agent):
        super().__init__()
        self.agent = agent

    def forward(self, batch):
        return self.agent.loss(batch)


def full_hessian(agent, state, batch):
    """The agent's Hessian on a batch, in a given state, as one matrix."""
    trained = {name: state[name] for name, p in agent.named_parameters() if p.requires_grad}

    def loss(vector):
        parts = vector.split([value.numel() for value in trained.values()])
        values = {name: part.view_as(trained[name]) for name, part in zip(trained, parts, strict=True)}
        return functional_call(Loss(agent), {f"agent.{k}": v for k, v in (state | values).items()}, (batch,))

    return hessian(loss, parameters_to_vector(trained.values()))


def agent_and_data(name):
    torch.manual_seed(0)
    arguments = {"total_steps": 96, "eval_every": 96, "seed": 1}
    trunk = partial(PlainTrunk, depth=1, width=4)
    if name == "DQN":
        data = replay_data(learning_starts=32, steps_per_update=4, **arguments)
        # With Huber's loss and errors beyond 1 the eigenvalues come in pairs of both signs.
        return DQN(data.env_spec, trunk=trunk, target_sync_every=10, loss="mse"), data
    data = rollout_data(**arguments)
    limit = 1e-9 if "limit" in name else None
    return PPO(data.env_spec, trunk=trunk, target_kl=limit, normalize_observation=True), data


@pytest.mark.usefixtures("counting_envs")
@pytest.mark.parametrize("name", ["DQN", "PPO", "PPO with a divergence limit"])
def test_agents(name, make_trainer):
    def run(callbacks):
        agent, data = agent_and_data(name)
        records = Records("curvature/")
        make_trainer(callbacks=callbacks, logger=records, log_every_n_steps=1).fit(agent, data)
        for _, row in records.others:
            row.pop("time/steps_per_second", None)
        return agent, records

    follow = Follow()
    plain, without = run([])
    agent, records = run(
        [CurvatureMonitor(every_n_steps=3, samples=200, iterations=200, batch_size=4), follow]
    )
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), agent.parameters(), strict=True))
    assert records.others == without.others
    assert len(records.calls) == math.ceil(len(follow.batches) / 3) >= 2
    compared = 0
    for row, state, batch in zip(records.calls, follow.states[::3], follow.batches[::3], strict=True):
        full = full_hessian(agent, state, batch[:4])
        eigenvalues = torch.linalg.eigvalsh(full)
        largest = eigenvalues[eigenvalues.abs().argmax()].item()
        error = row["curvature/hessian_trace_error"]
        assert row["curvature/hessian_trace"] == pytest.approx(full.trace().item(), abs=4 * error)
        # Where a second one is almost as large, power iteration takes for ever.
        second = eigenvalues.abs().topk(2).values[1].item()
        if second < 0.95 * abs(largest):
            assert row["curvature/largest_eigenvalue"] == pytest.approx(largest, rel=1e-3)
            compared += 1
    assert compared
