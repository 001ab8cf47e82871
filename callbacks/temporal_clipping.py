"""Callback for temporal-aware gradient clipping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lit_gfs.callbacks.gradient_intervention import GradientIntervention
from lit_gfs.errors import require_one_of
from lit_gfs.gradients import PercentileClipper, TemporalClipper, ZScoreClipper

SCOPES = ("layer", "global")
MODES = ("zscore", "percentile")


class TemporalGradientClipping(GradientIntervention):
    """Shortens a layer's gradient if it is large compared to the layer's own history.

    See `lit_gfs.gradients.ZScoreClipper` and `lit_gfs.gradients.PercentileClipper` for the algorithms. The
    objective itself may change: DQN synchronizes its target network, PPO or PQN collects a new rollout, or
    labels are shuffled. The statistics are then re-opened, so a legitimate jump does not count as a spike.
    The agents of this package and `LabelShuffleDataModule` announce such changes. Any LightningModule or
    datamodule can do so with `lit_gfs.steps.objective_shift.announce_objective_shift`.

    It writes below ``intervention/<name>/``: ``clipped_layers``, the share of clipped layers per step;
    ``scale``, the mean factor. With ``per_layer`` it also writes ``clipped/<layer>``, the share of steps in
    which the layer was clipped; otherwise TensorBoard's event file has these as a tensor without a chart.

    Args:
        scope: ``layer`` clips each layer by its own history, ``global`` all layers of an optimizer together.
        mode: ``zscore`` or ``percentile``.
        z_threshold: Standard deviations above the running mean from which a norm is a spike (zscore).
        decay: Decay of the running statistics, per gradient of a layer (zscore).
        percentile: Percentile of the history that limits the norm, from 0 to 100 (percentile).
        window: Number of gradients of a layer in the history (percentile).
        warmup: Gradients per layer that are observed but not clipped at the start.
        shift_grace: Gradients per layer that are observed but not clipped after a change of the objective; 0
            ignores changes.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.
        per_layer: Whether each layer has a chart of its own (``scope`` layer).

    Raises:
        UserError: If an argument is out of range, or the module has no layers.
        MisconfigurationException: If the Trainer clips gradients too.

    Example::

        trainer = Trainer(callbacks=[TemporalGradientClipping(z_threshold=3.0)])
    """

    def __init__(
        self,
        scope: Literal["layer", "global"] = "layer",
        mode: Literal["zscore", "percentile"] = "zscore",
        z_threshold: float = 2.5,
        decay: float = 0.97,
        percentile: float = 95.0,
        window: int = 100,
        warmup: int = 25,
        shift_grace: int = 3,
        name: str = "temporal_clipping",
        per_layer: bool = False,
    ) -> None:
        super().__init__(name)
        self.per_layer = per_layer
        require_one_of(SCOPES, scope=scope)
        require_one_of(MODES, mode=mode)
        self.scope = scope
        self.mode = mode
        self.z_threshold = z_threshold
        self.decay = decay
        self.percentile = percentile
        self.window = window
        self.warmup = warmup
        self.shift_grace = shift_grace
        self.make_algorithm()  # checks the numbers

    @override
    def make_algorithm(self) -> TemporalClipper:
        if self.mode == "percentile":
            return PercentileClipper(self.percentile, self.window, self.warmup, self.shift_grace)
        return ZScoreClipper(self.z_threshold, self.decay, self.warmup, self.shift_grace)

    def on_objective_shift(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        """Re-open the statistics of all layers; see `announce_objective_shift`."""
        for part in self._parts:
            assert isinstance(part.algorithm, TemporalClipper)
            part.algorithm.reopen()

    @override
    def scalars(self, layers: list[str], scales: Tensor, clipped: Tensor) -> dict[str, float]:
        return {"clipped_layers": float(clipped.mean()), "scale": float(scales.mean())}

    @override
    def layer_scalars(self, layers: list[str], scales: Tensor, clipped: Tensor) -> dict[str, float]:
        if self.scope == "global":
            return {}
        return {f"clipped/{layer}": share for layer, share in zip(layers, clipped.tolist(), strict=True)}

    @override
    def _group(self, parameters: Mapping[str, list[nn.Parameter]]) -> Mapping[str, list[nn.Parameter]]:
        if self.scope == "layer":
            return parameters
        return {"all": [parameter for owned in parameters.values() for parameter in owned]}
