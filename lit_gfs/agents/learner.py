"""The base of everything that is trained here: networks that callbacks read, a loss, and a record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.precision import Precision
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from lit_gfs.agents.graphed_steps import GraphedSteps
from lit_gfs.callbacks.ema_weights import EMAWeights
from lit_gfs.callbacks.metric_writer import MetricWriter
from lit_gfs.envs import EnvSpec
from lit_gfs.gradients.global_norm import clip_global_norm
from lit_gfs.metrics.module_protocol import write_scalars
from lit_gfs.metrics.recorded_means import RecordedMeans
from lit_gfs.networks import EncoderFactory, Initialization, PlainTrunk, TrunkFactory, numbered_layers
from lit_gfs.optim.factory import OptimizerFactory
from lit_gfs.optim.layer_rates import base_rate
from lit_gfs.runs.exact_resume import ExactResume
from lit_gfs.runs.resume_checks import require_same_class
from lit_gfs.steps.objective_shift import announce_objective_shift
from lit_gfs.utils.cuda_graphs import CannotCapture
from lit_gfs.utils.given_arguments import RemembersArguments
from lit_gfs.utils.lightning_overhead import LeanModule, drop_empty_hooks, remember_batch_hooks
from lit_gfs.utils.torch_setup import require_compiler


class Learner(LeanModule, RemembersArguments):
    """A LightningModule that callbacks can read, and that reports against its own count of steps.

    Callbacks read `trunk`, `named_layers`, `policy_features`, `policy_head`, `loss`, `probe_batch` and
    `score`. A subclass gathers quantities with `record`; `MetricWriter`, which every learner brings along,
    writes their means every ``Trainer(log_every_n_steps)`` optimizer steps.

    Args:
        env_spec: The spaces of the data; the command line fills it in from the datamodule.
        encoder: Builds the encoder; ``null`` leaves the choice to `lit_gfs.networks.default_encoder`.
        trunk: Builds the trunk.
        optimizer: Builds the optimizer. The default has PyTorch's own settings (rate 1e-3), not those of the
            shipped configurations.
        initialization: ``orthogonal`` (gain sqrt(2)) or ``torch`` (PyTorch's defaults).
        compile: Whether ``torch.compile`` compiles the networks when fitting starts; on a CPU that needs a
            C++ compiler.
        cuda_graphs: Whether CUDA graphs replay acting and learning on a CUDA device: the host then starts all
            kernels of a step with one call. Whatever cannot be captured runs as usual, after one line.
    """

    score: ClassVar[str]
    """The tag of the evaluation's verdict: larger is better, ``best.ckpt`` is chosen by it."""

    graphed_devices: ClassVar[tuple[str, ...]] = ("cuda",)
    """Kinds of devices on which acting and learning go through `lit_gfs.utils.cuda_graphs`."""

    decides_on_host: str = ""
    """Why a CUDA graph cannot repeat `training_step`; empty if it can."""

    def __init__(
        self,
        env_spec: EnvSpec,
        *,
        encoder: EncoderFactory | None = None,
        trunk: TrunkFactory = PlainTrunk,
        optimizer: OptimizerFactory = Adam,
        initialization: Initialization = "orthogonal",
        compile: bool = False,
        cuda_graphs: bool = True,
    ) -> None:
        super().__init__()
        self.env_spec = env_spec
        self.build_encoder = encoder
        self.build_trunk = trunk
        self.build_optimizer = optimizer
        self.initialization: Initialization = initialization
        self.is_compiled = compile  # `compile` is a method of every module
        self.allows_cuda_graphs = cuda_graphs
        self._diverted: dict[str, Tensor] | None = None
        # Lightning's name for an input that `forward` takes, for what measures the network.
        self.example_input_array = torch.zeros(1, *env_spec.observation_shape)
        self.latest_return: float | None = None
        self.recorded = RecordedMeans()
        self.is_probed = False
        """Whether `loss` is asking for a loss, so that `training_step` must change nothing."""

    def configure_callbacks(self) -> list[Callback]:
        """Bring along the callbacks that write metrics and make a resumed run exact.

        Lightning's average of the weights is replaced by one that resumes exactly.
        """
        given: list[Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        present = {type(callback) for callback in given}
        callbacks: list[Callback] = [kind() for kind in (ExactResume, MetricWriter) if kind not in present]
        # Lightning removes callbacks whose subclass a module brings along.
        callbacks += [EMAWeights.like(each) for each in given if type(each) is EMAWeightAveraging]
        drop_empty_hooks(callbacks)
        return callbacks

    # -- what callbacks read -----------------------------------------------------------------------------

    @property
    def trunk(self) -> nn.Module:
        """The part of the network whose depth and width are studied."""
        raise NotImplementedError

    @property
    def policy_head(self) -> nn.Module:
        """The last layer of the network that decides on actions."""
        raise NotImplementedError

    def policy_features(self, observation: Tensor) -> Tensor:
        """Map observations ``(*batch, *shape)`` to the input of `policy_head`, ``(*batch, out_features)``."""
        raise NotImplementedError

    def probe_batch(self) -> Tensor | None:
        """Return up to 256 observations on the module's device, or ``None`` before the first."""
        raise NotImplementedError

    def named_layers(self) -> dict[str, nn.Module]:
        """Layers by name: every trained module that owns parameters directly."""
        return numbered_layers(self)

    def networks(self) -> list[nn.Module]:
        """List the modules that are called to learn and to act: ``torch.compile`` compiles them."""
        raise NotImplementedError

    # -- learning ----------------------------------------------------------------------------------------

    def loss(self, batch: Any) -> Tensor:
        """Return the loss ``()`` that training minimizes on a batch, and leave no trace in the module.

        This is the loss of `training_step`. A learner that optimizes by hand overrides it.
        """
        self.is_probed = True
        try:
            loss = self.training_step(batch, 0)
        finally:
            self.is_probed = False
        assert isinstance(loss, Tensor)
        return loss

    def announce_objective_shift(self, reason: str) -> None:
        """Tell callbacks that the objective has changed, before the first step on the new one."""
        announce_objective_shift(self.trainer, self, reason)

    def on_fit_start(self) -> None:
        """Compile the networks where that was asked for, after callbacks have changed the weights.

        Raises:
            UserError: If there is no C++ compiler.
        """
        remember_batch_hooks(self.trainer)
        if self.is_compiled:
            require_compiler(self.device)
            for network in self.networks():
                network.compile()
        if self.uses_cuda_graphs:
            # Lightning calls this attribute; `loss` reaches the method of the class behind it.
            self.training_step = GraphedSteps(self).training_step  # type: ignore[method-assign]

    def on_fit_end(self) -> None:
        """Free the memory of CUDA graphs."""
        self.__dict__.pop("training_step", None)

    def tensors(self) -> Iterator[Tensor]:
        """Yield all parameters and buffers."""
        yield from self.parameters()
        yield from self.buffers()

    @property
    def uses_cuda_graphs(self) -> bool:
        """Whether acting and learning are to be replayed by CUDA graphs."""
        return (
            self.allows_cuda_graphs
            and self.device.type in self.graphed_devices
            and not self.is_compiled  # the compiler captures graphs by itself
            and self.trainer.world_size == 1  # processes exchange gradients in the middle of a backward pass
            and self.automatic_optimization
        )

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Drop the gradients, without the profiling that PyTorch's optimizers do around it."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the Trainer asks for; the joint norm of plain gradients on the CPU without detours."""
        gradients = [
            p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        if (
            gradient_clip_val
            and gradient_clip_algorithm in (None, "norm")
            and type(self.trainer.precision_plugin) is Precision
            and self.trainer.world_size == 1
            and all(each.dtype == torch.float32 and each.is_cpu and not each.is_sparse for each in gradients)
        ):
            if gradients:
                clip_global_norm(gradients, gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    # -- reporting ---------------------------------------------------------------------------------------

    def record(self, values: Mapping[str, Tensor]) -> None:
        """Add tensors to the means over all their elements that are written next."""
        if self._diverted is not None:
            self._diverted.update(values)
        elif not self.is_probed:
            self.recorded.add(values)

    @contextmanager
    def diverting_metrics(self) -> Iterator[dict[str, Tensor]]:
        """Collect what `record` is given within in a dictionary, instead of in the means."""
        self._diverted = {}
        try:
            yield self._diverted
        finally:
            self._diverted = None

    def log(self, *arguments: Any, **options: Any) -> None:
        """Log by Lightning, which a CUDA graph could not repeat."""
        if self._diverted is not None:
            raise CannotCapture("its training_step logs; `record` would be repeated")
        super().log(*arguments, **options)

    def schedule_values(self) -> dict[str, float]:
        """Return the learning rates, for ``schedule/*``; those of further optimizers are numbered.

        A rate is without the factors that `LayerwiseLearningRates` gives to layers.
        """
        rates = [base_rate(optimizer.param_groups[0]) for optimizer in self.trainer.optimizers]
        names = ["learning_rate", *(f"learning_rate_{index}" for index in range(1, len(rates)))]
        return {f"schedule/{name}": rate for name, rate in zip(names, rates, strict=False)}

    def current_values(self, means: Mapping[str, float]) -> dict[str, float]:
        """Return the values that are written with the means of the record.

        Args:
            means: These means, by tag.
        """
        return self.schedule_values()

    def report_evaluation(self, scores: Mapping[str, Tensor]) -> None:
        """Make an evaluation's scalars known to checkpoints and, in validation, to loggers.

        Args:
            scores: By tag, ``()`` each; the same ones in all processes.
        """
        # Lightning would log against optimizer steps; checkpoints still need the value under its name. The
        # largest of equal values is exact, which their mean need not be. The scores move to the module's
        # device, because NCCL joins GPUs and reduces nothing on a CPU.
        on_device = {tag: value.to(self.device) for tag, value in scores.items()}
        self.log_dict(on_device, logger=False, batch_size=1, sync_dist=True, reduce_fx="max")
        if self.trainer.validating:
            write_scalars(self.trainer, self, {tag: float(value) for tag, value in scores.items()})

    # -- checkpoints -------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the class and the latest return; callbacks have put their part there already."""
        checkpoint.setdefault("learner", {}).update(
            {"class": type(self).__name__, "latest_return": self.latest_return}
        )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the latest return back.

        Raises:
            UserError: If the checkpoint is of another agent.
        """
        saved = checkpoint.get("learner", {})
        require_same_class(self, saved.get("class"))
        self.latest_return = saved.get("latest_return")
