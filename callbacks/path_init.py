"""Callback for path-sensitive initialization."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import distributed
from typing_extensions import override

from lit_gfs.init import Branching, PathReport, path_sensitive_
from lit_gfs.metrics.module_protocol import example_input, write_scalars
from lit_gfs.steps.objective_shift import announce_initialization
from lit_gfs.steps.skipped_steps import listed


class PathSensitiveInit(Callback):
    """Initializes weights by the energy of the paths through each layer, at the start of a fresh run.

    See `lit_gfs.init.path_sensitive_` for the algorithm. It runs at the start of fitting. It does not run if
    the run resumes from a checkpoint, if the Trainer continues an earlier fit, or for validation and tests.
    Under DDP all ranks get rank zero's weights. The rest of the run draws the same random numbers as without
    this callback.

    The module must set Lightning's ``example_input_array`` as the input of its forward. If the module has a
    method ``on_weights_initialized``, it is called afterwards, for example to copy a target network again.

    It writes at the first step, below ``intervention/path_init/``: ``layers``, the number of initialized
    layers; ``optional_layers``, the number of those that only some paths cross; ``branch_scale``, the
    smallest factor on optional layers, or 1 if none was scaled; ``mirrored_layers``, the number of layers
    with mirrored outputs; ``first_biases``, the number of layers whose biases were drawn;
    ``zero_branches``, the number of branches whose last layer became 0.

    Args:
        mirrored: Whether plain chains of layers start as linear maps, which keeps the directions of different
            inputs apart; ``auto`` mirrors them if there is a chain and all its widths are even.
        head_gain: Gain of the layers whose output the module returns. A `LinearHead` uses its own gain.
        growth: Factor of the path energy at the outputs by all branches together, more than 1.
        first_bias: Largest absolute bias of the first layer of each mirrored chain. The biases are drawn from
            U(-first_bias, first_bias).
        branches: ``path`` gives all layers of branches one factor; ``zero`` starts the last layer of each
            branch at 0 (Fixup) and scales the others.

    Raises:
        UserError: If the module has no ``example_input_array`` or no layers, an option is out of range, or
            ``mirrored`` does not apply.

    Example::

        trainer = Trainer(callbacks=[PathSensitiveInit()])
    """

    def __init__(
        self,
        mirrored: bool | Literal["auto"] = False,
        head_gain: float = 1.0,
        growth: float = 2.0,
        first_bias: float = 0.0,
        branches: Branching = "path",
    ) -> None:
        self.mirrored = mirrored
        self.head_gain = head_gain
        self.growth = growth
        self.first_bias = first_bias
        self.branches: Branching = branches
        self.report: PathReport | None = None
        """The measured shares and the applied changes; ``None`` if the callback did not run."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report = None
        if trainer.ckpt_path is not None or trainer.global_step > 0:
            return
        with torch.random.fork_rng(devices=[]):
            self.report = self.initialize_(pl_module)
        _broadcast(pl_module)
        announce_initialization(pl_module)
        scalars = self._scalars(self.report)
        rank_zero_info(
            f"PathSensitiveInit: {', '.join(f'{tag} {value:g}' for tag, value in scalars.items())}"
        )
        left = self.report.left_alone
        for reason in dict.fromkeys(left.values()):
            names = [name for name, its in left.items() if its == reason]
            rank_zero_warn(f"PathSensitiveInit leaves {listed(names)} as they were: {reason}")

    def initialize_(self, pl_module: LightningModule) -> PathReport:
        """Initialize a module in place, with draws from PyTorch's generator of the CPU.

        Raises:
            UserError: If the module has no ``example_input_array``, or an option does not suit it.
        """
        example = example_input(pl_module, "PathSensitiveInit")
        return path_sensitive_(
            pl_module, example, self.mirrored, self.head_gain, self.growth, self.first_bias, self.branches
        )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.report is not None:
            scalars = self._scalars(self.report)
            tagged = {f"intervention/path_init/{tag}": value for tag, value in scalars.items()}
            write_scalars(trainer, pl_module, tagged)

    def _scalars(self, report: PathReport) -> dict[str, float]:
        return {
            "layers": float(len(report.shares)),
            "optional_layers": float(sum(0 < share < 1 for share in report.shares.values())),
            "branch_scale": min(report.branch_scales.values(), default=1.0),
            "mirrored_layers": float(len(report.mirrored)),
            "first_biases": float(len(report.first_biases)),
            "zero_branches": float(len(report.zero_branches)),
        }


def _broadcast(pl_module: LightningModule) -> None:
    """Copy rank zero's weights to all ranks; DDP does so only at its set-up."""
    if distributed.is_available() and distributed.is_initialized():
        for tensor in (*pl_module.parameters(), *pl_module.buffers()):
            distributed.broadcast(tensor.detach(), src=0)
