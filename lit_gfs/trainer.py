"""The Trainer of a program: Lightning's, with everything that ``python -m lit_gfs fit`` adds to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import yaml
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from typing_extensions import override

import lit_gfs.configuration.yaml_values  # noqa: F401 - writes enums and paths
from lit_gfs.callbacks.graceful_stop import GracefulStop
from lit_gfs.callbacks.named import keys_of
from lit_gfs.callbacks.opening import RunOpening
from lit_gfs.callbacks.run_card import RunCard
from lit_gfs.callbacks.trainer_options import (
    TRAINER_DEFAULTS,
    complete_options,
    progress_bar,
    reporting_callbacks,
)
from lit_gfs.configuration.chosen_interventions import Chosen, chosen_interventions
from lit_gfs.configuration.described_run import (
    IndescribableError,
    describe_interventions,
    describe_object,
    describe_options,
)
from lit_gfs.errors import RunStopped, UserError
from lit_gfs.metrics.module_protocol import score_tag
from lit_gfs.runs.checkpoints import find_checkpoint, is_misfit, reason_of
from lit_gfs.runs.companions import ending_together
from lit_gfs.runs.exit_status import told_in_one_line
from lit_gfs.runs.layout import LAST, latest_run
from lit_gfs.runs.run_directory import RunDirectory, run_label, run_name
from lit_gfs.runs.slurm import switch_off_requeueing
from lit_gfs.utils.formats import relative_path
from lit_gfs.utils.library_noise import silence_library_noise
from lit_gfs.utils.lightning_overhead import drop_empty_hooks
from lit_gfs.utils.memory import keep_freed_memory
from lit_gfs.utils.seeding import chosen_seed
from lit_gfs.utils.torch_setup import MatmulPrecision, set_matmul_precision, set_threads
from lit_gfs.utils.working_directory import absolute_path, working_directory


def make_trainer(
    recipe: str | None = None,
    *,
    gfs: Mapping[str, Any] | None = None,
    callbacks: Callback | Sequence[Callback] = (),
    root: str | None = None,
    name: str | None = None,
    version: str | None = None,
    threads: int | None = None,
    float32_matmul_precision: MatmulPrecision = "high",
    **options: Any,
) -> Trainer:
    """Make a Trainer whose ``fit(agent, data)`` is that of the command line.

    The run gets a directory ``runs/<agent>_<environment>/version_<n>`` with TensorBoard's events,
    ``last.ckpt``, ``best.ckpt`` and ``config.yaml``, evaluations, a progress bar, the diagnosis and the
    summary. A signal stops it with a checkpoint. If the program begins with
    ``lightning.seed_everything(seed)``, the run equals that of the command line with the same options.

    ``fit(agent, data, ckpt_path=...)`` resumes exactly, in the directory of the checkpoint. The path is a
    checkpoint, a directory of checkpoints, or ``"last"``. Commands take the run's checkpoints too, if all
    classes of the agent and its data can be imported: ``python -m lit_gfs validate --ckpt_path ...``.

    Args:
        recipe: A shipped recipe by name, such as ``"gfs"``, or a YAML file with the groups ``gfs`` and
            ``trainer``.
        gfs: Interventions and monitors by key, as in YAML: ``{"path_init": {"growth": 16}, "curvature": True,
            "nan_guard": None}``. They override the recipe.
        callbacks: Interventions and monitors as objects, and Lightning's or your own callbacks. Those with a
            key come first, in the order of the command line.
        root: Directory of all runs; ``None`` takes ``runs``.
        name: Directory of a group of runs; ``None`` takes the names of agent and environment.
        version: Directory of the run; ``None`` takes the next free ``version_<n>``.
        threads: Threads that PyTorch uses; ``None`` takes OMP_NUM_THREADS, else one for a small network.
        float32_matmul_precision: Products of float32 matrices; ``high`` uses TF32 on GPUs.
        options: Options of Lightning's Trainer, such as ``gradient_clip_val``. They override the recipe.

    Raises:
        UserError: If a key, an argument, the recipe or an option of the Trainer is unknown or out of range.

    Example::

        data = ReplayDataModule("CartPole-v1", total_steps=50_000)
        agent = DQN(data.env_spec)
        make_trainer("gfs").fit(agent, data)
    """
    silence_library_noise()
    given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks)
    chosen = chosen_interventions(gfs or {}, recipe, given)
    options = {**TRAINER_DEFAULTS, **chosen.trainer_options, **options}
    run = RunDirectory(root, name, version)
    try:
        return RunTrainer(run, chosen, options, threads, float32_matmul_precision)
    except UserError:
        raise
    except Exception as error:  # an error of the Trainer is about its options
        raise UserError(f"make_trainer: {error}") from error


class RunTrainer(Trainer):
    """Lightning's Trainer whose `fit` writes a run directory, as ``python -m lit_gfs fit`` does.

    See `make_trainer`, which builds it. `validate` and `test` are Lightning's own.
    """

    def __init__(
        self,
        run: RunDirectory,
        chosen: Chosen,
        options: Mapping[str, Any],
        threads: int | None,
        float32_matmul_precision: MatmulPrecision,
    ) -> None:
        self._run_directory = run
        self._method = chosen.method
        self._given: dict[str, Any] = {
            "run": {"root": run.root, "name": run.name, "version": run.version},
            "trainer": options,
            "threads": threads,
            "float32_matmul_precision": float32_matmul_precision,
        }
        self._stop = GracefulStop()
        self._is_prepared = False
        self._logs_into_run = options.get("logger") in (None, True)
        self._writes_checkpoints = options.get("enable_checkpointing") is not False
        complete = complete_options({**options, "callbacks": chosen.others}, chosen.interventions)
        callbacks = complete["callbacks"]
        # The directory of logs and checkpoints has the names of agent and environment, which `fit` learns.
        has_checkpoints = any(isinstance(each, ModelCheckpoint) for each in callbacks)
        complete["enable_checkpointing"] = self._writes_checkpoints and has_checkpoints
        if self._logs_into_run:
            complete["logger"] = False
        # First, so that it writes the checkpoint of a stopped run before the others write.
        complete["callbacks"] = [
            self._stop,
            RunOpening(keys_of(chosen.interventions), chosen_seed()),
            *callbacks,
            RunCard(chosen.method),
            *reporting_callbacks(callbacks),
            *progress_bar(complete),
        ]
        super().__init__(**complete)
        set_matmul_precision(float32_matmul_precision, self.strategy.root_device)
        switch_off_requeueing(self)

    @property
    def run_directory(self) -> Path:
        """The directory of the run, with checkpoints and configuration; complete once `fit` begins."""
        return self._run_directory.directory

    @override
    def fit(
        self,
        model: LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train, with Lightning's own arguments.

        Args:
            model: An agent, or any LightningModule.
            train_dataloaders: A datamodule, or loaders.
            val_dataloaders: Loaders of validation.
            datamodule: A datamodule.
            ckpt_path: A checkpoint to resume from; a directory stands for its newest intact checkpoint, and
                ``last`` for that of the latest run.
            weights_only: Has no effect: checkpoints are read without code.

        Raises:
            UserError: If an option does not suit, or the checkpoint is missing or damaged.
        """
        data = train_dataloaders if datamodule is None else datamodule
        run = self._run_directory
        if not self._is_prepared:
            run.default_name = run_name(type(model).__name__, getattr(data, "env_id", type(data).__name__))
        checkpoint = None if ckpt_path is None else self._find(str(ckpt_path))
        keep_freed_memory()
        set_threads(self._given["threads"], model)
        if not self._is_prepared and not cast(Any, self).fast_dev_run:
            run.label = run_label(self._method, model, data)
            self._prepare(model, checkpoint)
        directory = run.directory if self._is_prepared else working_directory()
        with (
            ending_together(self, self._discard),
            self._discarding_refused(checkpoint),
            told_in_one_line(self._stop, directory),
        ):
            super().fit(model, train_dataloaders, val_dataloaders, datamodule, checkpoint, weights_only)

    def _find(self, name: str) -> str:
        run = self._run_directory
        if name == LAST:
            name = str(latest_run(run.root, run.name or run.default_name, run.version))
            # The run goes on in the directory of the checkpoint.
            run.root = run.name = run.version = None
        return absolute_path(find_checkpoint(name, option="ckpt_path"))

    def _prepare(self, model: LightningModule, checkpoint: str | None) -> None:
        """Find the run's directory, and write logs, checkpoints and the configuration there."""
        run = self._run_directory
        run.arguments = sys.argv
        run.resume_from(checkpoint)
        if self._logs_into_run:
            self.loggers = [run.logger()]
        callbacks: list[Callback] = cast(Any, self).callbacks
        callbacks.insert(1, SaveDescription(run, self._given, checkpoint))
        if self._writes_checkpoints:
            callbacks += run.checkpoints(score_tag(model))
        drop_empty_hooks(callbacks)
        self._is_prepared = True

    @contextmanager
    def _discarding_refused(self, checkpoint: str | None) -> Iterator[None]:
        """Remove the directory of a run that is refused; say in one line that a checkpoint does not fit."""
        try:
            yield
        except (UserError, MisconfigurationException):
            self._discard()
            raise
        except RunStopped as stopped:
            print("lit_gfs:", stopped, file=sys.stderr)
            raise
        except Exception as error:
            if not is_misfit(error):
                raise
            self._discard()
            raise UserError(
                f"ckpt_path {relative_path(str(checkpoint))!r} does not fit the model: {reason_of(error)}; "
                "expected the run's own agent"
            ) from error

    def _discard(self) -> None:
        run = self._run_directory
        if self._is_prepared and self.is_global_zero and (self.global_step == 0 or not run.has_begun):
            run.discard()


class SaveDescription(Callback):
    """Tells all processes the run's directory; writes its configuration once training starts.

    Args:
        run: The run's directory.
        given: The options of the run, without its objects.
        checkpoint: The checkpoint that the run resumes from.
    """

    def __init__(self, run: RunDirectory, given: Mapping[str, Any], checkpoint: str | None) -> None:
        self._run = run
        self._given = given
        self._checkpoint = checkpoint

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._run.agree(trainer)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._run.write_config(yaml.safe_dump(self._described(trainer, pl_module), sort_keys=False))

    def _described(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        config: dict[str, Any] = {
            "seed_everything": False if (seed := chosen_seed()) is None else seed,
            "trainer": describe_options(self._given["trainer"]),
        }
        data = cast(Any, trainer).datamodule
        try:
            config |= {"model": describe_object(pl_module), "data": describe_object(data)}
        except IndescribableError as error:
            rank_zero_warn(
                f"{error}; config.yaml leaves out model and data, so load_policy and the command line cannot "
                "build them again"
            )
        else:
            if (env_options := getattr(data, "complete_env_options", None)) is not None:
                config["data"]["init_args"]["env_options"] = env_options or None
        return {
            **config,
            **{key: self._given[key] for key in ("run", "threads", "float32_matmul_precision")},
            "gfs": describe_interventions(cast(Any, trainer).callbacks),
            "ckpt_path": self._run.branched_from(self._checkpoint),
        }
