from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from lit_gfs.agents import DQN
from lit_gfs.envs import EnvSpec
from lit_gfs.gradients.step_guard import can_skip_exactly
from lit_gfs.optim import Kron

SPEC = EnvSpec(
    env_id="Counting-v0",
    observation_shape=(2,),
    observation_dtype="float32",
    num_actions=3,
    action_low=None,
    action_high=None,
    frame_skip=1,
)


def steps(optimizer: torch.optim.Optimizer) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize(
    ("name", "implementation"),
    [("Adam", "fused"), ("AdamW", "fused"), ("SGD", "fused"), ("RAdam", "foreach"), ("RMSprop", "foreach")],
)
def test_the_quick_implementation_gives_the_same_updates(name: str, implementation: str) -> None:
    factory = getattr(torch.optim, name)
    network = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    looped = copy.deepcopy(network)

    optimizer = DQN(SPEC).make_optimizer(lambda p: factory(p, lr=0.1), network.parameters())
    steps(optimizer)
    steps(factory(looped.parameters(), lr=0.1, foreach=False))

    assert optimizer.param_groups[0][implementation] is True
    for ours, expected in zip(network.parameters(), looped.parameters(), strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize(("name", "exactly"), [("Adam", True), ("SGD", True), ("RMSprop", False)])
def test_on_a_gpu_its_steps_are_skipped_exactly_where_a_kernel_can(name: str, exactly: bool) -> None:
    parameter = nn.Parameter(torch.zeros(3))
    optimizer = DQN(SPEC).make_optimizer(lambda p: getattr(torch.optim, name)(p, lr=0.1), [parameter])
    assert can_skip_exactly(optimizer, torch.device("cuda")) == exactly

    if exactly:
        # What `skip_step_where` leaves there for the kernel to read.
        vars(optimizer).update(found_inf=torch.ones(()), grad_scale=None)
        parameter.grad = torch.ones(3)
        optimizer.step()
        assert parameter.eq(0).all()


@pytest.mark.parametrize("chosen", [{"foreach": False}, {"foreach": True}, {"fused": False}])
def test_an_implementation_that_the_user_chose_stays(chosen: dict[str, Any]) -> None:
    parameters = nn.Linear(2, 2).parameters()

    optimizer = DQN(SPEC).make_optimizer(lambda p: torch.optim.Adam(p, **chosen), parameters)

    assert {key: optimizer.param_groups[0][key] for key in chosen} == chosen
    assert optimizer.param_groups[0]["fused"] is not True


def test_optimizers_of_others_are_left_alone() -> None:
    optimizer = DQN(SPEC).make_optimizer(Kron, nn.Linear(2, 2).parameters())

    assert not {"fused", "foreach"} & set(optimizer.param_groups[0])


def test_the_probe_is_the_latest_256_observations() -> None:
    agent = DQN(SPEC)
    done = torch.zeros(3, 50, 1, dtype=torch.bool)
    pieces = torch.arange(7 * 3 * 50 * 2, dtype=torch.float32).view(7, 3, 50, 2)

    assert agent.probe_batch() is None
    for number, observation in enumerate(pieces, start=1):
        agent.on_collection_end(
            TensorDict({"observation": observation.clone(), "next": {"done": done}}, [3, 50])
        )
        expected = pieces[:number].transpose(1, 2).flatten(0, 2)[-256:]
        probe = agent.probe_batch()
        assert probe is not None
        assert torch.equal(probe, expected)
    assert agent._seen_count < 256 + 150


@pytest.mark.parametrize(("num_envs", "steps"), [(1, 400), (16, 64), (128, 32), (100, 3), (300, 2), (700, 1)])
def test_the_probe_shows_all_environments_alike(num_envs: int, steps: int) -> None:
    agent = DQN(SPEC)
    observation = torch.stack(
        torch.meshgrid(torch.arange(num_envs), torch.arange(steps), indexing="ij"), -1
    ).float()
    done = torch.zeros(num_envs, steps, 1, dtype=torch.bool)

    for _ in range(3):
        agent.on_collection_end(
            TensorDict({"observation": observation, "next": {"done": done}}, done.shape[:2])
        )

    probe = agent.probe_batch()
    assert probe is not None
    assert len(probe) == 256
    shares = probe[:, 0].long().bincount(minlength=num_envs)
    if num_envs <= 256:
        assert shares.max() - shares.min() <= 1 + 2 * (num_envs * steps < 256)
    else:
        assert shares.max() == 1
        assert probe[:, 0].diff().max() <= -(-num_envs // 256)


def test_scores_are_logged_on_the_modules_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What joins several GPUs reduces nothing that is on a CPU."""
    agent = DQN(SPEC).to("meta")
    logged: dict[str, torch.Tensor] = {}
    monkeypatch.setattr(agent, "log_dict", lambda scores, **options: logged.update(scores))
    agent.trainer = SimpleNamespace(validating=False)  # type: ignore[assignment]

    agent.report_evaluation({"eval/episode_return": torch.tensor(1.0)})

    assert logged["eval/episode_return"].device.type == "meta"
