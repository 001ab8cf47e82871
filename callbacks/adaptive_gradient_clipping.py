"""Callback for adaptive gradient clipping (AGC)."""

from __future__ import annotations

from collections.abc import Mapping

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from typing_extensions import override

from lit_gfs.callbacks.gradient_intervention import GradientIntervention
from lit_gfs.gradients.adaptive_clipping import AdaptiveClipper
from lit_gfs.metrics.module_protocol import example_of, layers_of
from lit_gfs.optim.layer_positions import last_layers


class AdaptiveGradientClipping(GradientIntervention):
    """Shortens the gradient of a unit that is long compared to the unit's weights (AGC).

    See `lit_gfs.gradients.AdaptiveClipper` for the algorithm of Brock et al. (2021, arXiv 2102.06171). By
    default it leaves out the heads, as the paper does. Heads are the layers that no other layer reads; a run
    of forward on the module's ``example_input_array`` finds them.

    It writes below ``intervention/<name>/``: ``clipped_layers``, the share of layers with a clipped unit per
    step; ``scale``, the mean factor on the norm of a layer's gradient. With ``per_layer`` it also writes
    ``clipped/<layer>``, the share of steps in which a unit of the layer was clipped; otherwise TensorBoard's
    event file has these as a tensor without a chart.

    Args:
        clip_factor: Largest ratio of the norms of a unit's gradient and weights, lambda in the paper. The
            paper takes 0.01 for large batches, and more for small ones.
        eps: Smallest norm of weights that counts, so that weights of 0 can learn.
        clip_heads: Whether heads are clipped, too.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.
        per_layer: Whether each layer has a chart of its own.

    Raises:
        UserError: If an argument is out of range, the module has no layers, or it has no
            ``example_input_array`` and heads are left out.
        MisconfigurationException: If the Trainer clips gradients too.

    Example::

        trainer = Trainer(callbacks=[AdaptiveGradientClipping(clip_factor=0.05)])
    """

    def __init__(
        self,
        clip_factor: float = 0.01,
        eps: float = 1e-3,
        clip_heads: bool = False,
        name: str = "adaptive_gradient_clipping",
        per_layer: bool = False,
    ) -> None:
        super().__init__(name)
        self.clip_factor = clip_factor
        self.eps = eps
        self.clip_heads = clip_heads
        self.per_layer = per_layer
        self.heads: list[str] = []
        """The layers that are left out."""
        self.make_algorithm()  # checks the numbers

    @override
    def make_algorithm(self) -> AdaptiveClipper:
        return AdaptiveClipper(self.clip_factor, self.eps)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.heads = []
        if not self.clip_heads:
            example = example_of(trainer, pl_module, type(self).__name__)
            with trainer.precision_plugin.forward_context():
                last = set(last_layers(pl_module, example, count=1))
            self.heads = [name for name, layer in layers_of(pl_module).items() if layer in last]
        super().on_fit_start(trainer, pl_module)

    @override
    def scalars(self, layers: list[str], scales: Tensor, clipped: Tensor) -> dict[str, float]:
        return {"clipped_layers": float(clipped.mean()), "scale": float(scales.mean())}

    @override
    def layer_scalars(self, layers: list[str], scales: Tensor, clipped: Tensor) -> dict[str, float]:
        return {f"clipped/{layer}": share for layer, share in zip(layers, clipped.tolist(), strict=True)}

    @override
    def _group(self, parameters: Mapping[str, list[nn.Parameter]]) -> Mapping[str, list[nn.Parameter]]:
        return {name: owned for name, owned in parameters.items() if name not in self.heads}
