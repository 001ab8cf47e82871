"""Callback that resets dormant units (ReDo)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.unit_resets import UnitResets
from lit_gfs.callbacks.weight_intervention import SteppedLayers
from lit_gfs.errors import UserError
from lit_gfs.metrics.activation_recorder import ACTIVATIONS, ActivationRecorder, named_weight_layers
from lit_gfs.metrics.module_protocol import example_of
from lit_gfs.networks.example_run import call, evaluating
from lit_gfs.plasticity.unit_layers import UnitLayer, UnitMap
from lit_gfs.utils.ranks import gather


class ReDo(UnitResets):
    """Resets dormant units now and then (ReDo, Sokar et al. 2023, arXiv 2302.12902).

    A unit is dormant if its mean absolute activation is at most ``tau`` times the mean of its layer
    (`lit_gfs.metrics.representation.dormancy_scores`). Activations are those of the module's
    ``probe_batch()``, which returns inputs of ``forward``, in evaluation mode. The outgoing weights of a
    dormant unit become 0, its incoming weights are drawn anew, and the optimizer forgets their moments; see
    `UnitResets`. A unit that gave nothing changes no output by its reset.

    Agents of this package have a ``probe_batch``. Without observations, as before the first rollout, nothing
    happens. Under DDP, the scores are means over the ranks.

    Args:
        every_n_steps: Optimizer steps between two resets.
        tau: A unit is reset if its mean absolute activation is at most this share of its layer's mean.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, the module lacks ``probe_batch`` or
            ``example_input_array``, or no layer has units that can be reset.

    Example::

        trainer = Trainer(callbacks=[ReDo(every_n_steps=1_000)])
    """

    def __init__(self, every_n_steps: int = 1_000, tau: float = 0.025, name: str = "redo") -> None:
        super().__init__(every_n_steps, tau, name)
        self._recorder = ActivationRecorder({}, [])

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if not callable(getattr(pl_module, "probe_batch", None)):
            raise UserError(
                f"ReDo measures activations on probe_batch(), which {type(pl_module).__name__} lacks; "
                "expected this method, which returns inputs of forward, or ReGraMa"
            )

    @override
    def scores(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        part: SteppedLayers,
        layers: Mapping[str, UnitLayer],
    ) -> dict[str, Tensor]:
        probe = pl_module.probe_batch()  # type: ignore[operator]
        if any(gather(probe is None)):
            return {}
        self._record(trainer, pl_module, trainer.precision_plugin.convert_input(probe))
        scores = {name: self._recorder.scores[name] for name in layers}
        if trainer.world_size > 1 and scores:
            joint = trainer.strategy.reduce(torch.cat(list(scores.values())), reduce_op="mean")
            sizes = [len(each) for each in scores.values()]
            scores = dict(zip(scores, joint.split(sizes), strict=True))
        return scores

    @override
    def _find_units(self, trainer: Trainer, pl_module: LightningModule) -> UnitMap:
        found = super()._find_units(trainer, pl_module)
        names = {layer.layer: name for name, layer in found.layers.items()}
        watched = {module: names.get(module) for module in named_weight_layers(pl_module)}
        activations = [module for module in pl_module.modules() if isinstance(module, ACTIVATIONS)]
        self._recorder = ActivationRecorder(watched, activations)
        self._record(trainer, pl_module, example_of(trainer, pl_module, "ReDo"))
        seen = self._recorder.scores
        unseen = [
            name
            for name, layer in found.layers.items()
            # An activation of two features for each unit, such as CReLU, leaves no unit dormant.
            if layer.activations != 1 or name not in seen or len(seen[name]) != len(layer.weight)
        ]
        reason = "their activation is no single module such as nn.ReLU, with a feature for each unit"
        return UnitMap(
            {name: layer for name, layer in found.layers.items() if name not in unseen},
            {**found.left_out, **dict.fromkeys(unseen, reason)},
        )

    def _record(self, trainer: Trainer, pl_module: LightningModule, inputs: Any) -> None:
        """Run forward with the recorder attached, without a trace in the module or the generators."""
        self._recorder.attach()
        try:
            with (
                evaluating(pl_module),
                isolate_rng(),
                torch.no_grad(),
                trainer.precision_plugin.forward_context(),
            ):
                call(pl_module, inputs)
        finally:
            self._recorder.detach()
