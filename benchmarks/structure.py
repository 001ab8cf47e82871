"""How much of the code a reader meets: loose modules, lines, and the functions that a DQN transition passes.

The profile is of one update of `quickstart` without monitors and guards, from the loader's next batch to the
optimizer's step, with one environment step in it. It counts the functions of this package; lambdas and
comprehensions belong to the function around them.

    python benchmarks/structure.py
    python benchmarks/structure.py --list

It prints JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import tokenize
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from throughput import MeasuredCLI

import lit_gfs.callbacks
import lit_gfs.datamodules
from lit_gfs.configuration.config_files import complete_arguments

ROOT = Path(str(lit_gfs.__file__)).resolve().parent.parent
PACKAGES = [
    Path(str(package.__file__)).resolve().parent
    for package in (lit_gfs, lit_gfs.callbacks, lit_gfs.datamodules)
]
WARM_UP = 50
"""Updates before the one that is profiled."""

Function = tuple[str, str]
"""A file, as seen from the repository, and the name of a function in it."""


class Passed:
    """The functions of this package that were called while this was active."""

    def __init__(self) -> None:
        self.functions: set[Function] = set()

    def start(self) -> None:
        """Begin to note functions."""
        sys.setprofile(self._note)

    def stop(self) -> None:
        """Note no more."""
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and any(path.is_relative_to(package) for package in PACKAGES):
            name = frame.f_code.co_qualname.partition(".<locals>.<")[0]
            self.functions.add((str(path.relative_to(ROOT)), name))


class Profile(Callback):
    """Profiles one update, and the agent's training step in it."""

    def __init__(self) -> None:
        self.transition, self.update = Passed(), Passed()
        self._loader: Any = None
        self._following: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the loader and the training step start the profiles."""
        self._loader = loader = type(trainer.train_dataloader)
        self._following = following = loader.__next__
        step = pl_module.training_step

        def next_batch(self: Any) -> Any:
            if trainer.global_step == WARM_UP:
                profile.transition.start()
            return following(self)

        def training_step(*arguments: Any) -> Any:
            if trainer.global_step != WARM_UP:
                return step(*arguments)
            profile.transition.stop()
            profile.update.start()
            try:
                return step(*arguments)
            finally:
                profile.update.stop()
                profile.transition.functions |= profile.update.functions
                profile.transition.start()

        profile, loader.__next__ = self, next_batch
        pl_module.training_step = training_step  # type: ignore[method-assign]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, _: Any) -> None:
        """Stop before the step."""
        sys.setprofile(None)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the loader its own method back."""
        self._loader.__next__ = self._following


def profile_dqn() -> Profile:
    """Train DQN on CartPole for some hundred steps, with one environment and an update each step."""
    profile = Profile()
    options = {
        "data.num_envs": 1,
        "data.total_steps": 200,
        "data.learning_starts": 32,
        "data.steps_per_update": 1,
        "data.eval_every": 200,
        "data.eval_episodes": 1,
        "trainer.enable_progress_bar": False,
        "gfs.nan_guard": "null",
        "gfs.gradient_flow": "null",
    }
    typed = [f"--{key}={value}" for key, value in options.items()]
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(sys.stderr):
        arguments = ["fit", "--config", "quickstart", *typed, f"--run.root={directory}"]
        MeasuredCLI(complete_arguments(arguments), profile)
    return profile


def comment_share(files: list[Path]) -> float:
    """Return the share of lines that hold a comment, docstrings not counted."""
    comments = total = 0
    for path in files:
        with path.open("rb") as file:
            comments += len(
                {
                    token.start[0]
                    for token in tokenize.tokenize(file.readline)
                    if token.type == tokenize.COMMENT
                }
            )
        total += len(path.read_text(encoding="utf-8").splitlines())
    return comments / total


def lines_of(files: list[Path]) -> int:
    """Return how many lines files have."""
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--list", action="store_true", help="also list the functions")
    arguments = parser.parse_args(args)
    profile = profile_dqn()
    package = [path for folder in PACKAGES for path in sorted(folder.rglob("*.py"))]
    hall = [path for path in (ROOT / "lit_gfs").glob("*.py") if not path.name.startswith("__")]
    functions = profile.transition.functions
    # A network is called as a whole: to read the update, one does not read its layers.
    update = {file for file, _ in profile.update.functions if "/networks/" not in file}
    answer: dict[str, Any] = {
        "loose_modules": len(hall),
        "functions_of_a_transition": len(functions),
        "files_of_a_transition": len({file for file, _ in functions}),
        "files_of_the_update": sorted(update),
        "lines_of_the_package": lines_of(package),
        "comment_share": round(comment_share(package), 4),
        "lines_of_tests": lines_of(sorted((ROOT / "tests").rglob("*.py"))),
    }
    if arguments.list:
        answer["functions"] = [f"{file}: {name}" for file, name in sorted(functions)]
    print(json.dumps(answer, indent=2))


if __name__ == "__main__":
    main()
