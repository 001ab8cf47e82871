"""Temporal-aware gradient clipping: compare a layer's gradient norm with the layer's own recent norms."""

from __future__ import annotations

import torch
from torch import Tensor

from lit_gfs.errors import require_between
from lit_gfs.gradients.layerwise import LayerwiseScaling

_MIN_RELATIVE_STD = 0.01
"""Lower bound on the standard deviation of a layer's norm, relative to its mean. Without it, every change
after a steady history would count as a spike."""


class TemporalClipper(LayerwiseScaling):
    """Base of the clippers: shortens a gradient that is large compared to the layer's history.

    A clipper is aware of time in two ways. First, its memory decays. Second, `reopen` reports a change of the
    objective (a new target network, a new rollout). The clipper then does not clip a layer's next
    ``shift_grace`` gradients and weakens its memory. So it adapts to the new scale, instead of treating the
    new scale as a spike.

    Args:
        warmup: Gradients per layer that are observed but not clipped at the start.
        shift_grace: Gradients per layer that are observed but not clipped after `reopen`; 0 ignores `reopen`.

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
        """Return the norm of each layer's gradient after clipping, ``(L,)``, at most ``norms``."""
        raise NotImplementedError

    def observe(self, norms: Tensor, usable: Tensor) -> None:
        """Add the norms ``(L,)`` of the ``usable`` layers to the history."""
        raise NotImplementedError

    def reopen(self) -> None:
        """Prepare for a new scale of gradients, after the objective has changed."""
        if self.state and self.shift_grace:
            self.state["watch"].clamp_(min=self.shift_grace)
            self._weaken_memory()

    def _weaken_memory(self) -> None:
        raise NotImplementedError

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        return {"watch": torch.full_like(norms, self.warmup, dtype=torch.int64)}

    def factors(self, norms: Tensor, usable: Tensor, weight_norms: Tensor | None = None) -> Tensor:
        """Return the ratio of the target norm to the norm; 1 during warm-up and grace."""
        # ``watch`` counts down the gradients of each layer that are observed but not clipped.
        watch = self.state["watch"]
        # The history used for clipping does not include the current gradient.
        target = torch.where(watch > 0, norms, self.target_norms(norms))
        self.observe(norms, usable)
        watch.add_(usable, alpha=-1).clamp_(min=0)
        return target / norms


class ZScoreClipper(TemporalClipper):
    """Clips by the z-score of a layer's gradient norm.

    Let m and v be the running mean and variance of the norm n. If z = (n - m) / sqrt(v) exceeds z*, the
    gradient is shortened to the norm m + (z*^2 / z) sqrt(v), so a larger outlier becomes shorter (ZClip,
    Kumar et al. 2025, arXiv 2504.02507). Two details differ from the paper:

    - The statistics take the norm limited to m + z* sqrt(v), not the shortened norm. The shortened norm
      approaches m for larger jumps, so the variance would shrink and a lasting rise of the norm would count
      as a spike forever.
    - sqrt(v) is at least 1% of m.

    After k norms, a new norm has the weight 1/(k + 1), but at least 1 - ``decay``. So the first statistics
    are plain averages without bias. `TemporalClipper.reopen` reduces k to at most ``shift_memory``.

    Args:
        z_threshold: z*, in standard deviations.
        decay: Decay of the running statistics, per gradient.
        warmup: Gradients per layer that are observed but not clipped at the start.
        shift_grace: Gradients per layer that are observed but not clipped after `reopen`; 0 ignores `reopen`.
        shift_memory: Number of gradients that the history counts for after `reopen`. With 6 or less, a single
            gradient of a new, lasting scale brings the next one within 2.5 standard deviations, however large
            the change is.

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
        std = self._std()
        # With z = deviation / std, (z*^2 / z) std is (z* std)^2 / deviation.
        shortened = self.state["mean"] + (self.z_threshold * std).square() / deviation
        return torch.where(deviation > self.z_threshold * std, shortened, norms)

    def observe(self, norms: Tensor, usable: Tensor) -> None:
        """Update mean and variance with the norms, limited to m + z* sqrt(v) after warm-up and grace."""
        mean, variance, memory = self.state["mean"], self.state["variance"], self.state["memory"]
        limited = torch.minimum(norms, mean + self.z_threshold * self._std())
        observed = torch.where(self.state["watch"] > 0, norms, limited)
        # A weight of 0 leaves the statistics of layers without a usable gradient unchanged.
        weight = (memory + 1).reciprocal().clamp(min=1 - self.decay) * usable
        deviation = observed - mean
        # v <- (1 - w) (v + w d^2), where d is the deviation from the mean before its update.
        variance.add_(weight * deviation.square()).mul_(1 - weight)
        mean.add_(weight * deviation)
        memory.add_(usable)

    def _std(self) -> Tensor:
        return torch.maximum(self.state["variance"].sqrt(), _MIN_RELATIVE_STD * self.state["mean"])

    def _weaken_memory(self) -> None:
        self.state["memory"].clamp_(max=self.shift_memory)

    def _fresh_state(self, norms: Tensor) -> dict[str, Tensor]:
        statistics = {key: torch.zeros_like(norms) for key in ("mean", "variance", "memory")}
        return {**super()._fresh_state(norms), **statistics}


class PercentileClipper(TemporalClipper):
    """Clips to a percentile of a layer's last gradient norms (AutoClip, Seetharaman et al. 2020).

    Unlike AutoClip, it works per layer, keeps a window instead of the whole history, and defaults to a high
    percentile. The history contains the norms before clipping. `TemporalClipper.reopen` empties it.

    Args:
        percentile: Percentile of the history that limits the norm, from 0 to 100.
        window: Number of gradients in the history.
        warmup: Gradients per layer that are observed but not clipped at the start.
        shift_grace: Gradients per layer that are observed but not clipped after `reopen`; 0 ignores `reopen`.

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
        """Return the norm, limited to the percentile of the history."""
        limit = self.state["history"].nanquantile(self.percentile / 100, dim=0)
        # The limit is NaN while the history is empty; the comparison is then false.
        return torch.where(norms > limit, limit, norms)

    def observe(self, norms: Tensor, usable: Tensor) -> None:
        """Replace the oldest norms of the history."""
        # Each layer has its own write position, because layers without a usable gradient do not advance.
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
