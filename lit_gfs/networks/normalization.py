"""Observation normalization with statistics as a part of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self, cast

import torch
from torch import Tensor, distributed, nn

from lit_gfs.errors import UserError


class RunningNorm(nn.Module):
    """Normalizes by the running mean and variance of all observed data, then clips.

    The update has two steps, so a rollout is collected and learned from with the same statistics. `observe`
    adds data to *pending* moments, and `commit` merges these into the statistics of `forward`. Evaluation
    calls neither of them. All moments are buffers, so checkpoints contain them. Under ``torch.distributed``,
    `observe` merges the data of all ranks. So all ranks always have the same moments, as DDP and the
    checkpoint of a single rank require.

    Moments are merged in float64 by the formula of Chan et al. (1979, "Updating formulae and a pairwise
    algorithm for computing sample variances"). The buffers stay float64 when the module is cast to another
    dtype; a device without float64 (Apple's MPS) cannot hold them.

    Args:
        shape: Shape of one observation.
        clip: Largest absolute normalized value, in standard deviations.
        epsilon: Lower bound of the variance in the division, for constant features.

    Raises:
        UserError: If ``clip`` or ``epsilon`` is not positive.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor
    pending_count: Tensor
    pending_mean: Tensor
    pending_variance: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float = 10.0, epsilon: float = 1e-8) -> None:
        super().__init__()
        if clip <= 0 or epsilon <= 0:
            raise UserError(f"RunningNorm needs clip > 0 and epsilon > 0, got {clip} and {epsilon}")
        self.shape = torch.Size(shape)
        self.clip = clip
        self.epsilon = epsilon
        for prefix in ("", "pending_"):
            self.register_buffer(f"{prefix}count", torch.zeros((), dtype=torch.float64))
            self.register_buffer(f"{prefix}mean", torch.zeros(shape, dtype=torch.float64))
            self.register_buffer(f"{prefix}variance", torch.ones(shape, dtype=torch.float64))

    @torch.no_grad()
    def observe(self, batch: Tensor) -> None:
        """Add data to the pending moments; under ``torch.distributed``, the data of all ranks.

        Args:
            batch: Observations ``(*batch, *shape)`` of any number. Every rank must call this method; its
                batch may be empty.

        Raises:
            ValueError: If the observations have another shape.
        """
        if batch.shape[batch.ndim - len(self.shape) :] != self.shape:
            raise ValueError(
                f"expected observations (*batch, *{tuple(self.shape)}), got {tuple(batch.shape)}"
            )
        rows = batch.reshape(-1, *self.shape).to(self.mean)
        # Filling a tensor does not wait for the device, unlike copying a number to it.
        count, total = _sum_over_ranks(self.count.new_full((), len(rows)), rows.sum(0))
        divisor = count.clamp(min=1)  # no data merge as zeros, which change nothing
        mean = total / divisor
        (squares,) = _sum_over_ranks((rows - mean).square().sum(0))
        self._merge("pending_", count, mean, squares / divisor)

    @torch.no_grad()
    def commit(self) -> None:
        """Merge the pending moments into the statistics that `forward` uses."""
        self._merge("", self.pending_count, self.pending_mean, self.pending_variance)
        self.pending_count.zero_()

    def forward(self, observation: Tensor) -> Tensor:
        """Normalize observations ``(*batch, *shape)``; before the first `commit`, only clip.

        Returns:
            Values in ``[-clip, clip]``, of the input's shape and dtype (float32 for integers).
        """
        dtype = observation.dtype if observation.is_floating_point() else torch.float32
        scaled = (observation - self.mean) / self.variance.clamp(min=self.epsilon).sqrt()
        return scaled.clamp(-self.clip, self.clip).to(dtype)

    def _merge(self, prefix: str, count: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Merge moments into those with this prefix (Chan et al. 1979)."""
        old_count, old_mean, old_variance = (
            cast(Tensor, getattr(self, f"{prefix}{name}")) for name in ("count", "mean", "variance")
        )
        total = old_count + count
        share = count / total.clamp(min=1)
        delta = mean - old_mean
        # Without data the share is 0 and nothing changes; with the first data it is 1.
        old_variance.lerp_(variance, share).add_(delta.square() * share * (1 - share))
        old_mean.lerp_(mean, share)
        old_count.copy_(total)

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Self:
        # ``to``, ``half`` and the like end here: follow changes of the device, undo changes of the dtype.
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def _sum_over_ranks(*tensors: Tensor) -> list[Tensor]:
    """Sum tensors over all ranks with a single all-reduce."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return list(tensors)
    packed = torch.cat([tensor.flatten() for tensor in tensors])
    distributed.all_reduce(packed)
    parts = packed.split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
