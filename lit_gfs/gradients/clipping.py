"""Temporal-aware gradient clipping: a layer's gradient is measured against the layer's own recent past."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_gfs.errors import require_between
from lit_gfs.gradients.layerwise import LayerwiseScaling

_LEAST_SPREAD = 0.01
"""The least standard deviation of a layer's norm, as a share of its mean: a steady
history must not make every change a spike."""


class TemporalClipper(LayerwiseScaling):
    """Base of the clippers: shortens a gradient that stands out from the layer's history.

    A clipper knows of time in two ways. It has a memory that fades, and it can be told by `reopen` that the
    objective itself has changed (a new target network, a new rollout): for the next ``shift_grace`` gradients
    a layer is then not clipped, and its memory is weak, so that it learns the new scale instead of mistaking
    it for a spike.

    Args:
        warmup: Gradients of a layer that are only watched at first.
        shift_grace: Gradients of a layer that are only watched after `reopen`; 0 ignores it.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(self, warmup: int = 25, shift_grace: int = 3) -> None:
        super().__init__()
        require_between(1, float("inf"), warmup=warmup)
        require_between(0, float("inf"), shift_grace=shift_grace)
        self.warmup = warmup
        self.shift_grace = shift_grace

    def target_norms(self, norms: Tensor) -> Tensor:
        """Return the norm that each layer's gradient may keep, ``(L,)``: at most ``norms`` itself."""
        raise NotImplementedError

    def observe(self, norms: Tensor, usable: Tensor) -> None:
        """Take norms ``(L,)`` into the history, where ``usable``."""
        raise NotImplementedError

    def reopen(self) -> None:
        """Note that the objective has just changed."""
        if self.state and self.shift_grace:
            self.state["watch"].clamp_(min=self.shift_grace)
            self._weaken_memory()

    def _weaken_memory(self) -> None:
        raise NotImplementedError

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        return {"watch": torch.full_like(norms, self.warmup, dtype=torch.int64)}

    def factors(self, norms: Tensor, usable: Tensor, weight_norms: Tensor | None = None) -> Tensor:
        """Return target norm by norm, once a layer is no longer only watched."""
        watch = self.state["watch"]
        target = torch.where(watch > 0, norms, self.target_norms(norms))
        self.observe(norms, usable)
        watch -= (usable & (watch > 0)).to(watch.dtype)
        return target / norms


class ZScoreClipper(TemporalClipper):
    """Clips by the z-score of a layer's gradient norm.

    With m and v, running mean and variance of the norm n: where z = (n - m) / sqrt(v) exceeds z*, the
    gradient is shortened to m + (z*^2 / z) sqrt(v) - the farther out, the shorter (ZClip, Kumar et al. 2025,
    arXiv 2504.02507). Two things differ from there. What enters the statistics is the norm limited to m + z*
    sqrt(v), not the shortened one: that would be ever closer to m for larger jumps, the variance would
    shrink, and a lasting rise of the norm would be taken for a spike for good. And sqrt(v) is at least 1% of
    m.

    The weight of a new norm is 1/(k + 1) after k norms, so that the first ones are plain averages without
    bias, and never less than 1 - ``decay``. `TemporalClipper.reopen` sets k to ``shift_memory`` or less.

    Args:
        z_threshold: z*, in standard deviations.
        decay: Memory of the running statistics, per gradient.
        warmup: Gradients of a layer that are only watched at first.
        shift_grace: Gradients of a layer that are only watched after `reopen`; 0 ignores it.
        shift_memory: How many gradients the past counts for after `reopen`. From a memory of 6 or less, one
            gradient of a new, lasting scale is enough to bring the next one within 2.5 standard deviations,
            however large the change.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self,
        z_threshold: float = 2.5,
        decay: float = 0.97,
        warmup: int = 25,
        shift_grace: int = 3,
        shift_memory: int = 5,
    ) -> None:
        super().__init__(warmup, shift_grace)
        require_between(0, float("inf"), z_threshold=z_threshold, shift_memory=shift_memory)
        require_between(0, 1, decay=decay)
        self.z_threshold = z_threshold
        self.decay = decay
        self.shift_memory = shift_memory

    def target_norms(self, norms: Tensor) -> Tensor:
        """Return m + (z*^2 / z) sqrt(v) where z > z*, else the norm."""
        deviation = norms - self.state["mean"]
        spread = self._spread()
        shortened = self.state["mean"] + (self.z_threshold * spread).square() / deviation
        return torch.where(deviation > self.z_threshold * spread, shortened, norms)

    def observe(self, norms: Tensor, usable: Tensor) -> None:
        """Move mean and variance towards the norms, limited to m + z* sqrt(v) unless only watched."""
        mean, variance, memory = self.state["mean"], self.state["variance"], self.state["memory"]
        limited = torch.minimum(norms, mean + self.z_threshold * self._spread())
        taken = torch.where(self.state["watch"] > 0, norms, limited)
        weight = (1 / (memory + 1)).clamp(min=1 - self.decay) * usable
        deviation = taken - mean
        variance.add_(weight * deviation.square()).mul_(1 - weight)
        # In this order, as variance about the mean before: (1 - w) (v + w d^2).
        mean.add_(weight * deviation)
        memory.add_(usable)

    def _spread(self) -> Tensor:
        return torch.maximum(self.state["variance"].sqrt(), _LEAST_SPREAD * self.state["mean"])

    def _weaken_memory(self) -> None:
        self.state["memory"].clamp_(max=self.shift_memory)

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        statistics = {key: torch.zeros_like(norms) for key in ("mean", "variance", "memory")}
        return {**super()._fresh_state(norms), **statistics}


class PercentileClipper(TemporalClipper):
    """Clips to a percentile of a layer's last gradient norms (AutoClip, Seetharaman et al. 2020).

    After AutoClip, but per layer, over a window instead of the whole past, and with a high percentile. Norms
    enter the history as they were before clipping. `TemporalClipper.reopen` empties it.

    Args:
        percentile: What of the history lies below the limit, in percent.
        window: Gradients in the history.
        warmup: Gradients of a layer that are only watched at first.
        shift_grace: Gradients of a layer that are only watched after `reopen`; 0 ignores it.

    Raises:
        UserError: If an argument is out of range.
    """

    def __init__(
        self, percentile: float = 95.0, window: int = 100, warmup: int = 25, shift_grace: int = 3
    ) -> None:
        super().__init__(warmup, shift_grace)
        require_between(0, 100, percentile=percentile)
        require_between(1, float("inf"), window=window)
        self.percentile = percentile
        self.window = window

    def target_norms(self, norms: Tensor) -> Tensor:
        """Return the norm, or the percentile of the history if that is less."""
        limit = self.state["history"].nanquantile(self.percentile / 100, dim=0)
        return torch.where(norms > limit, limit, norms)  # without a history the limit is NaN

    def observe(self, norms: Tensor, usable: Tensor) -> None:
        """Write the norms over the oldest ones."""
        history, count = self.state["history"], self.state["count"]
        oldest = (count % self.window).unsqueeze(0)
        history.scatter_(0, oldest, torch.where(usable, norms, history.gather(0, oldest)))
        count += usable

    def _weaken_memory(self) -> None:
        self.state["history"].fill_(torch.nan)

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        return {
            **super()._fresh_state(norms),
            "history": norms.new_full((self.window, len(norms)), torch.nan),
            "count": torch.zeros_like(norms, dtype=torch.int64),
        }
