"""The last layers are drawn anew: which, when, how, and what else follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from lit_gfs.agents import DQN
from lit_gfs.callbacks import EMAWeights, LayerResets, PathSensitiveInit, TemporalGradientClipping
from lit_gfs.errors import UserError
from lit_gfs.networks import PlainTrunk, ResidualTrunk
from lit_gfs.networks.noise import sigmas_of
from lit_gfs.optim.layer_positions import last_layers
from support.intervened import fit
from support.probed import Chain, sgd
from support.training import MakeTrainer, replay_data, weights


class Watch(Callback):
    """Keeps the parameters at the end of each batch, and the shifts that are announced."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []
        self.shifts: list[tuple[int, str]] = []

    def on_objective_shift(self, trainer: Any, pl_module: Any, reason: str) -> None:
        self.shifts.append((trainer.global_step, reason))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:
        self.after.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})


def changes(watch: Watch, step: int) -> set[str]:
    before, after = watch.after[step - 2], watch.after[step - 1]
    return {name for name in after if not torch.equal(before[name], after[name])}


def test_the_head_is_drawn_anew_every_so_many_steps() -> None:
    module, watch = Chain(sgd(0.0)), Watch()

    rows = fit(module, [LayerResets(every=3), watch], 7)

    assert [changes(watch, step) for step in range(2, 8)] == [
        *(set(), {"head.weight", "head.bias"}),
        *(set(), set(), {"head.weight", "head.bias"}, set()),
    ]
    assert not torch.equal(watch.after[2]["head.weight"], watch.after[5]["head.weight"])
    assert watch.after[5]["head.weight"].abs().max() <= 8**-0.5  # PyTorch's own range
    assert watch.shifts == [(3, "layer_reset"), (6, "layer_reset")]
    assert rows[5]["intervention/layer_resets/layers"] == 1


@pytest.mark.parametrize(
    ("layers", "expected"),
    [(1, {"head"}), (2, {"second", "head"}), (9, {"first", "second", "head"}), ("all", None)],
)
def test_layers_are_counted_from_the_outputs(layers: Any, expected: set[str] | None) -> None:
    module, watch = Chain(sgd(0.0)), Watch()
    with torch.no_grad():
        module.norm.weight.fill_(3.0)
        module.norm.bias.fill_(3.0)
    fit(module, [LayerResets(every=2, layers=layers), watch], 2)
    changed = {name.partition(".")[0] for name in changes(watch, 2)}
    assert changed == (expected or {"first", "second", "norm", "head"})
    if layers == "all":
        assert (module.norm.weight == 1).all()
        assert not module.norm.bias.any()


def test_distance_is_that_of_the_longest_path() -> None:
    trunk = ResidualTrunk(3, depth=6, width=4)
    network = nn.Sequential(trunk, nn.Linear(4, 1))
    example = torch.zeros(1, 3)
    expected = [network[1], trunk.output[2], trunk.branches[1].second, trunk.branches[1].first]
    expected += [trunk.branches[0].second, trunk.branches[0].first, trunk.input]
    for count in range(1, 8):
        assert set(last_layers(network, example, count)) == set(expected[:count])


def test_the_optimizer_steps_as_if_the_head_were_new() -> None:
    class Steps(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Chain, *batch: Any) -> None:
            state = trainer.optimizers[0].state
            counts.append(
                (int(state[pl_module.head.weight]["step"]), int(state[pl_module.first.weight]["step"]))
            )

    counts: list[tuple[int, int]] = []
    fit(Chain(), [LayerResets(every=2), Steps()], 3)
    assert counts == [(1, 1), (0, 2), (1, 3)]


def test_clipping_by_history_is_reopened() -> None:
    clipping = TemporalGradientClipping(warmup=1)
    fit(Chain(), [clipping, LayerResets(every=4)], 4)
    assert (clipping.state_dict()["algorithms"][0]["state"]["watch"] == 3).all()


def test_the_average_of_the_weights_takes_the_new_head_over() -> None:
    module, average = Chain(sgd(0.0)), EMAWeights(decay=0.9)
    before = module.head.weight.detach().clone()
    seen: list[Tensor] = []

    class Head(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Chain, *batch: Any) -> None:
            seen.append(pl_module.head.weight.detach().clone())

    fit(module, [average, LayerResets(every=2), Head()], 2)
    # When fitting has ended, the module has the average.
    assert torch.equal(module.head.weight, seen[-1])
    assert not torch.equal(module.head.weight, before)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_path_sensitive_initialization_is_repeated(mirrored: bool) -> None:
    module = Chain(sgd(0.0))
    module.norm = nn.Identity()
    first, watch = PathSensitiveInit(mirrored=mirrored, head_gain=0.1), Watch()
    fit(module, [first, LayerResets(every=2), watch], 2)
    head = module.head.weight
    assert not torch.equal(head, watch.after[0]["head.weight"])
    assert not module.head.bias.any()
    assert float(head.norm()) == pytest.approx(float(watch.after[0]["head.weight"].norm()), rel=1e-5)
    if mirrored:
        assert torch.equal(head[:, :4], -head[:, 4:])


def test_dqn_copies_its_target_network(counting_envs: Any, make_trainer: MakeTrainer) -> None:
    source = replay_data(total_steps=60, eval_every=60)
    agent = DQN(source.env_spec, trunk=lambda features: PlainTrunk(features, 2, 8), target_sync_every=10_000)
    heads: list[tuple[int, Tensor, Tensor]] = []

    class Heads(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: DQN, *batch: Any) -> None:
            weights = (
                network.head.weight.detach().clone() for network in (agent.q_network, agent.target_network)
            )
            heads.append((agent.env_steps, *weights))

    make_trainer(callbacks=[LayerResets(every=30), Heads()]).fit(agent, source)

    reset = next(index for index, (steps, *_) in enumerate(heads) if steps >= 30)
    assert not torch.equal(heads[reset - 1][1], heads[reset - 1][2])
    assert torch.equal(heads[reset][1], heads[reset][2])
    gram = heads[reset][1] @ heads[reset][1].T
    torch.testing.assert_close(gram, torch.eye(len(gram)).to(gram))  # a LinearHead of gain 1


@pytest.mark.parametrize("first", [[], [PathSensitiveInit()]], ids=["own initialization", "path init"])
def test_noisy_layers_explore_again_after_a_reset(
    counting_envs: Any, first: list[Any], make_trainer: MakeTrainer
) -> None:
    source = replay_data(total_steps=60, eval_every=60)
    agent = DQN(source.env_spec, trunk=lambda features: PlainTrunk(features, 2, 8), noisy=True)
    sigmas = [sigma for layer in agent.q_network.modules() for sigma in sigmas_of(layer)]
    initial = [sigma.detach().clone() for sigma in sigmas]
    seen: list[list[bool]] = []

    class Sigmas(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: DQN, *batch: Any) -> None:
            seen.append([torch.equal(*pair) for pair in zip(sigmas, initial, strict=True)])

    make_trainer(callbacks=[*first, LayerResets(every=30, layers="all"), Sigmas()]).fit(agent, source)

    assert all(parameter.isfinite().all() for parameter in agent.parameters())
    assert not all(seen[0])
    assert any(all(equal) for equal in seen)


def test_a_resumed_run_repeats_the_uninterrupted_one(tmp_path: Path) -> None:
    keep = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    whole, resumed = Chain(), Chain()
    rows = fit(whole, [LayerResets(every=4), keep], 30, log_every_n_steps=7)
    later = fit(resumed, [LayerResets(every=4)], 30, log_every_n_steps=7, ckpt_path=tmp_path / "step=10.ckpt")
    assert torch.equal(weights(whole), weights(resumed))
    assert later == {step: row for step, row in rows.items() if step > 10}


def test_frozen_layers_stay() -> None:
    module = Chain(sgd(0.0))
    module.head.requires_grad_(False)
    before = weights(module)
    fit(module, [LayerResets(every=1, layers=1)], 2)
    assert torch.equal(weights(module), before)


def test_what_cannot_be_drawn_is_refused_in_one_line() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, 8))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.T

    module = Chain()
    module.head = Own()  # type: ignore[assignment]
    with pytest.raises(
        UserError, match=r"LayerResets cannot draw head anew; expected layers with reset_parameters"
    ):
        fit(module, [LayerResets()], 1)
    with pytest.warns(
        UserWarning, match=r"LayerResets leaves head as they are: they have no reset_parameters"
    ):
        fit(module, [LayerResets(layers="all")], 1)
    for layers in (0, "last", 1.5):
        with pytest.raises(UserError, match=r"layers is .*; expected a whole number of at least 1, or 'all'"):
            LayerResets(layers=layers)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="every is 0"):
        LayerResets(every=0)
