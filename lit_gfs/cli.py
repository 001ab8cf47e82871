"""The command line: ``python -m lit_gfs fit --config quickstart``.

A LightningCLI with four additions: shipped configurations by name, named interventions under ``gfs.*``, a run
directory, and one line about each mistake of the user.
"""

# ruff: noqa: E402 - the libraries below print while they are imported, so they are silenced first.
from __future__ import annotations

from lit_gfs.utils.library_noise import silence_library_noise

silence_library_noise()

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NoReturn, cast

import jsonargparse
from jsonargparse.typing import PositiveInt
from lightning.fabric.utilities.spike import TrainingSpikeException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import lit_gfs.agents
import lit_gfs.configuration.yaml_values
import lit_gfs.datamodules  # noqa: F401 - makes class names known to the parser
from lit_gfs.callbacks.graceful_stop import GracefulStop
from lit_gfs.callbacks.gradient_intervention import GradientIntervention
from lit_gfs.callbacks.named import INTERVENTIONS, ON_BY_DEFAULT
from lit_gfs.callbacks.opening import RunOpening
from lit_gfs.callbacks.progress import run_description
from lit_gfs.callbacks.run_card import RunCard
from lit_gfs.callbacks.summary import print_summary
from lit_gfs.callbacks.trainer_options import (
    TRAINER_DEFAULTS,
    complete_options,
    progress_bar,
    reporting_callbacks,
)
from lit_gfs.configuration.changes import read_given
from lit_gfs.configuration.config_checks import (
    check_empty_keys,
    check_groups,
    check_keys,
    check_no_pipes,
    check_values,
    read_configs,
)
from lit_gfs.configuration.config_files import find_config
from lit_gfs.configuration.config_trust import add_trust_option, is_by_default, take_trust, trusting
from lit_gfs.configuration.former_options import with_present_arguments
from lit_gfs.configuration.image_check import vectors_of
from lit_gfs.configuration.instantiation_errors import foreseen_in, raised_in, refusal_in
from lit_gfs.configuration.named_classes import option_names
from lit_gfs.configuration.option_help import help_text, without_help
from lit_gfs.configuration.parser_errors import one_line, with_whole_option, without_contents
from lit_gfs.configuration.part_checks import check_parts
from lit_gfs.configuration.run_text import run_text
from lit_gfs.configuration.switches import with_typed_switches
from lit_gfs.configuration.trainer_clipping import WITHOUT, replaced_clipping
from lit_gfs.envs import EnvSpec
from lit_gfs.errors import OtherProcessFailed, UserError
from lit_gfs.metrics.module_protocol import score_tag
from lit_gfs.runs.checkpoints import find_checkpoint, is_misfit, reason_of
from lit_gfs.runs.companions import ending_together
from lit_gfs.runs.exit_status import told_in_one_line
from lit_gfs.runs.layout import DEFAULT_ROOT, LAST, latest_run
from lit_gfs.runs.run_directory import RunDirectory, SaveConfig, run_label, run_name
from lit_gfs.runs.slurm import find_requeued, is_requeued, switch_off_requeueing
from lit_gfs.utils.formats import format_return, relative_path
from lit_gfs.utils.lightning_overhead import drop_empty_hooks
from lit_gfs.utils.memory import keep_freed_memory
from lit_gfs.utils.torch_setup import MatmulPrecision, set_matmul_precision, set_threads
from lit_gfs.utils.working_directory import absolute_path, keeping_working_directory, working_directory

# The datamodule hands over the whole spec; it is not a group of options.
jsonargparse.set_parsing_settings(subclasses_enabled=[EnvSpec])


class RaisingParser(LightningArgumentParser):
    """A parser that raises its errors; `lit_gfs.main` decides how the process ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message unchanged: an error in a nested value becomes part of the outer one."""
        raise UserError(message) from ex


class GradientFlowCLI(LightningCLI):
    """Subcommands ``fit``, ``validate`` and ``test`` over any agent and any datamodule.

    Args:
        args: Arguments, beginning with the subcommand.
    """

    interventions: ClassVar[dict[str, type[Callback]]] = INTERVENTIONS
    """Named callbacks, ``gfs.<name>`` in YAML; they see gradients in this order."""

    on_by_default: ClassVar[tuple[str, ...]] = ON_BY_DEFAULT
    """Named callbacks that are on unless they are set to ``null``."""

    def __init__(
        self,
        args: Sequence[str],
    ) -> None:
        arguments, packages = take_trust(args)
        with trusting(packages), keeping_working_directory():
            self._run(arguments)

    def _run(self, arguments: list[str]) -> None:
        arguments = with_present_arguments(arguments)
        self._arguments = arguments
        offered = self.subcommands()
        if arguments and arguments[0] in offered:
            # To make a parser takes a good part of the start: the others are not needed.
            only = {arguments[0]: offered[arguments[0]]}
            self.subcommands = lambda: only  # type: ignore[method-assign]
        super().__init__(
            model_class=LightningModule,
            datamodule_class=LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            parser_class=RaisingParser,
            save_config_callback=None,  # the run directory has one of its own
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_kwargs={
                "prog": "lit_gfs",
                "description": "Deep-RL networks that stay trainable as they grow.",
            },
            auto_configure_optimizers=False,
            args=arguments,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Offer no ``predict``, and no option to load a checkpoint with code in it."""
        offered = LightningCLI.subcommands()
        return {name: {*skip, "weights_only"} for name, skip in offered.items() if name != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run directory, the interventions, and the link from environment to agent."""
        parser.add_class_arguments(RunDirectory, "run")
        add_trust_option(parser)
        parser.add_argument(
            "--threads",
            type=PositiveInt | None,
            help="Threads that PyTorch uses; null takes OMP_NUM_THREADS, else one for a small network.",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=MatmulPrecision,
            default="high",
            help="Products of float32 matrices: highest; high uses TF32 on GPUs and changes nothing on CPUs; "
            "medium also allows bfloat16 on CPUs.",
        )
        parser.add_argument(
            "--fresh_experience",
            type=bool,
            default=False,
            help="Whether fit takes only weights, optimizer and counts from --ckpt_path, and none of the "
            "environments, rollouts and transitions: the number of processes may then be another one.",
        )
        for name, intervention in self.interventions.items():
            parser.add_lightning_class_args(intervention, f"gfs.{name}", subclass_mode=True, required=False)
            if name in self.on_by_default:
                class_path = f"{intervention.__module__}.{intervention.__qualname__}"
                parser.set_defaults({f"gfs.{name}": {"class_path": class_path}})
        parser.link_arguments("data.env_spec", "model.init_args.env_spec", apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments, and check more than the parser does.

        Raises:
            UserError: With one line about what is wrong.
        """
        args, about = without_help(args)
        if about is not None and not {"--config", "--model"} & {each.partition("=")[0] for each in args}:
            own = self._parser(args[0])
            self._end_with_help(own, own.get_defaults(), about)
        contents: list[dict[str, Any]] = []
        if args and args[0] in self._subcommand_parsers:
            contents = read_configs(args)
            for content in contents:
                check_keys(content, {action.dest for action in self._parser(args[0])._actions})
        args = with_typed_switches(args, contents, self.interventions)
        check_no_pipes(args, contents)
        scaling = [name for name, cls in self.interventions.items() if issubclass(cls, GradientIntervention)]
        self._replaced = replaced_clipping(args, contents, scaling)
        if self._replaced is not None:
            args = [*args, WITHOUT]
        try:
            self.config = parser.parse_args(args)
        except UserError as error:
            line = one_line(str(error), parser, lambda: self._option_names(parser, args))
            raise UserError(without_contents(with_whole_option(line, args), args, contents)) from None
        config = self.config[self.config["subcommand"]]
        for content in contents:
            check_empty_keys(content, config)
        check_groups(config)
        check_values(config)
        check_parts(config)
        if about is not None:
            self._end_with_help(self._parser(args[0]), config, about)
        self._contents = contents
        # While the working directory is the user's: an environment may change it.
        self._given = read_given(self._arguments)

    def _end_with_help(self, parser: LightningArgumentParser, config: Any, about: str) -> NoReturn:
        print(help_text(parser, config, self.interventions, about))
        raise SystemExit(0)

    def _option_names(self, parser: LightningArgumentParser, args: Sequence[str]) -> set[str]:
        """Return the full names of all options, for the classes that the configurations choose."""
        files = [value for option, value in pairwise(args) if option == "--config"]
        try:
            config = _parsed(parser, args[0], files)
        except UserError:  # it needs a model
            config = _parsed(parser, args[0], [str(find_config("quickstart"))])
        return option_names(config, {f"gfs.{name}": cls for name, cls in self.interventions.items()})

    def _parse_ckpt_path(self) -> None:
        # Lightning would let a checkpoint's hyperparameters overrule the command line. Our checkpoints hold
        # none, and the configuration beside the checkpoint was read as the first of the configurations.
        return

    def instantiate_classes(self) -> None:
        """Build datamodule, agent and Trainer; unwrap the errors that jsonargparse wraps."""
        # What save_hyperparameters of a module records. Lightning would check the configuration once more,
        # write it as YAML and read that.
        parser, config = self._parser(self.subcommand), self.config[self.subcommand]
        self.config_dump = json.loads(
            parser.dump(
                config, format="json", skip_unset=False, skip_validation=True, skip_link_targets=False
            )
        )
        try:
            super().instantiate_classes()
        except Exception as error:
            raise foreseen_in(error) or refusal_in(error) or error.__cause__ or error  # noqa: B904
        self._tell_of_vectors()
        if self.config[self.subcommand].fresh_experience:
            self._take_fresh_experience()

    def _take_fresh_experience(self) -> None:
        if not hasattr(self.datamodule, "fresh_experience"):
            name = type(self.datamodule).__name__
            raise UserError(f"--fresh_experience is true, but {name} has no environments; expected false")
        self.datamodule.fresh_experience = True

    def _tell_of_vectors(self) -> None:
        """Warn if a configuration for vectors trains on images, and the user chose no encoder."""
        spec = getattr(self.datamodule, "env_spec", None)
        chosen = self.config[self.subcommand].model.get("init_args", {}).get("encoder")
        if self.subcommand != "fit" or chosen is not None or not isinstance(spec, EnvSpec):
            return
        if (made_for := vectors_of(self._contents, spec)) is not None:
            rank_zero_warn(
                f"{spec.env_id} shows images, and the configuration was made for the vectors of {made_for}: "
                "take one for images, such as ppo_pong, or choose model.encoder and the sizes that go with it"
            )

    def before_instantiate_classes(self) -> None:
        """Find the checkpoint to begin with, and check it, before anything is built."""
        self._stop = GracefulStop()
        config = self.config[self.subcommand]
        name = config.ckpt_path
        fresh = self.subcommand == "fit" and config.fresh_experience
        if name is None:
            if fresh:
                raise UserError(
                    "--fresh_experience true is for a run that is resumed; expected --ckpt_path too"
                )
            if self.subcommand == "fit" and is_requeued():
                group = Path(config.run.root or DEFAULT_ROOT, config.run.name or self._configured_name())
                requeued = find_requeued(group, self._arguments)
                config.ckpt_path = requeued and absolute_path(requeued)
            return
        if name == LAST:
            run = config.run
            name = str(latest_run(run.root, run.name or self._configured_name(), run.version))
            # The run goes on in the directory of the checkpoint.
            run.root = run.name = run.version = None
        with_replay = self.subcommand == "fit" and not fresh
        config.ckpt_path = absolute_path(find_checkpoint(name, with_replay=with_replay))

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Build the Trainer with the interventions in order, and a run directory to write to."""
        keep_freed_memory()
        set_threads(self._get(self.config_init, "threads"), self.model)
        run: RunDirectory = self._get(self.config_init, "run")
        chosen = {name: self._get(self.config_init, f"gfs.{name}") for name in self.interventions}
        chosen = {name: each for name, each in chosen.items() if each is not None}
        config = complete_options({**self._get(self.config_init, "trainer"), **kwargs}, list(chosen.values()))
        callbacks: list[Callback] = []
        if self.subcommand == "fit":
            run.default_name = self._run_name()
            method = self._given.method(list(chosen))
            run.label = run_label(method, self.model, self.datamodule)
            run.arguments = self._arguments
            run.resume_from(self._get(self.config_init, "ckpt_path"))
            if config["logger"] in (None, True):
                config["logger"] = run.logger()
            # With another logger, or none, the configuration still goes where the checkpoints are.
            callbacks.append(SaveConfig(run, self._parser(self.subcommand), self.config[self.subcommand]))
            if config["enable_checkpointing"] is not False:
                callbacks += run.checkpoints(score_tag(self.model))
            callbacks.append(RunCard(method, run_text(self._given, self.config[self.subcommand])))
            callbacks += reporting_callbacks(config["callbacks"])
            seed = self._get(self.config, "seed_everything")
            opening = RunOpening(
                list(chosen),
                None if seed is False else seed,
                remark="" if self._replaced is None else str(self._replaced),
            )
            # Before all others, so that it writes the checkpoint of a stopped run before they write.
            config["callbacks"] = [self._stop, opening, *config["callbacks"]]
        else:
            config["logger"] = False
            config["enable_checkpointing"] = False
        callbacks += progress_bar(config)
        try:
            trainer = self._instantiate_trainer(config, callbacks)
        except UserError:
            run.discard()
            raise
        except Exception as error:  # an error of the Trainer is about its options
            run.discard()
            raise UserError(f"trainer: {error}") from error
        set_matmul_precision(
            self._get(self.config_init, "float32_matmul_precision"), trainer.strategy.root_device
        )
        drop_empty_hooks(cast(Any, trainer).callbacks)
        switch_off_requeueing(trainer)
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run in all processes; remove the directory of a run that another process refuses."""
        try:
            with ending_together(self.trainer, self._discard_unless_begun):
                self._run_here(subcommand)
        except OtherProcessFailed as failed:
            if failed.status == 2:
                self._discard_run()
            else:
                self._discard_unless_begun()
            raise

    def _run_here(self, subcommand: str) -> None:
        """Run; tell faults and unfit checkpoints from bugs, and remove the directory of a refused run."""
        try:
            with told_in_one_line(self._stop, self._checkpoint_directory()):
                super()._run_subcommand(subcommand)
        except (UserError, MisconfigurationException):
            self._discard_run()
            raise
        except Exception as error:
            if str(error).startswith("Early stopping conditioned on metric"):
                raise UserError(f"trainer.callbacks: {error}") from error
            if isinstance(error, TrainingSpikeException):
                raise UserError(f"trainer.callbacks: SpikeDetection ended the run: {error}") from error
            if isinstance(error, ImportError) and is_by_default(raised_in(error)):
                self._discard_run()
                raise UserError(f"trainer.callbacks: {error}") from error
            if not is_misfit(error):
                raise
            self._discard_run()
            checkpoint = relative_path(self._get(self.config_init, "ckpt_path"))
            raise UserError(
                f"--ckpt_path {checkpoint!r} does not fit the model: "
                f"{reason_of(error)}; expected the run's own configuration"
            ) from error

    def _discard_unless_begun(self) -> None:
        if not self._get(self.config_init, "run").has_begun:
            self._discard_run()

    def _discard_run(self) -> None:
        if self.subcommand == "fit" and self.trainer.is_global_zero:
            run: RunDirectory = self._get(self.config_init, "run")
            if self.trainer.global_step == 0 or not run.has_begun:
                run.discard()

    def after_validate(self) -> None:
        """Print the evaluation's scores."""
        self._print_scores()

    def after_test(self) -> None:
        """Print the evaluation's scores."""
        self._print_scores()

    def _print_scores(self) -> None:
        scores = sorted(self.trainer.callback_metrics.items())
        rows = [(name, format_return(float(value))) for name, value in scores]
        if rows and self.trainer.is_global_zero:
            print_summary(run_description(self.trainer), rows)

    def _checkpoint_directory(self) -> Path:
        if self.subcommand == "fit":
            return self._get(self.config_init, "run").directory
        checkpoint = self._get(self.config_init, "ckpt_path")
        return Path(checkpoint).parent if checkpoint else working_directory()

    def _run_name(self) -> str:
        env_id = getattr(self.datamodule, "env_id", type(self.datamodule).__name__)
        return run_name(type(self.model).__name__, env_id)

    def _configured_name(self) -> str:
        """Return the later value of `_run_name`, before there is an agent and a datamodule."""
        model, data = (self._get(self.config, name) for name in ("model", "data"))
        data_class = data.class_path.rpartition(".")[2]
        return run_name(model.class_path.rpartition(".")[2], data.init_args.get("env_id", data_class))


def run(arguments: Sequence[str]) -> int:
    """Run ``fit``, ``validate`` or ``test``, and return the exit status, 0.

    Args:
        arguments: The command line, beginning with the subcommand; every ``--config`` is a file.

    Raises:
        UserError: With one line about what is wrong.
    """
    try:
        GradientFlowCLI(arguments)
    except MisconfigurationException as error:
        raise UserError(str(error)) from error
    return 0


def _parsed(parser: LightningArgumentParser, subcommand: str, files: Sequence[str]) -> Any:
    return parser.parse_args([subcommand, *(f"--config={file}" for file in files)])[subcommand]
