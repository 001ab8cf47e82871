"""Path-sensitive initialization, as a callback."""

from __future__ import annotations

from typing import Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import distributed
from typing_extensions import override

from lit_gfs.errors import UserError
from lit_gfs.gradients.skipped_steps import listed
from lit_gfs.init import PathReport, path_sensitive_
from lit_gfs.metrics.module_protocol import write_scalars


class PathSensitiveInit(Callback):
    """Initializes weights by what the paths through each layer carry, before the first step of a fresh run.

    `lit_gfs.init.path_sensitive_` says how. It runs when fitting starts, once the Trainer knows whether it
    resumes: never for a checkpoint, for a Trainer that fits on, or to validate and test. Under DDP all ranks
    get rank zero's weights. The rest of the run draws the same random numbers as without it.

    The module says what its forward takes by Lightning's ``example_input_array``. If it has a method
    ``on_weights_initialized``, that is called afterwards: a target network is copied again there.

    It writes, at the first step: ``intervention/path_init/layers``, how many layers it initialized;
    ``optional_layers``, how many of them only some paths cross; ``branch_scale``, the smallest factor on
    those, 1 where there was none to scale; ``mirrored_layers``.

    Args:
        mirrored: Whether plain chains of layers start as linear maps, so that directions stay apart; ``auto``
            does so where there is such a chain, of even widths.
        head_gain: Gain of layers whose output the module returns. A `LinearHead` keeps its own.
        growth: What branches multiply the energy by that reaches an output without them, more than 1.

    Raises:
        UserError: If the module has no ``example_input_array`` or no layers, an option is out of range, or
            ``mirrored`` does not apply.

    Example::

        trainer = Trainer(callbacks=[PathSensitiveInit()])
    """

    def __init__(
        self, mirrored: bool | Literal["auto"] = False, head_gain: float = 1.0, growth: float = 2.0
    ) -> None:
        self.mirrored = mirrored
        self.head_gain = head_gain
        self.growth = growth
        self.report: PathReport | None = None
        """What was found and done; ``None`` where the weights were left alone."""

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report = None
        if trainer.ckpt_path is not None or trainer.global_step > 0:
            return
        example = pl_module.example_input_array
        if example is None:
            raise UserError(
                f"PathSensitiveInit runs {type(pl_module).__name__}'s forward, but its example_input_array "
                "is None; expected an example of what forward takes, such as torch.zeros(1, 8)"
            )
        with torch.random.fork_rng(devices=[]):
            self.report = path_sensitive_(pl_module, example, self.mirrored, self.head_gain, self.growth)
        _broadcast(pl_module)
        after = getattr(pl_module, "on_weights_initialized", None)
        if callable(after):
            after()
        scalars = self._scalars(self.report)
        rank_zero_info(
            f"PathSensitiveInit: {', '.join(f'{tag} {value:g}' for tag, value in scalars.items())}"
        )
        left = self.report.left_alone
        for reason in dict.fromkeys(left.values()):
            names = [name for name, its in left.items() if its == reason]
            rank_zero_warn(f"PathSensitiveInit leaves {listed(names)} as they were: {reason}")

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
        }


def _broadcast(pl_module: LightningModule) -> None:
    """Give all ranks rank zero's weights: DDP did so when it was set up, and will not again."""
    if distributed.is_available() and distributed.is_initialized():
        for tensor in (*pl_module.parameters(), *pl_module.buffers()):
            distributed.broadcast(tensor.detach(), src=0)
