"""Monitor of gradient flow: norms, directions and balance of the gradients of all layers."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import override

from lit_gfs.errors import UserError, require_between
from lit_gfs.metrics.figures import gradient_heat_map
from lit_gfs.metrics.gradient_flow import max_min_ratio
from lit_gfs.metrics.gradient_probe import GradientProbe, probes_for
from lit_gfs.metrics.layer_scalars import write_measurement
from lit_gfs.metrics.module_protocol import layers_of, trains_policy, x_axis
from lit_gfs.metrics.norm_history import NormHistory
from lit_gfs.metrics.pace import Interval, Pace, interval_in
from lit_gfs.metrics.unit_gradients import total_share
from lit_gfs.steps.step_guard import unscale_gradients
from lit_gfs.steps.step_witness import StepWitness

_TOLERANCE = 1e-5
"""Relative rounding error between two norms of the same gradient."""
_FIRST_FIGURE = 10
"""Measurements before the first heat map."""


class GradientFlowMonitor(Callback):
    """Logs each layer's gradient norm before and after interventions, and the change of its direction.

    It writes to all loggers at the first optimizer step, and then every ``every_n_steps`` steps:

    - ``gradient_flow/shortened_layers``: share of layers with a smaller applied than raw norm;
    - ``gradient_flow/max_min_ratio``: ratio of the largest to the smallest raw layer norm, among the finite,
      non-zero ones;
    - ``gradient_flow/global_norm``, ``gradient_flow/global_norm_applied``: norms over all layers;
    - ``gradient_flow/nonfinite_layers``: number of non-finite raw layer norms;
    - ``gradient_flow/dormant_share``: share of units whose weights hardly get a gradient, over all layers;
      not written if no gradient is finite. See `lit_gfs.metrics.unit_gradients.gradient_scores`; the outputs
      of heads count as units.

    With ``per_layer`` it also writes, for each layer:

    - ``gradient_flow/norm/<layer>``: 2-norm of the raw gradient, weight and bias together;
    - ``gradient_flow/norm_applied/<layer>``: 2-norm of the gradient that the optimizer receives, after all
      interventions and ``Trainer(gradient_clip_val)``;
    - ``gradient_flow/cosine/<layer>``: cosine similarity of the raw gradients of this and the previous
      optimizer step; not written if it is undefined, as for a zero gradient;
    - ``gradient_flow/scale/<layer>``: ratio of applied to raw norm, the joint factor of all interventions;
      not written if the raw norm is zero or not finite;
    - ``gradient_flow/dormant/<layer>``: share of the layer's units whose weights hardly get a gradient; not
      written for a layer without weights.

    Otherwise TensorBoard's event file has these numbers as a tensor without a chart, for the diagnosis and
    for studies (`lit_gfs.metrics.layer_scalars`).

    The x axis is the module's ``env_steps`` if it has them, else the Trainer's ``global_step``. TensorBoard
    also gets ``gradient_flow/heat_map``, raw and applied norms by layer and step over the whole run. When all
    columns are used, pairs of neighbouring columns are merged by their geometric mean.

    Put it before all callbacks that change gradients. It works on any LightningModule, under automatic and
    manual optimization. Layers are those of the module's ``named_layers()`` if it has this method, else all
    modules that own trainable parameters directly. Only layers that are trained at the start of fitting are
    measured, each on the steps of its own optimizer. Under DDP, all ranks have the same gradients and rank
    zero measures; sharded strategies are not supported.

    Args:
        every_n_steps: Optimizer steps between two measurements; ``auto`` measures about 200 times in a run,
            but at most in every 10th step.
        figure_every: Measurements between two heat maps. Further ones are drawn after the first ten
            measurements and at the end of fitting; 0 draws only the last one.
        max_columns: Largest number of columns of the heat map; an even number.
        per_layer: Whether each layer has charts of its own.
        tau: A unit is dormant if the mean absolute gradient of its weights is at most this share of its
            layer's mean.

    Raises:
        MisconfigurationException: If an argument is out of range.
        UserError: If the module has no trainable layer.

    Example::

        trainer = Trainer(callbacks=[GradientFlowMonitor(every_n_steps=100)])
    """

    pace: ClassVar[Pace] = Pace(points=200, least=10, otherwise=100)
    """What an interval of ``auto`` stands for."""

    def __init__(
        self,
        every_n_steps: Interval = "auto",
        figure_every: int = 50,
        max_columns: int = 256,
        per_layer: bool = False,
        tau: float = 0.01,
    ) -> None:
        if every_n_steps != "auto" and every_n_steps < 1:
            raise MisconfigurationException(f"every_n_steps must be at least 1, got {every_n_steps}")
        if figure_every < 0:
            raise MisconfigurationException(f"figure_every must be 0 or more, got {figure_every}")
        if max_columns < 2 or max_columns % 2:
            raise MisconfigurationException(f"max_columns must be even and at least 2, got {max_columns}")
        require_between(0, 1, tau=tau)
        self.every_n_steps = every_n_steps
        self.figure_every = figure_every
        self.max_columns = max_columns
        self.per_layer = per_layer
        self.tau = tau
        self.interval = 1
        """Optimizer steps between two measurements of the run."""
        self._probes: list[GradientProbe] = []
        self._history = NormHistory([], max_columns)
        self._drawn_at = 0
        """Measurements in the last heat map."""
        self._restored: dict[str, Any] | None = None
        self._witness = StepWitness(type(self).__name__)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._restored is None and trainer.global_step > 0:
            self._restored = self.state_dict()  # the same Trainer continues to fit
        layers = layers_of(pl_module)
        self._probes = probes_for(trainer.optimizers, layers, self.tau)
        measured = {name for probe in self._probes for name in probe.parameters}
        if not measured:
            raise UserError(
                f"{type(pl_module).__name__} has no trainable layer: expected at least one module with "
                "parameters that require gradients and belong to an optimizer"
            )
        self._history = NormHistory([name for name in layers if name in measured], self.max_columns)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._witness.begin(trainer)
        self.interval = interval_in(trainer, self.every_n_steps, self.pace)
        if self._restored is None:
            return
        self._history.load_state_dict(self._restored["history"])
        for probe, state in zip(self._probes, self._restored["probes"], strict=False):
            probe.load_state_dict(state)
        self._restored = None

    @override
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        self._witness.see()
        # Unscale on all ranks, because the loss scaler must have the same state on all of them.
        if unscale_gradients(trainer, optimizer) and trainer.is_global_zero:
            probe = self._probes[trainer.optimizers.index(optimizer)]
            probe.observe(self.interval, trains_all=trains_policy(pl_module))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        measured = [probe for probe in self._probes if probe.raw is not None]
        if not measured:
            return
        names = [name for probe in measured for name in probe.parameters]
        units = [count for probe in measured for count in probe.units]
        values = torch.cat([probe.collect().to(pl_module.device) for probe in measured], dim=1)
        raw, applied, cosines, dormant = values.cpu()  # a single transfer to the host
        scalars = _scalars(raw, applied)
        of_layers = _layer_scalars(names, raw, applied, cosines, dormant)
        share = total_share(dormant.tolist(), units)
        if share == share:
            scalars["gradient_flow/dormant_share"] = share
        write_measurement(trainer, pl_module, "gradient_flow", scalars, of_layers, self.per_layer)
        self._history.append(x_axis(trainer, pl_module), names, raw, applied)
        measurements = self._history.measurements
        if self.figure_every and (measurements == _FIRST_FIGURE or measurements % self.figure_every == 0):
            self._draw(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._drawn_at != self._history.measurements:
            self._draw(trainer, pl_module)
        self._witness.end(trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # The heat map is most useful after a crash.
        self._draw(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._restored is not None:
            return self._restored
        return {
            "history": self._history.state_dict(),
            "probes": [probe.state_dict() for probe in self._probes],
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Layers are unknown until fitting starts.
        self._restored = state_dict

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not self._history.measurements or not trainer.is_global_zero:
            return
        self._drawn_at = self._history.measurements
        raw, applied = self._history.log10_norms()
        counts_env_steps = getattr(pl_module, "env_steps", None) is not None
        figure = gradient_heat_map(
            self._history.layers,
            self._history.steps,
            raw,
            applied,
            x_label="environment steps" if counts_env_steps else "optimizer steps",
        )
        for logger in loggers:
            logger.experiment.add_figure(
                "gradient_flow/heat_map", figure, global_step=x_axis(trainer, pl_module)
            )


def _scalars(raw: Tensor, applied: Tensor) -> dict[str, float]:
    """Return summaries of the norms of M layers, ``(M,)`` each, by tag."""
    scalars = {
        "gradient_flow/global_norm": float(torch.linalg.vector_norm(raw)),
        "gradient_flow/global_norm_applied": float(torch.linalg.vector_norm(applied)),
        "gradient_flow/nonfinite_layers": float((~raw.isfinite()).sum()),
        "gradient_flow/shortened_layers": float((applied / raw < 1 - _TOLERANCE).float().mean()),
    }
    ratio = float(max_min_ratio(raw))
    if ratio == ratio:
        scalars["gradient_flow/max_min_ratio"] = ratio
    return scalars


def _layer_scalars(
    names: list[str], raw: Tensor, applied: Tensor, cosines: Tensor, dormant: Tensor
) -> dict[str, float]:
    """Return the measured values of M layers, ``(M,)`` each, by tag."""
    scalars: dict[str, float] = {}
    rows = (row.tolist() for row in (raw, applied, cosines, applied / raw, dormant))
    for name, norm, norm_applied, cosine, scale, share in zip(names, *rows, strict=True):
        scalars[f"gradient_flow/norm/{name}"] = norm
        scalars[f"gradient_flow/norm_applied/{name}"] = norm_applied
        if math.isfinite(scale):
            scalars[f"gradient_flow/scale/{name}"] = scale
        if cosine == cosine:
            scalars[f"gradient_flow/cosine/{name}"] = cosine
        if share == share:
            scalars[f"gradient_flow/dormant/{name}"] = share
    return scalars
