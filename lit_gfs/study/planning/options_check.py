"""Checks the options of a study with the parser of ``fit``, before the study spends hours on them."""

from __future__ import annotations

from typing import Any

from lit_gfs.configuration.config_files import complete_arguments, find_config
from lit_gfs.errors import UserError, nearest
from lit_gfs.metrics.scores import human_normalized_score
from lit_gfs.study.planning.plan import Cell, Study
from lit_gfs.utils.trust import is_trusted


def check_configs(study: Study) -> None:
    """Check that all configurations of a study exist. It reads no options, and so imports no PyTorch.

    Raises:
        UserError: If one does not.
    """
    for factor, levels in study.factors.items():
        for name, level in levels.items():
            for config in level.configs:
                try:
                    find_config(config)
                except UserError as error:
                    raise UserError(f"factors.{factor}.{name}: {error}") from error


def check_options(study: Study) -> None:
    """Parse the arguments of enough cells to cover all cells.

    Raises:
        UserError: For the first mistake, with the cell's name.
    """
    # Imported here because the command line imports this package.
    from lit_gfs.cli import GradientFlowCLI

    class ParsingOnly(GradientFlowCLI):
        def _set_seed(self) -> None:
            """Skip the seed."""

        def instantiate_classes(self) -> None:
            """Skip the construction."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Skip the run."""

    cli: ParsingOnly | None = None
    for cell in _representatives(study):
        try:
            arguments = complete_arguments(["fit", *cell.arguments])
            if cli is None:
                cli = ParsingOnly(arguments)
            else:
                cli.parse_arguments(cli.parser, arguments)
        except UserError as error:
            raise UserError(f"cell {cell.name!r}: {error}") from error
        _check_tags(study, cli.config.fit)
        _check_normalization(study, cell, cli.config.fit.data.init_args.get("env_id"))


def _representatives(study: Study) -> list[Cell]:
    """List cells that contain every combination of configurations and options, and every value."""
    combinations: set[tuple[str, ...]] = set()
    arguments: set[str] = set()
    chosen = []
    for cell in study.cells():
        combination = tuple(
            argument if argument.startswith("--config=") else argument.partition("=")[0]
            for argument in cell.arguments
        )
        seeded = [argument for argument in cell.arguments if not argument.startswith("--seed_everything=")]
        if combination not in combinations or not arguments.issuperset(seeded):
            chosen.append(cell)
        combinations.add(combination)
        arguments.update(seeded)
    return chosen


def _check_tags(study: Study, config: Any) -> None:
    """Check that the agent reports the scores of an evaluation; callbacks of a user may report others."""
    # Imported here because it imports PyTorch.
    from lit_gfs.configuration.named_classes import named_classes
    from lit_gfs.configuration.part_checks import reported_scores

    parts = list(named_classes(config))
    if any(is_trusted(part.cls.__module__) for part in parts):
        return
    known = {tag for part in parts if part.place == "model." for tag in reported_scores(part.cls)}
    for key, tag in (("tag", study.score.tag), ("curve_tag", study.score.curve_tag)):
        if known and tag.startswith("eval/") and tag not in known:
            raise UserError(
                f"score.{key} is {tag!r}; expected one of {', '.join(sorted(known))}{nearest(tag, known)}"
            )


def _check_normalization(study: Study, cell: Cell, env_id: str | None) -> None:
    task = cell.levels["task"]
    if study.factors["task"][task].floor is None and human_normalized_score(env_id or "", 0.0) is None:
        raise UserError(
            f"factors.task.{task} has no floor and no reference; only Atari games, by an ALE/<Game>-v5 id, "
            f"do without, and this is {env_id!r}"
        )
