"""Training steps by CUDA graphs: one call of the host computes a loss and all its gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lit_gfs.utils.cuda_graphs import CannotCapture, GraphedLoss, Values

if TYPE_CHECKING:
    from lit_gfs.agents.learner import Learner


class GraphedSteps:
    """Takes the place of a learner's ``training_step``, which it captures for every shape of batches.

    Lightning, the optimizer and all callbacks go on as usual, because only the loss, its metrics and its
    gradients come from the graph. If the step cannot be captured, it runs as before, after one line.

    Args:
        learner: The learner.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._ordinary = learner.training_step
        self._graphed: GraphedLoss | None = GraphedLoss(
            self._loss_and_metrics, learner.parameters, learner.device, learner.tensors
        )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        """Return the loss of a batch."""
        learner = self._learner
        if self._graphed is not None and not learner.is_probed:
            try:
                loss, metrics = self._graphed(batch)
            except CannotCapture as error:
                rank_zero_warn(f"{type(learner).__name__} learns without CUDA graphs: {error}")
                self._graphed = None
            else:
                learner.record(metrics)
                return loss
        return self._ordinary(batch, batch_idx)

    def _loss_and_metrics(self, batch: Any) -> tuple[Tensor, Values]:
        # Whatever a replay would leave out is refused: reading results, hooks, and logging (`Learner.log`).
        if self._learner.decides_on_host:
            raise CannotCapture(self._learner.decides_on_host)
        if any(each._forward_hooks or each._forward_pre_hooks for each in self._learner.modules()):
            raise CannotCapture("a hook watches its networks")
        # Metrics are outputs of the graph, so that every replay records its own.
        with self._learner.diverting_metrics() as metrics:
            loss = self._ordinary(batch, 0)
        if not isinstance(loss, Tensor):
            raise CannotCapture(f"its training_step returns a {type(loss).__name__}")
        return loss, {name: value.detach() for name, value in metrics.items()}
