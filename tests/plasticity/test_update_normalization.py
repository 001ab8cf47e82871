"""Updates with an even spectrum, against decompositions and against PyTorch's Muon."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_gfs.errors import UserError
from lit_gfs.plasticity import UpdateNormalization

RATE = 0.01


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def polar(matrix: Tensor) -> Tensor:
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    return left @ right


def moved(
    updates: list[Tensor], rates: Sequence[float | Tensor] | None = None, **options: Any
) -> list[Tensor]:
    """Return the new updates of weights that an optimizer has moved by some updates."""
    weights = {f"{index}.weight": random(*update.shape, seed=9) for index, update in enumerate(updates)}
    before = [weight.clone() for weight in weights.values()]
    rule = UpdateNormalization(**options)
    rule.meet(weights)
    rule.remember(weights)
    torch._foreach_add_(list(weights.values()), updates)
    rule.apply(weights, [RATE] * len(updates) if rates is None else rates)
    return [weight - former for weight, former in zip(weights.values(), before, strict=True)]


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_the_new_update_is_the_polar_factor_at_the_size_asked_for(shape: tuple[int, int]) -> None:
    update = random(*shape)
    (new,) = moved([update], size=0.5, steps=8)
    torch.testing.assert_close(new, 0.5 * RATE * math.sqrt(max(shape)) * polar(update), rtol=1e-3, atol=1e-5)
    assert new.square().mean().sqrt().item() == pytest.approx(0.5 * RATE, rel=1e-3)


@pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4)])
def test_a_short_update_stays_as_short(shape: tuple[int, int]) -> None:
    update = 1e-5 * random(*shape)
    (new,) = moved([update], size=0.5, steps=8)
    factor = update.norm() / math.sqrt(min(shape))
    torch.testing.assert_close(new, factor * polar(update), rtol=1e-2, atol=1e-6)
    assert new.norm().item() == pytest.approx(update.norm().item(), rel=1e-2)


def test_only_if_it_may_lengthen_the_length_of_the_update_does_not_matter() -> None:
    update = random(5, 8)
    for lengthen, ratio in ((True, 1.0), (False, 100.0)):
        (short,) = moved([1e-4 * update], size=0.5, lengthen=lengthen)
        (long,) = moved([1e-2 * update], size=0.5, lengthen=lengthen)
        assert long.norm().item() == pytest.approx(
            min(ratio * short.norm().item(), 0.5 * RATE * math.sqrt(40)), rel=0.13
        )


@pytest.mark.parametrize("lengthen", [False, True])
def test_a_weight_that_has_not_moved_stays(lengthen: bool) -> None:
    still, other = moved([torch.zeros(4, 4), random(4, 4)], lengthen=lengthen)
    assert not still.any()
    assert other.all()


def test_blocks_of_rows_are_even_by_themselves() -> None:
    update = random(6, 8)
    (new,) = moved([update], block=3, steps=8)
    by_hand = torch.cat([polar(update[:3]), polar(update[3:])])
    torch.testing.assert_close(new, 0.1 * RATE * math.sqrt(8) * by_hand, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(new, moved([update], steps=8)[0], rtol=0.1, atol=1e-4)


@pytest.mark.parametrize(("shape", "block"), [((96, 40), 48), ((12, 4), 6), ((10, 4), 5), ((16, 4), 8)])
def test_blocks_that_are_higher_than_wide_have_even_columns(shape: tuple[int, int], block: int) -> None:
    (new,) = moved([random(*shape)], block=block, steps=8)

    assert new.square().mean().sqrt().item() == pytest.approx(0.1 * RATE, rel=1e-3)
    blocks = new.unflatten(0, (-1, block)) / (0.1 * RATE * math.sqrt(block))
    torch.testing.assert_close(
        blocks.mT @ blocks, torch.eye(shape[1]).expand(len(blocks), -1, -1), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("rank", [1, 64])
def test_weights_in_half_precision_stay_finite(rank: int) -> None:
    for seed in range(50):
        update = (random(64, rank, seed=seed) @ random(rank, 64, seed=100 + seed)).bfloat16()
        weights = {"a": torch.zeros(64, 64, dtype=torch.bfloat16)}
        rule = UpdateNormalization(lengthen=True)
        rule.meet(weights)
        rule.remember(weights)
        weights["a"].add_(update)
        rule.apply(weights, [RATE])

        assert weights["a"].float().square().mean().sqrt().item() <= 1.2 * 0.1 * RATE


def test_products_have_the_type_that_suits_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    update = random(64, 64)
    (exact,) = moved([update])
    monkeypatch.setattr(
        "lit_gfs.plasticity.update_normalization.dtype_of_products", lambda matrices: torch.bfloat16
    )

    (rounded,) = moved([update])

    assert not torch.equal(rounded, exact)
    assert (rounded - exact).norm() < 0.25 * exact.norm()


def test_nothing_is_saved_between_steps() -> None:
    rule = UpdateNormalization()
    rule.meet({"a": torch.zeros(4, 4)})

    assert rule.state_dict() == {"kept": {}}


def test_a_kernel_counts_as_a_matrix() -> None:
    kernel = random(4, 3, 2, 2)
    (new,) = moved([kernel], steps=8)
    (matrix,) = moved([kernel.flatten(1)], steps=8)
    torch.testing.assert_close(new.flatten(1), matrix, rtol=1e-3, atol=1e-6)


def test_each_weight_has_its_own_rate_and_rates_may_be_tensors() -> None:
    updates = [random(4, 4), random(4, 4, seed=1), random(3, 7, seed=2)]
    rates = [0.1, 0.4, 0.0]
    numbers = moved(updates, rates, size=0.2)
    tensors = moved(updates, [torch.tensor(rate) for rate in rates], size=0.2)
    sizes = [new.square().mean().sqrt().item() for new in numbers]
    assert sizes[:2] == pytest.approx([0.02, 0.08], rel=0.13)
    assert sizes[2] == 0.0
    for number, tensor in zip(numbers, tensors, strict=True):
        torch.testing.assert_close(number, tensor)


def test_rates_may_be_numbers_and_tensors_at_once() -> None:
    updates = [random(6, 6, seed=seed) for seed in (1, 2)]

    mixed = moved([*updates], [RATE, torch.tensor(2 * RATE)])

    for new, expected in zip(mixed, moved([*updates], [RATE, 2 * RATE]), strict=True):
        torch.testing.assert_close(new, expected)


def test_the_scale_is_the_mean_factor_on_the_norms() -> None:
    weights = {"a": torch.zeros(4, 4), "b": torch.zeros(4, 4), "c": torch.zeros(2, 3)}
    rule = UpdateNormalization(size=1.0, lengthen=True, steps=8)
    rule.meet(weights)
    rule.remember(weights)
    weights["a"].copy_(torch.eye(4))  # the new update is 0.2 I
    weights["c"].copy_(torch.eye(2, 3) * 0.1)  # and 0.1 sqrt(3) I
    values = rule.apply(weights, [0.1, 0.1, 0.1])
    # The weight b has not moved, so its factor is 1; groups of equal shape count alike.
    assert values["scale"].item() == pytest.approx(((0.2 + 1) / 2 + math.sqrt(3)) / 2, rel=1e-3)


def test_with_sgd_and_momentum_it_is_muon() -> None:
    def learned(
        make: Callable[[nn.Parameter], torch.optim.Optimizer], rule: UpdateNormalization | None
    ) -> Tensor:
        weight = nn.Parameter(random(16, 16, seed=3))
        optimizer = make(weight)
        weights = {"weight": weight.detach()}
        if rule is not None:
            rule.meet(weights)
        start = weight.detach().clone()
        for step in range(5):
            weight.grad = random(16, 16, seed=10 + step) + random(16, 16, seed=4)
            if rule is not None:
                rule.remember(weights)
            optimizer.step()
            if rule is not None:
                rule.apply(weights, [RATE])
        return weight.detach() - start

    mine = learned(
        lambda p: torch.optim.SGD([p], lr=RATE, momentum=0.9), UpdateNormalization(0.2, lengthen=True)
    )
    theirs = learned(
        lambda p: torch.optim.Muon(
            [p], lr=RATE, weight_decay=0.0, momentum=0.9, nesterov=False, adjust_lr_fn="match_rms_adamw"
        ),
        None,
    )
    # Both push singular values towards 1 with five steps, by different polynomials.
    cosine = torch.cosine_similarity(mine.flatten(), theirs.flatten(), dim=0)
    assert cosine.item() > 0.99
    assert mine.norm().item() == pytest.approx(theirs.norm().item(), rel=0.15)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0.0}, "size is 0.0"),
        ({"block": 0}, "block is 0"),
        ({"steps": 0}, "steps is 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        UpdateNormalization(**options)
