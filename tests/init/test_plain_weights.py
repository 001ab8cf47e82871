"""Path-sensitive initialization of layers whose weights are parametrized."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from lit_gfs.errors import UserError
from lit_gfs.init import path_sensitive_, path_shares

EXAMPLE = torch.zeros(1, 8)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))


class Symmetric(nn.Module):
    """Has no inverse."""

    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.T) / 2


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(module.state_dict())


def test_weight_normalization_takes_the_weights_that_a_plain_layer_gets() -> None:
    plain, normalized = net(), net()
    for layer in (normalized[0], normalized[2]):
        parametrizations.weight_norm(layer)
    torch.manual_seed(0)
    expected = path_sensitive_(plain, EXAMPLE)
    torch.manual_seed(0)

    report = path_sensitive_(normalized, EXAMPLE)

    assert report == expected
    for mine, theirs in zip(normalized[::2], plain[::2], strict=True):
        torch.testing.assert_close(mine.weight, theirs.weight)
        assert torch.equal(mine.bias, theirs.bias)
    assert parametrize.is_parametrized(normalized[0])
    assert normalized[0].parametrizations.weight.original1.requires_grad


def test_spectral_normalization_knows_the_norm_of_the_new_weight_at_once() -> None:
    module = net()
    parametrizations.spectral_norm(module[2])
    module.eval()
    before = module[2].weight.detach().clone()

    report = path_sensitive_(module, EXAMPLE)

    assert report.left_alone == {}
    assert not torch.allclose(module[2].weight, before)
    values = torch.linalg.svdvals(module[2].weight.detach())
    torch.testing.assert_close(values, torch.ones(16), rtol=1e-4, atol=1e-4)


def test_layers_that_cannot_be_set_stay_as_they_are() -> None:
    module = net()
    parametrize.register_parametrization(module[2], "weight", Symmetric())
    before = state_of(module)

    report = path_sensitive_(module, EXAMPLE)

    assert report.left_alone == {"2": "its parametrization has no inverse"}
    changed = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "0.bias", "4.weight", "4.bias"}


def test_a_network_of_such_layers_alone_is_refused_with_the_reason() -> None:
    module = nn.Sequential(nn.Linear(8, 8))
    parametrize.register_parametrization(module[0], "weight", Symmetric())

    with pytest.raises(
        UserError, match=r"no layer to initialize: .*\(0: its parametrization has no inverse\)"
    ):
        path_sensitive_(module, EXAMPLE)


def test_measuring_changes_nothing() -> None:
    module = net()
    parametrizations.spectral_norm(module[0])
    parametrizations.weight_norm(module[2])
    before = state_of(module)

    assert path_shares(module, EXAMPLE) == {"0": 1, "2": 1, "4": 1}

    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_error_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(net(), nn.LSTM(4, 4))
    parametrizations.weight_norm(module[0][0])
    before = state_of(module)

    with pytest.raises(UserError, match="does not run on path energies"):
        path_sensitive_(module, EXAMPLE)

    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
