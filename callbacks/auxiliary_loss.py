"""Base of the callbacks that add a term to the loss of any LightningModule."""

from __future__ import annotations

import math
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from typing_extensions import override

from lit_gfs.callbacks.named_callback import NamedCallback
from lit_gfs.errors import UserError, require_between
from lit_gfs.metrics.module_protocol import write_scalars
from lit_gfs.metrics.recorded_means import RecordedMeans
from lit_gfs.steps.loss_terms import LossTerms
from lit_gfs.steps.step_guard import require_whole_gradients


class AuxiliaryLoss(NamedCallback):
    """Base of the callbacks that add a term to the loss.

    A subclass writes `term`. The names of its arguments say what it gets, and nothing else is computed:

    - ``batch``: the batch of the step, on the device;
    - ``outputs``: what ``training_step`` returned, a loss or a dict with ``loss``;
    - ``parameters``: the trained parameters by layer, ``dict[str, list[nn.Parameter]]``;
    - ``features``: the input of the module's ``policy_head``, ``(*batch, width)``, from the forward pass of
      the step itself, with its gradient;
    - ``pre_activations``: the input of the last activation of the module's ``trunk`` (of the module if it has
      no trunk), from the same pass;
    - ``module``: the LightningModule.

    From the start of fitting to its end, ``training_step`` returns the sum of the module's own loss and
    ``coefficient`` times the term, for each such callback. So the term belongs to the same backward pass as
    the loss: loss scales, accumulated gradients, DDP, guards and interventions treat it as any part of the
    loss. The loss that monitors ask for outside training is the module's own, without terms.

    It writes ``loss/<name>``, the mean of the term without its coefficient, every
    ``Trainer(log_every_n_steps)`` steps: through ``record`` of a learner of this package; otherwise directly
    to the loggers, and under DDP that of rank zero.

    A CUDA graph may capture a term and replay it without calling `term`. So a term must not decide anything
    by values that change between steps. Tensors of its own must stay in place: change them by ``copy_`` in
    hooks such as ``on_train_batch_start``.

    Args:
        name: Name in tags and in the checkpoint; must differ between all auxiliary losses.
        coefficient: Weight of the term.

    Raises:
        UserError: If the coefficient is negative, or the module optimizes manually, fetches its batches
            itself, or lacks what the term asks for.
        MisconfigurationException: If the strategy shards parameters.

    Example::

        class SmallFeatures(AuxiliaryLoss):
            def term(self, features):
                return features.square().mean()

        trainer = Trainer(callbacks=[SmallFeatures("small_features", coefficient=0.01)])
    """

    def __init__(self, name: str, coefficient: float) -> None:
        super().__init__(name)
        require_between(0, math.inf, coefficient=coefficient)
        self.coefficient = coefficient
        self._terms: LossTerms | None = None
        """The terms of all such callbacks, which the first of them installs."""
        self._means = RecordedMeans()
        """Values of modules that keep no record themselves."""

    def term(self, *arguments: Any, **inputs: Any) -> Tensor:
        """Return the term ``()``, differentiable, from the inputs that the arguments' names ask for."""
        raise NotImplementedError

    def weighted(self, value: Tensor, loss: Tensor) -> Tensor:
        """Return what is added to the loss ``()``.

        Args:
            value: The term ``()``.
            loss: The module's own loss ``()``, without terms.
        """
        return self.coefficient * value

    # -- Hooks of Lightning ------------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        require_whole_gradients(trainer, type(self).__name__)
        fetches = is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True)
        if fetches or not pl_module.automatic_optimization:
            how = "fetches its batches itself" if fetches else "optimizes manually"
            raise UserError(
                f"{type(self).__name__} adds to the loss that training_step returns, but "
                f"{type(pl_module).__name__} {how}; expected automatic optimization of a batch"
            )

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Before the module's own hook, in which learners have a CUDA graph capture this training_step.
        losses = [each for each in cast(Any, trainer).callbacks if isinstance(each, AuxiliaryLoss)]
        names = [each.name for each in losses]
        if names.count(self.name) > 1:
            raise UserError(f"two auxiliary losses have the name {self.name!r}; expected a name for each")
        if losses[0] is self:
            self._terms = LossTerms(pl_module, losses, self._recorder_of(pl_module))
            self._terms.install()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        restored = self._take_restored(trainer)
        if restored is not None:
            self._means.load_state_dict(restored["means"])

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove()

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._remove()

    # ----------------------------------------------------------------------------------------------------

    def _recorder_of(self, pl_module: LightningModule) -> Any:
        """Return the function that takes the terms' values: the module's own, or that of this callback."""
        has_record = isinstance(getattr(pl_module, "recorded", None), RecordedMeans)
        return cast(Any, pl_module).record if has_record else self._means.add

    @override
    def _saved_state(self) -> dict[str, Any]:
        return {"means": self._means.state_dict()}

    @override
    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._means:
            write_scalars(trainer, pl_module, self._means.take())

    def _remove(self) -> None:
        if self._terms is not None:
            self._terms.remove()
            self._terms = None
