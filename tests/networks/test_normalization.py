from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed, multiprocessing, nn

from lit_gfs.errors import UserError
from lit_gfs.networks import RunningNorm


def chunks(seed: int = 0, offset: float = 0.0) -> list[torch.Tensor]:
    """Draw batches of different sizes and locations, (size, 2, 3)."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [1, 7, 100, 1, 31]
    return [
        offset + index + (1 + index) * torch.randn(size, 2, 3, generator=generator, dtype=torch.float64)
        for index, size in enumerate(sizes)
    ]


def assert_statistics(norm: RunningNorm, data: list[torch.Tensor]) -> None:
    everything = np.concatenate([chunk.reshape(-1, *norm.shape).numpy() for chunk in data])
    assert norm.count.item() == len(everything)
    np.testing.assert_allclose(norm.mean.numpy(), everything.mean(0), rtol=1e-12)
    np.testing.assert_allclose(norm.variance.numpy(), everything.var(0), rtol=1e-10)


@pytest.mark.parametrize("offset", [0.0, 1e5])
@pytest.mark.parametrize("commit_every", [1, 2, 5])
def test_statistics_are_those_of_all_data_at_once(offset: float, commit_every: int) -> None:
    norm = RunningNorm((2, 3))
    data = chunks(offset=offset)

    for index, chunk in enumerate(data):
        norm.observe(chunk)
        if (index + 1) % commit_every == 0:
            norm.commit()
    norm.commit()

    assert_statistics(norm, data)


def test_the_order_of_the_data_does_not_matter() -> None:
    forward, backward = RunningNorm((2, 3)), RunningNorm((2, 3))
    for chunk in chunks():
        forward.observe(chunk)
        forward.commit()
    for chunk in reversed(chunks()):
        backward.observe(chunk)
    backward.commit()

    torch.testing.assert_close(forward.mean, backward.mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(forward.variance, backward.variance, rtol=1e-12, atol=0)


def test_batch_dimensions_are_rows() -> None:
    norm = RunningNorm((3,))
    rollout = torch.randn(4, 5, 3)

    norm.observe(rollout)
    norm.observe(rollout[0, 0])
    norm.observe(rollout[:0])
    norm.commit()

    assert_statistics(norm, [rollout.double(), rollout[0, 0].double()])


def test_nothing_but_a_commit_moves_the_output() -> None:
    norm = RunningNorm((3,))
    data = 5 + 2 * torch.randn(50, 3)
    norm.observe(data)
    norm.commit()
    before = norm(data)

    norm.observe(1000 * data)
    for mode in (True, False):
        norm.train(mode)
        for _ in range(3):
            assert torch.equal(norm(data), before)
    norm.commit()

    assert not torch.equal(norm(data), before)


def test_a_commit_without_new_data_changes_nothing() -> None:
    norm = RunningNorm((3,))
    norm.commit()
    assert torch.equal(norm(torch.ones(3)), torch.ones(3))
    norm.observe(torch.randn(9, 3))
    norm.commit()
    before = copy.deepcopy(norm.state_dict())

    norm.commit()

    for name in ("count", "mean", "variance"):
        assert torch.equal(norm.state_dict()[name], before[name])


def test_output_is_standardized_and_clipped() -> None:
    norm = RunningNorm((3,), clip=2.5)
    data = torch.tensor([10.0, -3.0, 0.0]) + torch.tensor([5.0, 0.1, 1.0]) * torch.randn(1000, 3)
    norm.observe(data)
    norm.commit()

    normalized = norm(data)

    expected = (data.double() - data.double().mean(0)) / data.double().std(0, correction=0)
    torch.testing.assert_close(normalized, expected.clamp(-2.5, 2.5).float())
    assert normalized.abs().max() == 2.5


def test_before_the_first_commit_it_only_clips() -> None:
    norm = RunningNorm((3,), clip=10.0)
    norm.observe(torch.randn(9, 3))
    data = torch.tensor([[-11.0, 0.3, 9.9]], dtype=torch.float64)

    assert norm(data).tolist() == [[-10.0, 0.3, 9.9]]


def test_a_feature_that_does_not_vary_gives_zero() -> None:
    norm = RunningNorm((1,))
    norm.observe(torch.full((8, 1), 3.0))
    norm.commit()

    assert norm(torch.full((2, 1), 3.0)).tolist() == [[0.0], [0.0]]
    assert norm(torch.full((1,), 4.0)).tolist() == [10.0]


@pytest.mark.parametrize(
    ("given", "returned"),
    [
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
        (torch.bfloat16, torch.bfloat16),
        (torch.int64, torch.float32),
    ],
)
def test_output_type(given: torch.dtype, returned: torch.dtype) -> None:
    assert RunningNorm((2,))(torch.ones(4, 2).to(given)).dtype == returned


def test_a_state_dict_carries_statistics_and_pending_data() -> None:
    norm, restored = RunningNorm((2, 3)), RunningNorm((2, 3))
    first, *rest = chunks()
    norm.observe(first)
    norm.commit()
    norm.observe(rest[0])

    restored.load_state_dict(norm.state_dict())
    for chunk in rest[1:]:
        restored.observe(chunk)
    restored.commit()

    assert_statistics(restored, [first, *rest])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_statistics_keep_their_precision_when_the_model_is_cast(dtype: torch.dtype) -> None:
    model = nn.Sequential(RunningNorm((2, 3)), nn.Flatten(), nn.Linear(6, 1))
    norm = model[0]
    for chunk in chunks(offset=1e5):
        norm.observe(chunk)

    model.to(dtype)
    norm.commit()

    assert model[2].weight.dtype == dtype
    assert_statistics(norm, chunks(offset=1e5))
    assert model(torch.ones(1, 2, 3, dtype=dtype)).dtype == dtype


def test_no_gradient_enters_the_statistics_but_it_passes_through() -> None:
    norm = RunningNorm((1,))
    data = torch.tensor([[1.0], [5.0]], requires_grad=True)
    norm.observe(data)
    norm.commit()

    norm(data).sum().backward()

    assert not norm.mean.requires_grad
    assert data.grad is not None
    assert data.grad.tolist() == [[0.5], [0.5]]


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="got 0 and 1e-08"):
        RunningNorm((3,), clip=0)
    with pytest.raises(ValueError, match=r"got \(5, 4\)"):
        RunningNorm((3,)).observe(torch.zeros(5, 4))


def _observe_on_one_rank(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    norm = RunningNorm((2, 3))
    # Rank 1 sees other data, and nothing at all in the second round.
    for data in (chunks(seed=rank)[2], chunks(seed=rank)[4 if rank == 0 else 0][rank:]):
        norm.observe(data)
    pending = copy.deepcopy(norm.state_dict())
    norm.commit()
    torch.save((pending, norm.state_dict()), f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_ranks_share_their_data(tmp_path: Path) -> None:
    multiprocessing.start_processes(_observe_on_one_rank, (str(tmp_path),), nprocs=2, start_method="fork")

    (pending, statistics), other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))

    for mine, theirs in zip((pending, statistics), other, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    norm = RunningNorm((2, 3))
    norm.load_state_dict(statistics)
    assert_statistics(norm, [chunks(0)[2], chunks(1)[2], chunks(0)[4]])
    assert pending["count"] == 0
    assert pending["pending_count"] == statistics["count"] == 231
