from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.optim import MuonWithAdam
from lit_gfs.optim.factory import make_optimizer


def network() -> nn.Sequential:
    """Make a network with one layer of each kind; the hidden matrices are those of layers 2, 3 and 4."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 128, 3),
        nn.Flatten(),
        nn.Linear(128 * 4, 128),
        nn.Linear(128, 128),
        nn.Linear(128, 130),
        nn.LayerNorm(130),
        nn.Linear(130, 3),
    )


def small_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    """Train on batches that their number decides."""
    for index in range(first, last):
        generator = torch.Generator().manual_seed(index)
        inputs, targets = (torch.randn(16, size, generator=generator) for size in (4, 3))
        optimizer.zero_grad()
        (net(inputs) - targets).square().mean().backward()
        optimizer.step()


def groups_of(optimizer: MuonWithAdam, net: nn.Module) -> tuple[set[str], set[str]]:
    """Return the names of Muon's and of Adam's parameters."""
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    muon, other = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    return muon, other


def test_muon_gets_the_hidden_matrices_and_adam_all_other_parameters() -> None:
    net = network()
    muon, other = groups_of(MuonWithAdam(net.parameters()), net)

    assert muon == {"2.weight", "3.weight", "4.weight"}
    assert muon | other == {name for name, _ in net.named_parameters()}
    assert not muon & other


def test_narrow_matrices_are_hidden_if_they_are_square_or_the_option_says_so() -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 20), nn.Linear(20, 2))

    assert groups_of(MuonWithAdam(net.parameters()), net)[0] == {"1.weight"}
    assert groups_of(MuonWithAdam(net.parameters(), smallest_side=16), net)[0] == {"1.weight", "2.weight"}


@pytest.mark.parametrize("other", ["Adam", "RAdam"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_both_parts_are_those_of_torch(other: Any, weight_decay: float) -> None:
    net = small_network()
    twin = copy.deepcopy(net)
    optimizer = MuonWithAdam(net.parameters(), lr=0.01, other=other, weight_decay=weight_decay)
    shared: dict[str, Any] = {"lr": 0.01, "weight_decay": weight_decay}
    muon = torch.optim.Muon([twin[2].weight], **shared, adjust_lr_fn="match_rms_adamw")
    rest = [parameter for parameter in twin.parameters() if parameter is not twin[2].weight]
    adam = getattr(torch.optim, other)(rest, **shared, decoupled_weight_decay=True)

    for index in range(7):
        steps(net, optimizer, index, index + 1)
        adam.zero_grad()
        steps(twin, muon, index, index + 1)
        adam.step()

    for ours, theirs in zip(net.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_rate_that_suits_adam_suits_muon() -> None:
    """The root mean square of the update is 0.2 times the rate, whatever the shape and the gradient."""
    for shape in ((64, 64), (200, 130)):
        matrix = nn.Parameter(torch.zeros(shape))
        optimizer = MuonWithAdam([matrix], lr=0.5)
        matrix.grad = 1e-3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
        optimizer.step()
        assert matrix.detach().square().mean().sqrt() == pytest.approx(0.2 * 0.5, rel=0.25)


@pytest.mark.parametrize("other", ["Adam", "RAdam"])
def test_a_saved_state_goes_on_bit_for_bit(other: Any) -> None:
    def made(net: nn.Module) -> torch.optim.Optimizer:
        return make_optimizer(lambda p: MuonWithAdam(p, lr=0.01, other=other), net.parameters())

    whole, first = small_network(), small_network()
    steps(whole, made(whole), 0, 12)
    before = made(first)
    steps(first, before, 0, 5)
    saved: tuple[dict[str, Tensor], Any] = copy.deepcopy((first.state_dict(), before.state_dict()))

    second = small_network()
    optimizer = made(second)
    steps(second, optimizer, 0, 1)  # the parts have a state already
    second.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    steps(second, optimizer, 5, 12)

    for ours, expected in zip(second.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, expected)


def test_a_copy_and_an_unpickled_optimizer_step_on_their_own() -> None:
    net = small_network()
    optimizer = MuonWithAdam(net.parameters(), lr=0.01)
    steps(net, optimizer, 0, 2)
    twin, other = copy.deepcopy((net, optimizer))
    third, unpickled = pickle.loads(pickle.dumps((net, optimizer)))

    before = [parameter.detach().clone() for parameter in net.parameters()]
    steps(twin, other, 2, 6)
    steps(third, unpickled, 2, 6)
    assert all(map(torch.equal, before, net.parameters()))
    steps(net, optimizer, 2, 6)

    assert all(map(torch.equal, twin.parameters(), net.parameters()))
    assert all(map(torch.equal, third.parameters(), net.parameters()))


def test_schedulers_reach_both_parts() -> None:
    net = small_network()
    optimizer = MuonWithAdam(net.parameters(), lr=0.5)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.0 if step else 1.0)
    steps(net, optimizer, 0, 1)
    scheduler.step()
    before = [parameter.detach().clone() for parameter in net.parameters()]

    steps(net, optimizer, 1, 2)

    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0]
    assert all(map(torch.equal, before, net.parameters()))


def test_groups_with_rates_of_their_own_keep_them() -> None:
    net = small_network()
    groups = [{"params": net[0].parameters()}, {"params": net[2].parameters(), "lr": 0.1}]

    optimizer = MuonWithAdam(groups, lr=0.5)

    assert [(len(group["params"]), group["lr"]) for group in optimizer.param_groups] == [
        *((1, 0.1), (2, 0.5), (1, 0.1))
    ]


def test_parameters_without_gradients_stay() -> None:
    net = small_network()
    optimizer = MuonWithAdam(net.parameters(), lr=0.5, weight_decay=0.1)
    steps(net, optimizer, 0, 2)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    state = copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()

    optimizer.step()

    assert all(map(torch.equal, before, net.parameters()))
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)


def test_the_closures_loss_is_returned() -> None:
    net = small_network()
    optimizer = MuonWithAdam(net.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(1, 4)).square().sum()
        loss.backward()
        return loss

    expected = net(torch.ones(1, 4)).square().sum().item()
    assert optimizer.step(closure).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"other": "Adm"}, "has no other 'Adm'; expected one of Adam, RAdam; did you mean 'Adam'"),
        ({"ns_steps": 0}, "ns_steps is 0; expected"),
        ({"momentum": 1.5}, "momentum is 1.5; expected"),
        ({"smallest_side": 0}, "smallest_side is 0; expected"),
        ({"lr": -1.0}, "model.optimizer: Learning rate should be >= 0"),
        ({"betas": (0.9, 1.0)}, "model.optimizer: Invalid beta"),
    ],
)
def test_bad_arguments_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_optimizer(lambda p: MuonWithAdam(p, **options), small_network().parameters())


def test_a_network_without_hidden_matrices_is_refused() -> None:
    with pytest.raises(UserError, match=r"no hidden matrix; expected a square one.* smallest_side = 32"):
        MuonWithAdam(nn.Linear(4, 2).parameters())


def test_a_group_that_comes_later_is_refused() -> None:
    optimizer = MuonWithAdam(small_network().parameters())
    with pytest.raises(UserError, match="got another parameter group; expected all of them"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})


@pytest.mark.parametrize("muon", [torch.optim.Muon, pytorch_optimizer.Muon, pytorch_optimizer.AdaMuon])
def test_muon_by_itself_is_refused_in_one_line_that_names_ours(muon: Any) -> None:
    with pytest.raises(UserError, match=r"hidden matrices alone.*expected lit_gfs.optim.MuonWithAdam"):
        make_optimizer(muon, small_network().parameters())
