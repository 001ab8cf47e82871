"""Size of an optimizer's steps when the objective jumps, with and without interventions.

A classifier of digits has memorized its labels when they are shuffled. The script measures the root mean
square of a weight's change in a step, in units of the learning rate: its mean over the 28 steps (2 epochs)
before the shuffle, and its largest value in the 28 steps after.

    python benchmarks/objective_shift.py
"""

from __future__ import annotations

import argparse
import logging
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch.optim import Adam

from lit_gfs.agents.classifier import Classifier
from lit_gfs.callbacks import GradientNormalization, TemporalGradientClipping
from lit_gfs.datamodules import LabelShuffleDataModule
from lit_gfs.networks import PlainTrunk

STEPS_AROUND = 28
INTERVENTIONS: dict[str, list[Any]] = {
    "none": [],
    "clipping": [TemporalGradientClipping],
    "normalization 0.5, running": [GradientNormalization],
    "normalization 1, unit": [lambda: GradientNormalization(1.0, "unit")],
}


class StepSize(Callback):
    """Notes the root mean square of the weights' change in every step, in units of the learning rate."""

    def __init__(self) -> None:
        self.sizes: list[float] = []
        self._before = torch.empty(0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Remember the weights."""
        self._before = torch.nn.utils.parameters_to_vector(pl_module.parameters()).detach().clone()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Compare."""
        change = torch.nn.utils.parameters_to_vector(pl_module.parameters()).detach() - self._before
        self.sizes.append(float(change.square().mean().sqrt()) / trainer.optimizers[0].param_groups[0]["lr"])


def measure(make: list[Any], depth: int, width: int, seed: int) -> tuple[float, float]:
    """Return the mean size of steps before the shuffle, and the largest after."""
    seed_everything(seed, verbose=False)
    data = LabelShuffleDataModule(shuffle_every=20, epochs=22, eval_every=20)
    model = Classifier(
        data.env_spec,
        trunk=lambda inputs: PlainTrunk(inputs, depth, width),
        optimizer=lambda parameters: Adam(parameters, lr=1e-3),
    )
    sizes = StepSize()
    trainer = Trainer(
        max_epochs=-1,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*(intervention() for intervention in make), sizes],
    )
    trainer.fit(model, data)
    before = sizes.sizes[-2 * STEPS_AROUND : -STEPS_AROUND]
    return sum(before) / STEPS_AROUND, max(sizes.sizes[-STEPS_AROUND:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depth", type=int, default=12, help="weight layers")
    parser.add_argument("--width", type=int, default=192, help="units")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rows = []
    for name, make in INTERVENTIONS.items():
        measured = [measure(make, arguments.depth, arguments.width, seed) for seed in arguments.seeds]
        rows.append(
            {"intervention": name, "before": [b for b, _ in measured], "after": [a for _, a in measured]}
        )
    print(
        "| intervention | mean step before the shuffle | largest step after it | ratio |\n|---|---|---|---|"
    )
    for row in rows:
        ratios = [after / before for before, after in zip(row["before"], row["after"], strict=True)]
        cells = [
            ", ".join(f"{value:.2g}" for value in values) for values in (row["before"], row["after"], ratios)
        ]
        print(f"| {row['intervention']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
