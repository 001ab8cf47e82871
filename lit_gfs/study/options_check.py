"""Checks the options of a study with the parser of ``fit``, before hours are spent on them."""

from __future__ import annotations

from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.errors import UserError
from lit_gfs.metrics.scores import human_normalized_score
from lit_gfs.study.plan import Cell, Study


def check_options(study: Study) -> None:
    """Parse the arguments of enough cells to know that all can be parsed.

    Raises:
        UserError: With the cell's name, for the first mistake.
    """
    # The command line offers studies, and so imports this package.
    from lit_gfs.cli import GradientFlowCLI

    class ParsingOnly(GradientFlowCLI):
        def _set_seed(self) -> None:
            """Draw nothing."""

        def instantiate_classes(self) -> None:
            """Build nothing."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Run nothing."""

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
        _check_normalization(study, cell, cli.config.fit.data.init_args.get("env_id"))


def _representatives(study: Study) -> list[Cell]:
    """List cells with every combination of configurations and options, and every value, at least once."""
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


def _check_normalization(study: Study, cell: Cell, env_id: str | None) -> None:
    task = cell.levels["task"]
    if study.factors["task"][task].floor is None and human_normalized_score(env_id or "", 0.0) is None:
        raise UserError(
            f"factors.task.{task} has no floor and no reference; only Atari games, by an ALE/<Game>-v5 id, "
            f"do without, and this is {env_id!r}"
        )
