"""The directory of a run: ``runs/<name>/<version>`` with configuration, events and checkpoints.

TensorBoard calls a run by the directory of its events. So these lie in a directory inside, whose name says
more than a number; configuration and checkpoints keep short paths. A version that the user has named says
enough.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from typing_extensions import override

from lit_gfs.errors import UserError
from lit_gfs.networks.trunks import Trunk
from lit_gfs.runs.event_files import event_directory, wait_for_a_later_name
from lit_gfs.runs.layout import CONFIG_HEADER, CONFIG_NAME, DEFAULT_ROOT, find_run, require_directory
from lit_gfs.runs.slurm import job_line
from lit_gfs.utils.atomic_files import replacing_text
from lit_gfs.utils.formats import relative_path
from lit_gfs.utils.ranks import is_first_process
from lit_gfs.utils.seeding import run_seed
from lit_gfs.utils.working_directory import absolute_path, working_directory
from lit_gfs.utils.yaml_files import read_yaml

_FROM_LOGGER = re.compile(r"events\.out\.tfevents\.|hparams\.yaml$")


def run_name(agent: str, env_id: str) -> str:
    """Return the default name of a group of runs, such as ``dqn_CartPole-v1``."""
    return f"{agent.lower()}_{env_id.replace('/', '-')}"


def run_label(method: str, module: object, data: object) -> str:
    """Return a name that tells runs of one agent on one environment apart, such as ``gfs_16x128_s0``.

    Args:
        method: What stabilizes the run, such as ``gfs``.
        module: An agent; the size is left out if it has no trunk.
        data: A datamodule; without a seed of its own, the run's seed counts.
    """
    trunk = getattr(module, "trunk", None)
    size = f"_{trunk.depth}x{trunk.width}" if isinstance(trunk, Trunk) else ""
    return f"{method}{size}_s{getattr(data, 'seed', run_seed())}"


class RunDirectory:
    """The directory ``<root>/<name>/<version>`` of a run.

    Args:
        root: Directory of all runs, for TensorBoard's ``--logdir``; ``null`` takes ``runs`` or, for a resumed
            run, that of the checkpoint.
        name: Directory of a group of runs; ``null`` takes the names of agent and environment.
        version: Directory of this run; ``null`` takes the next free ``version_<n>``.

    Raises:
        UserError: If name or version is not the name of one directory.
    """

    def __init__(self, root: str | None = None, name: str | None = None, version: str | None = None) -> None:
        for option, value in (("--run.name", name), ("--run.version", version)):
            if value is not None and (value in ("", ".", "..") or re.search(r"[/\\\x00-\x1f]", value)):
                raise UserError(
                    f"{option} is {value!r}; expected the name of one directory, as in: {option} first"
                )
        if root is not None:
            require_directory("--run.root", root)
        self.root = root
        self.name = name
        self.version = version
        self.default_name = "run"
        self.label = ""
        """What tells the run apart in TensorBoard, such as ``gfs_16x128_s0``."""
        self.arguments: Sequence[str] = ()
        """The command line."""
        self._logger: TensorBoardLogger | None = None
        self._made: list[Path] = []
        self._goes_on = False
        self._present: set[Path] = set()
        self.has_begun = False
        """Whether training has begun."""

    def resume_from(self, checkpoint: str | None) -> None:
        """Continue in the directory of a checkpoint, unless the options name another directory."""
        if checkpoint is None:
            return
        directory = find_run(Path(absolute_path(checkpoint)).resolve().parent)
        if directory is None:
            return
        begun = _settings(directory / CONFIG_NAME)
        here = {"root": self.root, "name": directory.parent.name, "version": directory.name}
        if self.root is not None and Path(absolute_path(self.root)).resolve() != directory.parent.parent:
            here["root"] = None
        named = {setting: getattr(self, setting) for setting in here}
        if any(value not in (None, begun.get(setting), here[setting]) for setting, value in named.items()):
            return
        self.root = os.path.relpath(directory.parent.parent, working_directory())
        self.name, self.version = directory.parent.name, directory.name
        self._goes_on = True
        wait_for_a_later_name(event_directory(directory))

    def logger(self) -> TensorBoardLogger:
        """Return the TensorBoard logger; the first process makes its directory.

        Raises:
            UserError: If the directory cannot be made or written, or holds the checkpoints of another run.
        """
        if self._logger is None:
            logger = TensorBoardLogger(
                absolute_path(self.root or DEFAULT_ROOT),
                name=self.name or self.default_name,
                version=self.version,
                default_hp_metric=False,
                sub_dir=self._place_of_events(),
            )
            self._logger = logger
            if is_first_process():
                self._require_free(self.directory)
                self._make(self.directory)
        return self._logger

    @property
    def directory(self) -> Path:
        """The run's directory, with configuration and checkpoints."""
        logger = self.logger()
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        return Path(logger.root_dir, version)

    def _place_of_events(self) -> str | None:
        """Return the name of the directory inside for events; ``None`` if they lie in the run's own."""
        if self._goes_on:
            names = (self.root or DEFAULT_ROOT, self.name or self.default_name, self.version or "")
            run = Path(absolute_path(os.path.join(*names)))
            place = event_directory(run)
            return None if place == run else place.name
        return self.label or None if self.version is None else None

    def _require_free(self, directory: Path) -> None:
        """Keep the checkpoints of a run that this one does not go on with."""
        if not self._goes_on and os.path.isdir(directory) and any(directory.glob("*.ckpt")):
            raise UserError(
                f"--run.version {directory.name!r} is taken: {relative_path(directory)!r} has checkpoints of "
                "a run; go on with --ckpt_path last, or choose another version"
            )

    def _make(self, directory: Path) -> None:
        self._made = [path for path in (directory, *directory.parents) if not os.path.lexists(path)]
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._present = set(self._event_files())
            if not os.access(directory, os.W_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            self.discard()
            raise UserError(
                f"--run.root {self.root or DEFAULT_ROOT!r} cannot be written ({error.strerror}); "
                "choose another"
            ) from error

    def agree(self, trainer: Trainer) -> None:
        """Give all processes of the run the directory that the first one has made."""
        logger = cast(Any, self.logger())
        logger._version = trainer.strategy.broadcast(self.directory.name)

    def discard(self) -> None:
        """Remove the files and directories of a refused run.

        Only files that a logger writes by itself are removed, and directories without other files.
        """
        if not self._made:
            self._discard_new_files()
            return
        directory = self._made[0]
        there = directory.rglob("*") if os.path.isdir(directory) else ()
        written = [path for path in there if not path.is_dir()]
        if all(path.name == CONFIG_NAME or _FROM_LOGGER.match(path.name) for path in written):
            for path in written:
                path.unlink()
            for path in (*(path.parent for path in written), *self._made):
                with contextlib.suppress(OSError):  # another run is in it by now
                    path.rmdir()
        self._made = []

    def _discard_new_files(self) -> None:
        if self._logger is None or self.has_begun:
            return
        for path in set(self._event_files()) - self._present:
            if _FROM_LOGGER.match(path.name):
                path.unlink()

    def _event_files(self) -> list[Path]:
        place = Path(self.logger().log_dir)
        return (
            list(place.iterdir()) if os.path.isdir(place) else []
        )  # Path.is_dir raises if a name is too long

    def save_config(self, parser: ArgumentParser, config: Namespace) -> None:
        """Write the resolved configuration when training begins; leave out a checkpoint of this run."""
        if config.ckpt_path is not None:
            config = config.clone()
            config.ckpt_path = self.branched_from(config.ckpt_path)
            # This concerned one start: a run that goes on from here does so exactly.
            config.fresh_experience = False
        # parser.save changes the working directory while it writes, and the logger's thread would then look
        # for its file elsewhere.
        self.write_config(parser.dump(config, skip_unset=False, skip_validation=True))

    def branched_from(self, checkpoint: str | None) -> str | None:
        """Return the path that a configuration keeps of a checkpoint; ``None`` if the run goes on here."""
        # The run's configuration describes the whole run, not its last part.
        return None if checkpoint is None or self._goes_on else relative_path(checkpoint)

    def write_config(self, text: str) -> None:
        """Write the run's ``config.yaml``; training begins."""
        self.has_begun = True
        with replacing_text(self.directory / CONFIG_NAME) as file:
            file.write(CONFIG_HEADER + job_line(self.arguments) + text)

    def checkpoints(self, score: str) -> list[ModelCheckpoint]:
        """Return the callbacks that write ``last.ckpt``, and ``best.ckpt`` by an evaluation's score.

        The best checkpoint is for evaluating: it does not hold experience, and does not cut episodes. A run
        resumes from the last one. The datamodule says when it is due, and a stop (`GracefulStop`) also writes
        it. If an evaluation follows, both are written after it. There are two callbacks because one that
        monitors a value writes its last checkpoint only when the value improves.

        Args:
            score: The tag of the score, such as ``eval/episode_return``; larger is better.
        """
        directory = str(self.directory)
        best = BestCheckpoint(
            directory,
            self._goes_on,
            filename="best",
            monitor=score,
            mode="max",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        last = LastCheckpoint(
            directory,
            self._goes_on,
            filename="last",
            enable_version_counter=False,
            save_on_train_epoch_end=False,
        )
        return [best, last]


class _Checkpoint(ModelCheckpoint):
    """Writes checkpoints into a directory, and does not remove checkpoints elsewhere.

    Args:
        directory: The directory.
        goes_on: Whether training resumes from a checkpoint of this directory, which may have been moved or
            copied since.
        options: As for `ModelCheckpoint`.
    """

    def __init__(self, directory: str, goes_on: bool, **options: Any) -> None:
        super().__init__(directory, **options)
        self._goes_on = goes_on

    @cached_property
    def state_key(self) -> str:  # type: ignore[override]
        # Lightning reads it around every hook, and would compute it each time.
        return super().state_key

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of files in this directory, by their names alone."""
        if not self._goes_on:
            return

        def here(path: str) -> str:
            return str(Path(cast(str, self.dirpath), Path(path).name)) if path else ""

        names = ("best_model_path", "kth_best_model_path", "last_model_path")
        paths = {name: here(state_dict[name]) for name in names}
        kept = {here(path): score for path, score in state_dict["best_k_models"].items()}
        if paths["kth_best_model_path"] not in kept:
            paths["kth_best_model_path"] = next(iter(kept), "")
        super().load_state_dict({**state_dict, **paths, "best_k_models": kept, "dirpath": self.dirpath})


class BestCheckpoint(_Checkpoint):
    """Writes a checkpoint for evaluating after each evaluation that beats all earlier ones."""

    @override
    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        datamodule = cast(Any, trainer).datamodule
        with getattr(datamodule, "saved_for_evaluating", contextlib.nullcontext)():
            super()._save_checkpoint(trainer, filepath)


class LastCheckpoint(_Checkpoint):
    """Writes a checkpoint at the end of an epoch if the datamodule says that one is due.

    If an evaluation follows the epoch, the checkpoint follows the evaluation. If the datamodule does not say,
    a checkpoint is due with each evaluation or, in a run without evaluations, whenever one would be due.
    """

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if getattr(cast(Any, trainer).datamodule, "checkpoint_is_due", True):
            super().on_validation_end(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        # The datamodule tells the Trainer at the end of each epoch whether an evaluation is due.
        every = cast(Any, trainer).check_val_every_n_epoch
        evaluation_is_due = (trainer.current_epoch + 1) % every == 0
        if evaluation_is_due and cast(Any, trainer).enable_validation:
            return
        if getattr(cast(Any, trainer).datamodule, "checkpoint_is_due", evaluation_is_due):
            super().on_validation_end(trainer, pl_module)


class SaveConfig(Callback):
    """Tells all processes the run's directory; writes the resolved configuration once training starts.

    By then the checkpoint has been loaded, so a configuration that does not fit it cannot replace a file.

    Args:
        run: The run's directory.
        parser: The parser of ``fit``.
        config: The parsed command line.
    """

    def __init__(self, run: RunDirectory, parser: ArgumentParser, config: Namespace) -> None:
        self.run = run
        self.parser = parser
        self.config = config

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.run.agree(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            options = getattr(cast(Any, trainer).datamodule, "complete_env_options", None)
            if options:
                # Defaults may change in a later version; the saved options keep the run's own values.
                self.config = self.config.clone()
                self.config.data.init_args.env_options = options
            self.run.save_config(self.parser, self.config)


def _settings(config: Path) -> dict[str, Any]:
    """Return the settings of the directory in a run's configuration."""
    content = read_yaml(config)
    run = content.get("run") if isinstance(content, dict) else None
    return run if isinstance(run, dict) else {}
