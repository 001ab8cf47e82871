"""Callback for learning rates of their own for layers."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from typing_extensions import override

from lit_gfs.errors import UserError
from lit_gfs.metrics.module_protocol import example_of, trained_parameters, write_scalars
from lit_gfs.networks.layers import own_parameters
from lit_gfs.optim.layer_positions import is_matrix, layer_positions
from lit_gfs.optim.layer_rates import Rule, check_rule, rate_factors, scale_rates_
from lit_gfs.steps.skipped_steps import listed


class LayerwiseLearningRates(Callback):
    """Gives layers learning rates of their own, which follow their position, width and depth.

    See `lit_gfs.optim.layer_rates.rate_factors` for the rules. At the start of fitting, the groups of every
    optimizer are split, and the schedulers are adapted; a scheduler acts on all groups as before. The
    optimizer may be any: `lit_gfs.optim.Kron`, or one from another library. A resumed run needs the same
    callback, because the checkpoint holds the groups.

    The module must set Lightning's ``example_input_array`` as the input of its forward. Matrices that forward
    does not run keep their rate, and a warning names them.

    It writes at the first step, below ``intervention/layer_rates/``: ``scaled``, the number of parameters
    whose factor is not 1; ``smallest_factor`` and ``largest_factor`` over all trained parameters.

    Args:
        rule: ``hidden``: a constant factor for hidden matrices. ``mup``: Adam's rates by width.
            ``complete_p``: Adam's rates by width and depth, for residual trunks with a constant
            ``branch_factor``.
        hidden_factor: The factor of ``hidden``.
        base_width: The width at which hidden matrices keep the rate.
        base_depth: The depth of a residual trunk at which its branches keep the rate, in linear layers.

    Raises:
        UserError: If an option is out of range, the module has no ``example_input_array``, or ``complete_p``
            finds no branch with a constant factor.

    Example::

        trainer = Trainer(callbacks=[LayerwiseLearningRates(rule="hidden", hidden_factor=0.25)])
    """

    def __init__(
        self,
        rule: Rule = "hidden",
        hidden_factor: float = 0.25,
        base_width: int = 64,
        base_depth: int = 4,
    ) -> None:
        self.rule: Rule = rule
        self.hidden_factor = hidden_factor
        self.base_width = base_width
        self.base_depth = base_depth
        check_rule(rule, hidden_factor, base_width, base_depth)
        self.factors: dict[str, float] = {}
        """The factors of all trained parameters, by name."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning restores the optimizers after this hook, so a checkpoint finds the groups that it holds.
        if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
            raise UserError(
                "LayerwiseLearningRates does not suit LBFGS, which has one group of parameters; expected "
                "another optimizer"
            )
        example = example_of(trainer, pl_module, "LayerwiseLearningRates")
        with trainer.precision_plugin.forward_context():
            positions = layer_positions(pl_module, example)
        factors = rate_factors(
            pl_module, positions, self.rule, self.hidden_factor, self.base_width, self.base_depth
        )
        for optimizer in trainer.optimizers:
            schedulers = [
                config.scheduler
                for config in trainer.lr_scheduler_configs
                if config.scheduler.optimizer is optimizer
            ]
            scale_rates_(optimizer, factors, schedulers)
        placed = {parameter for layer in positions for parameter in own_parameters(layer)}
        trained = {p for optimizer in trainer.optimizers for p in trained_parameters(optimizer)}
        named = {name: parameter for name, parameter in pl_module.named_parameters() if parameter in trained}
        self.factors = {name: factors.get(parameter, 1.0) for name, parameter in named.items()}
        self._tell(trainer, [name for name, p in named.items() if is_matrix(p) and p not in placed])

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step == 0:
            tagged = {f"intervention/layer_rates/{tag}": value for tag, value in self._scalars().items()}
            write_scalars(trainer, pl_module, tagged)

    def _tell(self, trainer: Trainer, left: list[str]) -> None:
        scalars = ", ".join(f"{tag} {value:g}" for tag, value in self._scalars().items())
        rank_zero_info(f"LayerwiseLearningRates: {scalars}")
        if left:
            rank_zero_warn(
                f"LayerwiseLearningRates leaves the rates of {listed(left)} as they were: forward does not "
                "run their layers"
            )
        kinds = {type(optimizer).__name__ for optimizer in trainer.optimizers}
        others = sorted(kind for kind in kinds if "adam" not in kind.lower())
        if self.rule != "hidden" and others:
            rank_zero_warn(
                f"LayerwiseLearningRates follows the rule {self.rule}, which is for Adam and its relatives, "
                f"but the optimizer is {', '.join(others)}"
            )

    def _scalars(self) -> dict[str, float]:
        factors = self.factors.values()
        return {
            "scaled": float(sum(factor != 1 for factor in factors)),
            "smallest_factor": min(factors, default=1.0),
            "largest_factor": max(factors, default=1.0),
        }
