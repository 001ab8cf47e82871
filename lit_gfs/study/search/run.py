"""Runs the trials of a search: suggests options, runs their cells, and tells the scores."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_gfs.study.cell.planned import CELLS_DIRECTORY
from lit_gfs.study.origin import ORIGIN_NAME, continued, read_origin, with_cell, write_origin
from lit_gfs.study.planning.plan import Cell, Study
from lit_gfs.study.planning.search_section import SEARCH_DIRECTORY, Pair
from lit_gfs.study.results.collect import Result, read_result
from lit_gfs.study.search.choices import read_chosen, write_chosen
from lit_gfs.study.search.progress import SearchProgress
from lit_gfs.study.search.storage import Storage
from lit_gfs.study.search.trials import RUNNING, Claim, Trials, best_of
from lit_gfs.study.search.tuning import Block, mean_score, search_of, trial_blocks, trial_study
from lit_gfs.utils.atomic_files import replacing_text

TRIALS_FILE = "trials.csv"


@dataclass
class Active:
    """A claimed trial with its cells, seed by seed, and how many seeds were told."""

    claim: Claim
    blocks: list[Block]
    told: int = 0

    @property
    def cells(self) -> list[Cell]:
        """All its cells."""
        return [cell for block in self.blocks for cell in block.cells]


@dataclass
class SearchRun:
    """A search in one process. Other processes may take part.

    Attributes:
        study: The plan.
        directory: The study's directory.
        storage: Where the trials are kept.
        trials: The trials of each recipe and scale.
        here: The recipes and scales that are searched in this process.
        target: How many trials each of them will have.
        command: The command that runs this search, for its origin.
        versions: Commit, versions and machine, for its origin.
        active: The trials that run here, at most one of a recipe and scale.
    """

    study: Study
    directory: Path
    storage: Storage
    trials: Mapping[Pair, Trials]
    here: Sequence[Pair]
    target: int
    command: str
    versions: dict[str, str]
    active: dict[Pair, Active] = field(default_factory=dict)

    @property
    def place(self) -> Path:
        """The directory of the search."""
        return self.directory / SEARCH_DIRECTORY

    def progress(self, jobs: int | None, queues: bool = False) -> SearchProgress:
        """Make the progress of the trials that are left.

        Args:
            jobs: Number of parallel cells; ``None`` if a cluster decides that.
            queues: Whether started cells wait in a queue.
        """
        planned = trial_study(self.study, {number: {} for number in range(self.target)})
        ended = {
            pair: {trial.number for trial in trials.all() if trial.state != RUNNING}
            for pair, trials in self._searched()
        }
        cells = [
            cell
            for pair, numbers in ended.items()
            for number in range(self.target)
            if number not in numbers
            for block in trial_blocks(self.study, pair, number, {})
            for cell in block.cells
        ]
        counts = {pair: len(numbers) for pair, numbers in ended.items()}
        return SearchProgress(planned, cells, jobs, self.target, counts, queues)

    def claim(self, progress: SearchProgress) -> None:
        """Claim a trial for each recipe and scale that has none here, and take over what it did before."""
        for pair, trials in self._searched():
            if pair in self.active or (claim := trials.claim(self.target)) is None:
                continue
            active = Active(claim, trial_blocks(self.study, pair, claim.number, claim.options))
            self.active[pair] = active
            progress.expect(active.cells)
            for cell in active.cells:
                result = read_result(self.place / CELLS_DIRECTORY / cell.name)
                if result is not None and result.arguments == cell.arguments:
                    progress.take(result)

    def next_cells(self, results: Mapping[str, Result], jobs: int) -> list[Cell]:
        """List the cells to run next: one seed of every trial, or more seeds to occupy the jobs."""
        cells: list[Cell] = []
        ahead = 0
        while len(cells) < max(1, jobs):
            blocks = [
                active.blocks[active.told + ahead]
                for active in self.active.values()
                if active.told + ahead < len(active.blocks)
            ]
            if not blocks:
                break
            cells += [cell for block in blocks for cell in block.cells if cell.name not in results]
            ahead += 1
        return cells

    def settle(self, progress: SearchProgress) -> None:
        """Tell the scores of seeds that have ended, in order; end the trials that are hopeless or done."""
        for pair, active in list(self.active.items()):
            while active.told < len(active.blocks):
                block = active.blocks[active.told]
                if any(cell.name not in progress.results for cell in block.cells):
                    break
                active.told += 1
                is_last = active.told == len(active.blocks)
                ran = [cell for told in active.blocks[: active.told] for cell in told.cells]
                score = mean_score(progress.study, block.cells, progress.results)
                mean = mean_score(progress.study, ran, progress.results)
                is_hopeless = self.trials[pair].report(active.claim, block.seed, score, mean)
                if is_last or is_hopeless:
                    self._end(pair, active, mean if is_last else None, ran, progress)
                    break
        self._leave_out_others(progress)

    def release(self) -> None:
        """Leave the trials that have not ended to whoever goes on."""
        for active in self.active.values():
            active.claim.release()
        self.active.clear()

    def write_tables(self) -> None:
        """Write ``trials.csv``, and ``chosen.yaml`` with every recipe and scale whose trials have ended."""
        with self.storage.locked():
            _write_trials(self.directory / TRIALS_FILE, self.study, self.trials)
            # The study's directory may have choices from elsewhere.
            chosen = {choice.pair: choice for choice in read_chosen(self.directory)}
            found = {pair: trials.choice(self.target) for pair, trials in self.trials.items()}
            chosen |= {pair: choice for pair, choice in found.items() if choice is not None}
            if chosen:
                write_chosen(self.directory, chosen.values())

    def _searched(self) -> list[tuple[Pair, Trials]]:
        return [(pair, self.trials[pair]) for pair in self.here]

    def _end(
        self, pair: Pair, active: Active, score: float | None, ran: Sequence[Cell], progress: SearchProgress
    ) -> None:
        trials = self.trials[pair]
        trials.tell(active.claim, score, [progress.results[cell.name] for cell in ran])
        del self.active[pair]
        self._write_origin(ran)
        self.write_tables()
        known = trials.all()
        ended = next(trial for trial in known if trial.number == active.claim.number)
        progress.trial_ended(pair, ended, best_of(known))

    def _leave_out_others(self, progress: SearchProgress) -> None:
        for pair, trials in self._searched():
            for trial in trials.all():
                if trial.state != RUNNING:
                    blocks = trial_blocks(self.study, pair, trial.number, {})
                    progress.leave_out(cell.name for block in blocks for cell in block.cells)

    def _write_origin(self, cells: Sequence[Cell]) -> None:
        with self.storage.locked():
            parts = read_origin(self.place) if (self.place / ORIGIN_NAME).exists() else []
            parts = continued(parts, self.command, self.versions)
            for cell in cells:
                parts = with_cell(parts, cell.name)
            write_origin(self.place, parts)


def _write_trials(path: Path, study: Study, searched: Mapping[Pair, Trials]) -> None:
    search = search_of(study)
    options = list(dict.fromkeys(option for pair in searched for option in search.recipes[pair.recipe]))
    seeds = [str(seed) for seed in search.seeds]
    header = ["recipe", "scale", "trial", "state", "score", *(f"seed_{seed}" for seed in seeds), *options]
    with replacing_text(path) as file:
        writer = csv.writer(file)
        writer.writerow([*header, "failed_cells", "seconds"])
        for pair, trials in searched.items():
            for trial in trials.all():
                values = [_as_text(trial.options[name]) if name in trial.options else "" for name in options]
                scores = [trial.by_seed.get(seed) for seed in seeds]
                row = [*pair, trial.number, trial.state, trial.score, *scores, *values]
                writer.writerow([*row, trial.failed_cells, trial.seconds])


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)
