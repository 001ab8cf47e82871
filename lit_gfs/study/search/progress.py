"""Progress of a search over its trials and their cells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.text import Text

from lit_gfs.study.planning.plan import Cell, Study
from lit_gfs.study.planning.search_section import TRIAL, Pair
from lit_gfs.study.progress import StudyProgress
from lit_gfs.study.results.collect import Result
from lit_gfs.study.search.trials import FINISHED, PRUNED, Trial
from lit_gfs.utils.formats import format_return


class SearchProgress(StudyProgress):
    """Shows the cells of a search as they run, and its trials as they end; use it as a context manager.

    Args:
        study: The trials as a study, from `lit_gfs.study.search.tuning.trial_study`.
        cells: The cells of the trials that are left.
        jobs: Number of parallel cells; ``None`` if a cluster decides that.
        trials: Number of trials for each recipe and scale.
        ended: Number of trials that ended before, by recipe and scale.
        queues: Whether started cells wait in a queue until they have steps to tell.
    """

    def __init__(
        self,
        study: Study,
        cells: Sequence[Cell],
        jobs: int | None,
        trials: int,
        ended: Mapping[Pair, int],
        queues: bool = False,
    ) -> None:
        results: dict[str, Result] = {}
        super().__init__(study, cells, results, jobs, queues)
        # Cells of other trials take about the same time.
        self._alike = {cell.name: _kind(cell) for cell in study.cells()}
        self._trials = trials
        self._ended = ended

    def expect(self, cells: Iterable[Cell]) -> None:
        """Count cells that are about to run, in case they were not planned."""
        for cell in cells:
            if cell.name not in self._left:
                self._cells.append(cell)
                self._left[cell.name] = cell
                self._alike[cell.name] = _kind(cell)

    def leave_out(self, names: Iterable[str]) -> None:
        """Stop counting cells that will not run here: their trial was pruned, or ran elsewhere."""
        gone = {name for name in names if self._left.pop(name, None) is not None}
        self._cells = [cell for cell in self._cells if cell.name not in gone]

    def take(self, result: Result) -> None:
        """Count a cell that ended before."""
        self.results[result.cell] = result
        self._left.pop(result.cell, None)

    def trial_ended(self, pair: Pair, trial: Trial, best: Trial | None) -> None:
        """Print how a trial ended.

        Args:
            pair: Its recipe and scale.
            trial: The trial.
            best: The best trial so far.
        """
        score = "no score" if trial.score is None else format_return(trial.score)
        parts = [f"{pair.recipe} at {pair.scale}: trial {trial.number} {trial.state}", score]
        if trial.state == FINISHED and trial.failed_cells:
            parts.append(f"{trial.failed_cells} of {trial.cells} cells failed")
        if best is not None:
            parts.append(f"best {format_return(best.score)} by trial {best.number}")
        parts.append(described(trial.options))
        line = " | ".join(parts)
        if self._live is None:
            print(line, flush=True)
        else:
            self._live.console.print(Text(line, "dim" if trial.state == PRUNED else ""))

    def _plan(self) -> list[str]:
        planned = self._trials * len(self._ended)
        before = sum(self._ended.values())
        at_once = f"{self.jobs} at a time" if self.jobs else "as the cluster has room"
        known = f", {before} ended before" * (before > 0)
        return [
            f"{self.study.name}: a search of {len(self._ended)} recipes and scales with {self._trials} "
            f"trials each: {planned} trials{known}, {len(self._left)} cells to run, {at_once}"
        ]


def _kind(cell: Cell) -> tuple[str, ...]:
    return tuple({**cell.levels, "seed": "", TRIAL: ""}.values())


def described(options: Mapping[str, object]) -> str:
    """Write options in one line, as in ``model.optimizer.lr=0.00031``."""
    return " ".join(
        f"{option}={value:.3g}" if isinstance(value, float) else f"{option}={value}"
        for option, value in options.items()
    )
