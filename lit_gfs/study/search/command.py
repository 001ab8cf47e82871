"""The subcommand ``search``: finds options of recipes on seeds that only tune."""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lit_gfs.configuration.config_trust import add_trust_option
from lit_gfs.configuration.subcommand import SubcommandParser
from lit_gfs.errors import UserError
from lit_gfs.study.cell.planned import fit_command
from lit_gfs.study.cell.task import FIT
from lit_gfs.study.driver import run_cells
from lit_gfs.study.environment import environment
from lit_gfs.study.launchers.local import LocalLauncher
from lit_gfs.study.launchers.options import Choice, add_launcher_options, choose_launcher
from lit_gfs.study.long_command import (
    CONTINUES,
    add_study_options,
    load_study,
    run_trusting,
    shown_command,
    stopped_status,
    storage_faults,
)
from lit_gfs.study.planning.factors import read_where
from lit_gfs.study.planning.options_check import check_configs, check_options
from lit_gfs.study.planning.plan import Study
from lit_gfs.study.planning.search_section import SEARCH_DIRECTORY, Pair, Search
from lit_gfs.study.search.choices import CHOSEN_NAME
from lit_gfs.study.search.tuning import probes, search_of, searched_pairs, trial_blocks
from lit_gfs.study.stopping import StopRequest, stopped_by_signals

if TYPE_CHECKING:
    from lit_gfs.study.search.run import SearchRun


def search_parser() -> ArgumentParser:
    """Make the parser of ``search``."""
    parser = SubcommandParser(
        prog="lit_gfs search",
        description="Searches the options of a study's recipes, on seeds that only tune.",
    )
    add_study_options(parser)
    parser.add_argument(
        "--trials",
        type=PositiveInt | None,
        help="Trials for each recipe and scale, of all processes together; null: as the study says.",
    )
    add_launcher_options(parser)
    parser.add_argument(
        "--storage",
        type=str | None,
        help="URL of a database for the trials; null: a file in the study's directory.",
    )
    parser.add_argument(
        "--only",
        type=dict[str, Any] | None,
        help="Search these recipes and scales, as in --only.recipe=gfs.",
    )
    parser.add_argument(
        "--dry_run",
        type=bool,
        nargs="?",
        const=True,
        default=False,
        help="Print what is searched and the cells of a trial, and run nothing.",
    )
    add_trust_option(parser)
    return parser


def run(arguments: Sequence[str]) -> int:
    """Run ``search``, and return the exit status.

    Args:
        arguments: The command line, beginning with ``search``.

    Raises:
        UserError: With one line about what is wrong.
    """
    return run_trusting(search_parser(), arguments[1:], run_search)


def run_search(options: Namespace) -> int:
    """Check, search, and write what was chosen.

    Args:
        options: The parsed command line.

    Returns:
        The exit status: 0, or 1 if every cell of a recipe failed at a scale, or 128 + the signal's number.

    Raises:
        UserError: If the plan has a mistake, before any cell runs.
        StorageFault: If a file cannot be written or read.
    """
    study = load_study(options, "search --config my_study.yaml")
    search = search_of(study)
    pairs = [pair for pair in searched_pairs(study) if search.choice(pair) is None]
    if not pairs:
        raise UserError("search.chosen has every choice already; remove it from the file to search again")
    here = _limited(pairs, study, options.only)
    directory = Path(options.root) / study.name
    if options.dry_run:
        check_configs(study)
        return _print_plan(study, search, here, directory, options)
    _require_packages()
    from lit_gfs.study.search.run import SearchRun
    from lit_gfs.study.search.storage import Storage, hidden_password
    from lit_gfs.study.search.trials import Trials

    choice = choose_launcher(options)
    for probe in probes(study):
        check_options(probe)
    with storage_faults(directory, CONTINUES):
        storage = Storage(directory / SEARCH_DIRECTORY, options.storage)
        if options.launcher == "slurm":
            storage.hold(options.launcher)  # the end of one process would cancel the jobs of the others
        trials = {
            pair: Trials(storage, study.name, pair, search, _plan(study, pair, options.threads))
            for pair in pairs
        }
        command = _command(options, hidden_password(options.storage) if options.storage else None)
        versions = {**environment(), **choice.described()}
        target = options.trials or search.trials
        run = SearchRun(study, directory, storage, trials, here, target, command, versions)
        with stopped_by_signals() as stop:
            try:
                _search(run, choice, stop)
            finally:
                left = len(run.active)
                run.release()
        run.write_tables()
    if stop.is_set():
        return stopped_status(stop, f"with {left} trials under way")
    return _conclude(run, options)


def _require_packages() -> None:
    for package in ("optuna", "filelock"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"search needs the package {package}, which is not installed; "
                "run: pip install 'lit-gfs[search]'"
            )


def _search(run: SearchRun, choice: Choice, stop: StopRequest) -> None:
    """Run the cells of all trials, round by round.

    Every recipe and scale has one trial at a time, so that its suggestions do not depend on the jobs.
    """
    options = choice.options
    progress = run.progress(choice.jobs, choice.queues)
    run.claim(progress)
    with progress:
        while run.active and not stop.is_set():
            # A cluster decides itself how many cells run; one seed at a time leaves the most to prune.
            cells = run.next_cells(progress.results, choice.jobs or 1)
            run_cells(
                cells,
                run.study.score,
                run.place,
                choice.make(run.place) if cells else LocalLauncher(),
                choice.handed_over or max(1, len(cells)),
                progress,
                stop,
                options.threads,
                FIT,
                options.trust,
                keep_checkpoints=False,
                retries=options.retries,
            )
            run.settle(progress)
            if not stop.is_set():
                run.claim(progress)


def _limited(pairs: Sequence[Pair], study: Study, only: dict[str, Any] | None) -> list[Pair]:
    if not only:
        return list(pairs)
    if others := [factor for factor in only if factor not in ("recipe", "scale")]:
        raise UserError(f"--only.{others[0]} limits no search; expected --only.recipe or --only.scale")
    where = read_where(only, study.factors, "--only")
    chosen = [pair for pair in pairs if all(getattr(pair, key) in names for key, names in where.items())]
    if not chosen:
        raise UserError(f"--only leaves nothing to search; expected one of {'; '.join(map(str, pairs))}")
    return chosen


def _plan(study: Study, pair: Pair, threads: int) -> dict[str, Any]:
    """Return everything that the trials of a recipe at a scale have in common."""
    search = search_of(study)
    cells = [cell for block in trial_blocks(study, pair, 0, {}) for cell in block.cells]
    tasks = study.factors["task"]
    return {
        "seeds": search.seeds,
        "tasks": search.tasks,
        "score": [study.score.tag, study.score.final_share],
        "bounds": {task: [tasks[task].floor, tasks[task].reference] for task in search.tasks},
        "threads": threads,
        "arguments": {cell.name: cell.arguments for cell in cells},
    }


def _command(options: Namespace, storage: str | None) -> str:
    trials = [] if options.trials is None else ["--trials", str(options.trials)]
    return shown_command("search", options, *trials, *([] if storage is None else ["--storage", storage]))


def _print_plan(
    study: Study, search: Search, pairs: Sequence[Pair], directory: Path, options: Namespace
) -> int:
    for pair in pairs:
        trials = options.trials or search.trials
        print(f"# {pair}: {trials} trials on the seeds {', '.join(map(str, search.seeds))}")
        for option, distribution in search.recipes[pair.recipe].items():
            print(f"#   {option}: {distribution.get('choices') or _range(distribution)}")
        for block in trial_blocks(study, pair, 0, {}):
            for cell in block.cells:
                command = fit_command(cell, directory / SEARCH_DIRECTORY, options.threads, options.trust)
                print(f"python -m lit_gfs {shlex.join(command)}")
    return 0


def _range(distribution: dict[str, Any]) -> str:
    step = f", step {distribution['step']}" if distribution["step"] else ""
    return f"{distribution['low']} to {distribution['high']}{step}" + ", log" * distribution["log"]


def _conclude(run: SearchRun, options: Namespace) -> int:
    """Print the choices, and what is missing."""
    from lit_gfs.study.search.progress import described
    from lit_gfs.study.search.trials import RUNNING

    failed = False
    for pair, trials in run.trials.items():
        known = trials.all()
        ended = sum(trial.state != RUNNING for trial in known)
        choice = trials.choice(run.target)
        if choice is not None:
            found = (
                f"{described(choice.options)} | {choice.score:.3g} by trial {choice.trial} of {choice.trials}"
            )
        elif ended < run.target:
            elsewhere = sum(trial.state == RUNNING for trial in known)
            found = f"{ended} of {run.target} trials have ended, {elsewhere} run in other processes"
        else:
            found = f"no choice, because all cells of {ended} trials failed; see {run.place}"
            failed = failed or pair in run.here
        print(f"{pair.recipe} at {pair.scale}: {found}")
    print(f"choices: {run.directory / CHOSEN_NAME}", flush=True)
    return 1 if failed else 0
