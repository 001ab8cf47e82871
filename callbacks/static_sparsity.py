"""Callback for training with static sparse weights."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import override

from lit_gfs.callbacks.weight_rule import WeightRuleIntervention
from lit_gfs.metrics.module_protocol import write_scalars
from lit_gfs.plasticity import static_sparsity as algorithm
from lit_gfs.steps.objective_shift import announce_initialization
from lit_gfs.utils.seeding import run_seed


class StaticSparsity(WeightRuleIntervention):
    """Keeps a random part of the weights at zero from the start, with masks that never change.

    See `lit_gfs.plasticity.static_sparsity.StaticSparsity`. The masks are drawn when fitting starts, from the
    run's seed, and are part of the checkpoint. They apply to the matrices of all trained layers, also to
    first and last ones, which the rule keeps denser. Put it after `PathSensitiveInit` and
    `ShrinkAndPerturb`. Weights stay dense tensors: it saves neither time nor memory.

    It writes ``intervention/<name>/zeros`` at the start: the share of zeros among the chosen weights.

    Args:
        sparsity: Share of zeros among all chosen weights together.
        first_layer: Whether layers that read no other layer are sparse too.
        last_layer: Whether layers that no other layer reads are sparse too.
        name: Name in tags and in the checkpoint; must differ between two callbacks of the same class.

    Raises:
        UserError: If an argument is out of range, or the module has no matrix.

    Example::

        trainer = Trainer(callbacks=[StaticSparsity(sparsity=0.8)])
    """

    rule: algorithm.StaticSparsity

    def __init__(
        self,
        sparsity: float = 0.8,
        first_layer: bool = True,
        last_layer: bool = True,
        name: str = "static_sparsity",
    ) -> None:
        self.sparsity = sparsity
        super().__init__(name, first_layer, last_layer)

    @override
    def make_rule(self) -> algorithm.StaticSparsity:
        return algorithm.StaticSparsity(self.sparsity, run_seed())

    @override
    @torch.no_grad()
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        # The first data may be collected before training starts, so the network is sparse from here on.
        every = {name: weight for chosen in self._weights.values() for name, weight in chosen.items()}
        self.rule.meet(every)
        if self._restored is not None:
            self.rule.load_state_dict(self._restored["state"])
        self._mask()
        if self._restored is None:
            announce_initialization(pl_module)
            rank_zero_info(
                f"StaticSparsity: {self.rule.zeros():.1%} of the numbers in {len(every)} matrices are 0"
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_new = self._restored is None
        super().on_train_start(trainer, pl_module)
        self._mask()  # another callback may have changed weights since
        if is_new:
            write_scalars(trainer, pl_module, {f"intervention/{self.name}/zeros": self.rule.zeros()})

    def on_objective_shift(self, trainer: Trainer, pl_module: LightningModule, reason: str) -> None:
        """Apply the masks again, because another callback may have perturbed the weights."""
        if self.is_running:
            self._mask()

    @torch.no_grad()
    def _mask(self) -> None:
        for part in self._parts:
            if weights := self._weights[id(part)]:
                self.rule.apply(weights, self._rates(part))
