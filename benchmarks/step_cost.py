"""Cost of interventions and monitors, as a share of a training step.

Lightning trains networks with DQN's loss on fixed random batches: the Nature CNN on stacked frames with
batches of 32 transitions, 12 x 384 linear layers on vectors with 128, and the quickstart's 2 x 256 with 64.
Two more have large batches of 256: the Nature CNN with a trunk of 4 x 512, and 12 x 384 linear layers.
Within one run, callbacks are switched on and off in turn, and each step with them is compared with the
neighbouring step without them, so that other work on the machine affects both. The figure is the median over
pairs of steps. A monitor measures in every step, and its cost is divided by the interval that it chooses by
itself: in the quickstart's 24,500 optimizer steps for 2 x 256, in 250,000 for others (10^6 steps of DQN).
Likewise, the cost of a reset is divided by the steps between two resets.

    python benchmarks/step_cost.py --markdown docs/results/step_cost.md
"""

from __future__ import annotations

import argparse
import functools
import json
import shlex
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensordict import TensorDict
from torch.utils.data import DataLoader

from lit_gfs.agents import DQN
from lit_gfs.callbacks import (
    AdamResets,
    AdaptiveGradientClipping,
    AuxiliaryLoss,
    ChurnPenalty,
    CurvatureMonitor,
    FeatureRegularization,
    GradientFlowMonitor,
    GradientNormalization,
    IsotropicFeatures,
    L2Init,
    LayerResets,
    NaNGuard,
    ParsevalRegularization,
    PullToInit,
    ReDo,
    ReGraMa,
    RepresentationMonitor,
    ShrinkAndPerturb,
    SpectralNormalization,
    StaticSparsity,
    TemporalGradientClipping,
    UpdateClipping,
    UpdateNormalization,
    WeightClipping,
    WeightMonitor,
    WeightProjection,
)
from lit_gfs.envs import EnvSpec
from lit_gfs.networks import PlainTrunk
from lit_gfs.steps.loss_terms import own_training_step
from lit_gfs.utils.library_noise import silence_library_noise

ACTIONS = 6
WARMUP = 6  # steps that do not count, an even number
SHAPES = {
    "nature_cnn": (4, 84, 84),
    "mlp_12x384": (17,),
    "mlp_2x256": (4,),
    "nature_cnn_4x512": (4, 84, 84),
    "mlp_12x384_batch_256": (17,),
}
BATCH_SIZES = {
    "nature_cnn": 32,
    "mlp_12x384": 128,
    "mlp_2x256": 64,
    "nature_cnn_4x512": 256,
    "mlp_12x384_batch_256": 256,
}
TRUNKS = {
    "nature_cnn": (1, 512),
    "mlp_12x384": (12, 384),
    "mlp_2x256": (2, 256),
    "nature_cnn_4x512": (4, 512),
    "mlp_12x384_batch_256": (12, 384),
}
PLANNED_STEPS = {"mlp_2x256": 24_500}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
MONITORS: dict[str, Any] = {
    "gradient_flow": GradientFlowMonitor,
    "representation": RepresentationMonitor,
    "curvature": CurvatureMonitor,
    "weights": WeightMonitor,
}
INTERVENTIONS: dict[str, Callable[[], list[Callback]]] = {
    "nan_guard": lambda: [NaNGuard()],
    "temporal_clipping": lambda: [TemporalGradientClipping()],
    "gradient_normalization": lambda: [GradientNormalization()],
    "both": lambda: [TemporalGradientClipping(), GradientNormalization()],
    "spectral_norm": lambda: [GradientNormalization(1.0, "spectral_norm")],
    "spectral": lambda: [GradientNormalization(1.0, "spectral")],
    "spectral_blocks": lambda: [GradientNormalization(1.0, "spectral", block=48)],
    "averaged_spectral_blocks": lambda: [GradientNormalization(1.0, "spectral", block=48, momentum=0.8)],
    "lifted_spectral_blocks": lambda: [GradientNormalization(1.0, "spectral", block=48, lift=3.5)],
    "clipping_and_spectral_blocks": lambda: [
        TemporalGradientClipping(),
        GradientNormalization(1.0, "spectral", block=48),
    ],
    "update_normalization": lambda: [UpdateNormalization()],
    "update_normalization_blocks": lambda: [UpdateNormalization(block=48)],
    "update_clipping": lambda: [UpdateClipping()],
    "pull_to_init": lambda: [PullToInit()],
    "shrink_and_perturb": lambda: [ShrinkAndPerturb(0.99999, every_n_steps=1)],
    "static_sparsity": lambda: [StaticSparsity()],
    "weight_clipping": lambda: [WeightClipping()],
    "spectral_normalization": lambda: [SpectralNormalization()],
    "weight_projection": lambda: [WeightProjection()],
    "adaptive_gradient_clipping": lambda: [AdaptiveGradientClipping()],
    "redo": lambda: [ReDo(every_n_steps=1)],
    "grama": lambda: [ReGraMa(every_n_steps=1)],
    "layer_resets": lambda: [LayerResets(every=1)],
    "adam_resets": lambda: [AdamResets(every_n_steps=1)],
    "isotropic_features": lambda: [IsotropicFeatures()],
    "churn_penalty": lambda: [ChurnPenalty()],
    "feature_regularization": lambda: [FeatureRegularization()],
    "l2_init": lambda: [L2Init()],
    "parseval": lambda: [ParsevalRegularization()],
}
PERIODS = {"redo": 1_000, "grama": 1_000, "layer_resets": 20_000, "adam_resets": 1_000}
"""Steps between two acts of those that act now and then; the benchmark lets them act in every step."""


class CountingLogger(TensorBoardLogger):
    """Counts writes by the first part of their tags, once for each call."""

    def __init__(self, directory: str) -> None:
        super().__init__(directory)
        self.written: Counter[str] = Counter()

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write and count."""
        self.written.update({tag.partition("/")[0] for tag in metrics})
        super().log_metrics(dict(metrics), step)


class FixedBatches(LightningDataModule):
    """Yields the same batch again and again, one environment step each, so that the x axis moves."""

    frame_skip = 1
    total_steps = 10**9

    def __init__(self, batch: TensorDict, steps: int) -> None:
        super().__init__()
        self.batch = batch
        self.steps = steps

    @property
    def env_steps(self) -> int:
        """Optimizer steps, instead of environment steps."""
        trainer: Any = self.trainer
        return trainer.global_step

    def train_dataloader(self) -> DataLoader:
        """Return as many batches as there are steps."""
        batches: Any = [self.batch] * self.steps
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)


class Switch(Callback):
    """Switches the other callbacks on and off after each step, and times the steps.

    Args:
        others: The callbacks to switch.
        clock: Returns the time, in seconds.
    """

    def __init__(self, others: list[Callback], clock: Callable[[], float]) -> None:
        self.others = others
        self.clock = clock
        self.on: list[float] = []
        self.off: list[float] = []
        self._active = True
        self._began = 0.0
        self._hooks: list[tuple[Any, dict[int, Any]]] = []
        self._step_with_terms: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the training step with the terms of auxiliary losses."""
        self._step_with_terms = pl_module.training_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        """Time the end of a step; this callback comes last, after the work of the others."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        now = self.clock()
        if trainer.global_step > WARMUP:
            (self.on if self._active else self.off).append(now - self._began)
        self._active = not self._active
        known: Any = trainer
        known.callbacks = [*self.others, self] if self._active else [self]
        self._switch_hooks(trainer)
        if any(isinstance(each, AuxiliaryLoss) for each in self.others):
            pl_module.training_step = self._step_with_terms
            if not self._active:
                pl_module.training_step = own_training_step(pl_module)  # type: ignore[method-assign]
        self._began = self.clock()

    def _switch_hooks(self, trainer: Trainer) -> None:
        """Remove the hooks by which callbacks act after an optimizer step, or put them back."""
        if self._active:
            for hooks, removed in self._hooks:
                hooks.update(removed)
            return
        self._hooks = []
        for optimizer in trainer.optimizers:
            for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
                self._hooks.append((hooks, dict(hooks)))
                hooks.clear()


def make_agent(network: str, cuda_graphs: bool = True) -> DQN:
    spec = EnvSpec(
        env_id=network,
        observation_shape=SHAPES[network],
        observation_dtype="uint8" if network.startswith("nature_cnn") else "float32",
        num_actions=ACTIONS,
        action_low=None,
        action_high=None,
        frame_skip=1,
    )
    depth, width = TRUNKS[network]
    return DQN(spec, trunk=functools.partial(PlainTrunk, depth=depth, width=width), cuda_graphs=cuda_graphs)


def make_observations(network: str, size: int) -> torch.Tensor:
    if network == "nature_cnn":
        return torch.randint(256, (size, *SHAPES[network]), dtype=torch.uint8)
    return torch.randn(size, *SHAPES[network])


def make_batch(network: str) -> TensorDict:
    size = BATCH_SIZES[network]
    ended = torch.rand(size, 1) < 0.01
    next_ = {
        "observation": make_observations(network, size),
        "reward": torch.randn(size, 1),
        "done": ended,
        "terminated": ended,
    }
    columns = {
        "observation": make_observations(network, size),
        "action": torch.randint(ACTIONS, (size,)),
        "next": next_,
    }
    return TensorDict(columns, [size])


def make_experience(network: str) -> TensorDict:
    """Return 256 observations of 16 environments, as many as monitors see, without an end of an episode."""
    observations = make_observations(network, 256).unflatten(0, (16, 16))
    next_ = {"done": torch.zeros(16, 16, 1, dtype=torch.bool)}
    return TensorDict({"observation": observations, "next": next_}, [16, 16])


def run(
    network: str, callbacks: list[Callback], arguments: argparse.Namespace
) -> tuple[Switch, Counter[str]]:
    """Train with the callbacks on in every other step; return the steps' times, and the counts of writes."""
    torch.manual_seed(0)
    # A graph would have the terms in every step.
    has_terms = any(isinstance(each, AuxiliaryLoss) for each in callbacks)
    agent, batch = make_agent(network, cuda_graphs=not has_terms), make_batch(network)
    agent.on_collection_end(make_experience(network))
    switch = Switch(callbacks, CLOCKS[arguments.clock])
    steps = WARMUP + 2 * arguments.pairs
    with tempfile.TemporaryDirectory() as directory:
        logger = CountingLogger(directory)
        trainer = Trainer(
            accelerator=arguments.accelerator,
            devices=1,
            precision=arguments.precision,
            max_steps=steps,
            logger=logger,
            callbacks=[*callbacks, switch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(agent, FixedBatches(batch, steps))
    return switch, logger.written


def measure(network: str, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure the cost of each callback.

    Raises:
        RuntimeError: If a monitor did not write a measurement in each of its steps.
    """
    rows = []
    for name in arguments.callbacks:
        if name in MONITORS:
            every = MONITORS[name].pace.interval(PLANNED_STEPS.get(network, 250_000))
            callbacks: list[Callback] = [MONITORS[name](every_n_steps=1)]
        else:
            every, callbacks = PERIODS.get(name, 1), INTERVENTIONS[name]()
        switch, written = run(network, callbacks, arguments)
        if name in MONITORS and written[name] < len(switch.on):
            raise RuntimeError(f"{name} measured in {written[name]} of {len(switch.on)} steps")
        shares = [(on / off - 1) / every for on, off in zip(switch.on, switch.off, strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4)
        rows.append(
            {
                "network": network,
                "what": name,
                "share_of_step": middle,
                "quartiles": [low, high],
                "step_ms": 1e3 * statistics.median(switch.off),
            }
        )
    monitors = [row for row in rows if row["what"] in MONITORS]
    if len(monitors) < len(MONITORS):
        return rows
    total = {"what": "all monitors", "share_of_step": sum(row["share_of_step"] for row in monitors)}
    quartiles = [sum(row["quartiles"][end] for row in monitors) for end in (0, 1)]
    rows.append({**monitors[0], **total, "quartiles": quartiles})
    return rows


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    lines = [
        "# Cost of interventions and monitors",
        "",
        "As a share of a training step of DQN without them: median over pairs of steps, and quartiles. Those "
        "that act in every step count in full. A reset is divided by the steps between two resets: "
        f"{', '.join(f'{period:,} for {name}' for name, period in PERIODS.items())}. Monitors are counted at "
        "the intervals that they choose in a run of 24,500 optimizer steps for 2 x 256 (the quickstart), of "
        "250,000 for others (10^6 steps of DQN).",
        "",
        f"`python benchmarks/step_cost.py {shlex.join(arguments.given)}`: {arguments.threads} thread(s), "
        f"PyTorch {torch.__version__} on {arguments.accelerator}, {arguments.precision}. A step with and "
        "one without take turns, so other work of the machine slows both: shares count, milliseconds do not.",
        "",
        "| network | what | share of a step | step, ms |",
        "|---|---|---|---|",
    ]
    for row in rows:
        low, high = row["quartiles"]
        share = f"{row['share_of_step']:.2%} [{low:.2%}, {high:.2%}]"
        lines.append(f"| {row['network']} | {row['what']} | {share} | {row['step_ms']:.1f} |")
    return "\n".join(lines) + "\n"


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=SHAPES, default=list(SHAPES))
    known = [*INTERVENTIONS, *MONITORS]
    parser.add_argument("--callbacks", nargs="+", choices=known, default=known)
    parser.add_argument("--pairs", type=int, default=100, help="pairs of steps, with and without")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu suits a machine that is shared")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    arguments = parser.parse_args(args)
    arguments.given = sys.argv[1:] if args is None else list(args)
    silence_library_noise()
    torch.set_num_threads(arguments.threads)
    rows = [row for network in arguments.networks for row in measure(network, arguments)]
    print(json.dumps(rows, indent=2))
    print(text := table(rows, arguments))
    if arguments.markdown:
        arguments.markdown.write_text(text)


if __name__ == "__main__":
    main()
