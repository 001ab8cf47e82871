from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lit_gfs.errors import UserError
from lit_gfs.optim import Kron

Step = Callable[[], float]


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.LayerNorm(8), nn.Linear(8, 3))
    return layers.to(dtype)


def steps(net: nn.Module, optimizer: Optimizer, first: int, last: int) -> list[float]:
    """Train on batches that their number decides; return the losses."""
    losses = []
    dtype = next(net.parameters()).dtype
    for index in range(first, last):
        generator = torch.Generator().manual_seed(index)
        inputs = torch.randn(16, 4, generator=generator).to(dtype)
        targets = torch.randn(16, 3, generator=generator)
        loss = (net(inputs).float() - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def disturb_generators() -> None:
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002


# -- the algorithm ---------------------------------------------------------------------------------------


def test_without_updates_of_the_factors_it_is_clipped_momentum() -> None:
    """The factors start at the identity, which leaves the debiased momentum as it is."""
    parameter = nn.Parameter(torch.randn(3, 5))
    optimizer = Kron([parameter], lr=0.1, momentum=0.8, pre_conditioner_update_probability=0.0)
    small, large = torch.full((3, 5), 0.5), torch.full((3, 5), 4.0)

    before = parameter.detach().clone()
    parameter.grad = small.clone()
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - 0.1 * 0.5)

    before = parameter.detach().clone()
    parameter.grad = large.clone()
    optimizer.step()
    momentum = (0.8 * 0.2 * 0.5 + 0.2 * 4.0) / (1 - 0.8**2)
    assert momentum > 1.1
    torch.testing.assert_close(parameter.detach(), before - 0.1 * 1.1)


def test_it_minimizes() -> None:
    net = network()
    optimizer = Kron(net.parameters(), lr=0.01)
    inputs = torch.randn(64, 4)
    targets = inputs[:, :3] * inputs[:, 1:]

    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = (net(inputs) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.3 * losses[0]


# -- draws -----------------------------------------------------------------------------------------------


def test_the_global_generators_are_left_alone() -> None:
    net = network()
    optimizer = Kron(net.parameters())
    disturb_generators()
    expected = torch.rand(3).tolist(), np.random.random(3).tolist()  # noqa: NPY002

    disturb_generators()
    steps(net, optimizer, 0, 3)

    assert (torch.rand(3).tolist(), np.random.random(3).tolist()) == expected  # noqa: NPY002


def test_the_closure_draws_from_the_global_generators_and_its_loss_is_returned() -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = Kron([parameter])

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (parameter * torch.rand(3)).sum()
        loss.backward()
        return loss

    torch.manual_seed(5)
    loss = optimizer.step(closure)
    following = torch.rand(1)

    torch.manual_seed(5)
    assert loss.item() == pytest.approx(torch.rand(3).sum().item())
    assert torch.equal(following, torch.rand(1))


def test_draws_depend_on_the_seed_and_on_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """So processes that share gradients keep equal weights, whatever each of them drew before."""

    def losses(seed: int | None) -> list[float]:
        net = network()
        disturb_generators() if seed == 1 else None
        return steps(net, Kron(net.parameters(), lr=0.03, balance_prob=0.5, seed=seed), 0, 8)

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)
    monkeypatch.setenv("PL_GLOBAL_SEED", "2")
    assert losses(None) == losses(2)


def test_every_step_draws_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Tensor] = []
    normal_ = Tensor.normal_

    def keep(*arguments: Any, **options: Any) -> Tensor:
        drawn.append(normal_(*arguments, **options))
        return drawn[-1]

    monkeypatch.setattr(Tensor, "normal_", keep)
    parameters = [nn.Parameter(torch.ones(40)), nn.Parameter(torch.ones(40))]
    optimizer = Kron(parameters)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.ones(40)
        optimizer.step()

    assert len(drawn) == 6
    assert len({tuple(draw.tolist()) for draw in drawn}) == 6


# -- resuming --------------------------------------------------------------------------------------------

RESUMABLE = {
    "default schedule": (torch.float32, {}),
    "one update in three": (torch.float32, {"pre_conditioner_update_probability": 0.34}),
    "bfloat16 parameters": (torch.bfloat16, {}),
    "bfloat16 momentum": (torch.float32, {"mu_dtype": "bfloat16"}),
    "bfloat16 factors": (torch.float32, {"precondition_dtype": "bfloat16"}),
    "factors in the parameters' precision": (torch.bfloat16, {"precondition_dtype": None}),
    "diagonal factors": (torch.float32, {"memory_save_mode": "smart_one_diag"}),
}


@pytest.mark.parametrize("case", RESUMABLE)
@pytest.mark.parametrize("saved_at", [0, 4, 5])
def test_it_resumes_bit_for_bit(case: str, saved_at: int) -> None:
    dtype, arguments = RESUMABLE[case]
    arguments = {"lr": 0.03, "weight_decay": 0.1, "balance_prob": 0.5, **arguments}

    whole = network(dtype)
    optimizer = Kron(whole.parameters(), seed=3, **arguments)
    steps(whole, optimizer, 0, saved_at)
    saved = saved_and_loaded({"net": whole.state_dict(), "optimizer": optimizer.state_dict()})
    expected = steps(whole, optimizer, saved_at, 12)

    disturb_generators()
    resumed = network(dtype)
    restored = Kron(resumed.parameters(), seed=4, **arguments)
    resumed.load_state_dict(saved["net"])
    restored.load_state_dict(saved["optimizer"])

    assert steps(resumed, restored, saved_at, 12) == expected
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_loading_copies() -> None:
    net, twin = network(), network()
    optimizer = Kron(net.parameters())
    steps(net, optimizer, 0, 2)
    saved = optimizer.state_dict()
    before = copy.deepcopy(saved["state"])
    restored = Kron(twin.parameters())
    restored.load_state_dict(saved)

    steps(twin, restored, 2, 3)

    for index, state in before.items():
        for factor, now in zip(state["Q"], saved["state"][index]["Q"], strict=True):
            assert torch.equal(factor, now)


def test_state_follows_the_parameters_to_their_device() -> None:
    net = network()
    optimizer = Kron(net.parameters())
    steps(net, optimizer, 0, 2)
    moved = Kron(network().to("meta").parameters())

    moved.load_state_dict(optimizer.state_dict())

    for state in moved.state.values():
        assert [tensor.device.type for tensor in (state["momentum_buffer"], *state["Q"])] == ["meta"] * (
            1 + len(state["Q"])
        )


def test_a_checkpoint_of_the_library_goes_on() -> None:
    net, twin = network(), network()
    library = pytorch_optimizer.Kron(net.parameters(), lr=0.03, pre_conditioner_update_probability=0.5)
    steps(net, library, 0, 3)
    twin.load_state_dict(net.state_dict())

    optimizer = Kron(twin.parameters(), seed=7)
    optimizer.load_state_dict(saved_and_loaded(library.state_dict()))
    assert (optimizer.param_groups[0]["step"], optimizer.param_groups[0]["seed"]) == (3, 7)
    # The fourth step updates the factors with other draws than the library's.
    library.param_groups[0]["pre_conditioner_update_probability"] = 0.0
    optimizer.param_groups[0]["pre_conditioner_update_probability"] = 0.0

    assert steps(twin, optimizer, 3, 8) == pytest.approx(steps(net, library, 3, 8), rel=1e-4)
    assert optimizer.param_groups[0]["step"] == 8


def test_a_deep_copy_goes_on_alike() -> None:
    net = network()
    optimizer = Kron(net.parameters(), lr=0.03, balance_prob=0.5)
    steps(net, optimizer, 0, 3)

    twin_net, twin = copy.deepcopy((net, optimizer))

    assert steps(twin_net, twin, 3, 8) == steps(net, optimizer, 3, 8)


# -- parameters ------------------------------------------------------------------------------------------


def test_a_parameter_without_gradient_stays_and_may_get_one_later() -> None:
    frozen, late = nn.Parameter(torch.ones(3, 2), requires_grad=False), nn.Parameter(torch.ones(3, 2))
    always = nn.Parameter(torch.ones(4))
    optimizer = Kron([{"params": [frozen, late]}, {"params": [always], "lr": 0.2}], lr=0.1, weight_decay=0.5)

    always.grad = torch.ones(4)
    optimizer.step()
    assert torch.equal(late.detach(), torch.ones(3, 2))
    assert frozen not in optimizer.state
    assert late not in optimizer.state

    late.grad = torch.ones(3, 2)
    optimizer.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    optimizer.step()
    assert not torch.equal(late.detach(), torch.ones(3, 2))
    assert torch.equal(frozen.detach(), torch.ones(3, 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pre_conditioner_update_probability": 1.5}, "probability is 1.5; expected a number between 0 and"),
        ({"balance_prob": -0.1}, "balance_prob is -0.1"),
        ({"lr": -1.0}, "lr is -1.0; expected a number at least 0"),
        ({"momentum": 1.0}, "momentum is 1.0; expected a number of at least 0 and less than 1"),
        ({"momentum": -0.1}, "momentum is -0.1; expected a number of at least 0 and less than 1"),
        ({"weight_decay": -0.5}, "weight_decay is -0.5; expected a number at least 0"),
        ({"seed": -1}, "seed is -1; expected a number at least 0"),
        ({"memory_save_mode": "one_dag"}, "no memory_save_mode 'one_dag'.*did you mean 'one_diag'"),
        ({"mu_dtype": "bfloat"}, "no mu_dtype 'bfloat'.*did you mean 'bfloat16'"),
        ({"precondition_dtype": "double"}, "no precondition_dtype 'double'; .* float32, bfloat16"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Kron(network().parameters(), **arguments)


def test_complex_parameters_and_sparse_gradients_are_refused() -> None:
    with pytest.raises(UserError, match=r"parameter \(2, 3\) of torch.complex64; expected a real one"):
        Kron([nn.Parameter(torch.ones(2, 3, dtype=torch.complex64))])

    embedding = nn.Embedding(5, 2, sparse=True)
    optimizer = Kron(embedding.parameters())
    embedding(torch.tensor([1, 3])).sum().backward()
    with pytest.raises(UserError, match=r"sparse gradient of a parameter \(5, 2\); expected a dense one"):
        optimizer.step()
    assert "step" not in optimizer.param_groups[0]


# -- where it is used ------------------------------------------------------------------------------------


def test_the_command_line_builds_it() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--optimizer", type=Callable[[Iterable[nn.Parameter]], Optimizer])

    settings = ["lr=1e-4", "mu_dtype=bfloat16", "memory_save_mode=all_diag", "seed=5"]
    settings += ["pre_conditioner_update_probability=0.1"]
    parsed = parser.parse_args(
        ["--optimizer=lit_gfs.optim.Kron", *[f"--optimizer.{setting}" for setting in settings]]
    )
    optimizer = parser.instantiate(parsed).optimizer(network().parameters())

    (group,) = optimizer.param_groups
    assert isinstance(optimizer, Kron)
    assert (group["lr"], group["mu_dtype"], group["seed"]) == (1e-4, torch.bfloat16, 5)
    assert group["pre_conditioner_update_probability"] == 0.1


class Regression(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = (self.net(batch) - batch[:, :3]).square().mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> Optimizer:
        return Kron(self.parameters(), lr=0.03, pre_conditioner_update_probability=0.34, balance_prob=0.5)


class SaveAfterEpoch(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 0:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_trainer_resumes_it(make_trainer: Callable[..., Trainer], tmp_path: Path, precision: Any) -> None:
    batches = list(torch.randn(5, 16, 4, generator=torch.Generator().manual_seed(1)))
    path = tmp_path / "middle.ckpt"

    def run(checkpoint: Path | None) -> Regression:
        module = Regression()
        disturb_generators()
        trainer = make_trainer(max_epochs=2, callbacks=[SaveAfterEpoch(path)], precision=precision)
        loader = DataLoader(batches, batch_size=None)  # type: ignore[arg-type]
        trainer.fit(module, loader, ckpt_path=checkpoint, weights_only=True)
        return module

    whole, resumed = run(None), run(path)

    assert len(whole.losses) == 10
    assert resumed.losses == whole.losses[5:]
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
