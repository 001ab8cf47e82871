"""The trials of a recipe at a scale: suggested and kept by Optuna, claimed by one process at a time."""

from __future__ import annotations

import json
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote

import filelock
import optuna

from lit_gfs.errors import UserError, shown
from lit_gfs.study.planning.search_section import Choice, Distribution, Pair, Search, Space, is_whole
from lit_gfs.study.results.collect import Result
from lit_gfs.study.results.table import FAILED, FINISHED
from lit_gfs.study.search.storage import Storage

PRUNED, RUNNING = "pruned", "running"

_STATES = {
    optuna.trial.TrialState.COMPLETE: FINISHED,
    optuna.trial.TrialState.PRUNED: PRUNED,
    optuna.trial.TrialState.RUNNING: RUNNING,
}
# Attributes of a trial in the storage.
_PLACE, _VALUES, _BY_SEED = "place", "options", "by_seed"
_CELLS, _FAILED, _SECONDS = "cells", "failed_cells", "seconds"
_PLAN = "plan"
"""An attribute of all trials together."""


class Trial(NamedTuple):
    """A trial as the storage has it.

    Attributes:
        number: Its number, from 0.
        state: ``finished``, ``pruned`` or ``running``.
        options: Its value by option.
        score: Mean normalized score over the cells so far.
        by_seed: The same by seed.
        cells: Number of its cells that ended.
        failed_cells: Number of those that failed.
        seconds: Seconds of their fits.
    """

    number: int
    state: str
    options: dict[str, Any]
    score: float | None
    by_seed: dict[str, float]
    cells: int
    failed_cells: int
    seconds: float


@dataclass
class Claim:
    """A trial that this process runs; no other process does so until it is told, or this process ends."""

    number: int
    options: dict[str, Any]
    lock: filelock.BaseFileLock
    trial: optuna.trial.Trial
    by_seed: dict[str, float] = field(default_factory=dict)

    def release(self) -> None:
        """Leave the trial to any process that claims it."""
        self.lock.release()


class Trials:
    """The trials of a recipe at a scale.

    Args:
        storage: Where they are kept.
        study: The name of the study.
        pair: The recipe and the scale.
        search: The section of the study.
        plan: Everything else that a trial depends on, as JSON takes it. It must not change.

    Raises:
        UserError: If the storage has trials of another plan.
    """

    def __init__(
        self, storage: Storage, study: str, pair: Pair, search: Search, plan: Mapping[str, Any]
    ) -> None:
        self.pair = pair
        self._storage = storage
        self._search = search
        self._space: Space = search.recipes[pair.recipe]
        pruner = optuna.pruners.MedianPruner() if search.prune else optuna.pruners.NopPruner()
        with storage.locked():
            self._study = optuna.create_study(
                storage=storage.optuna,
                study_name=f"{study}/{pair.recipe}/{pair.scale}",
                direction="maximize",
                pruner=pruner,
                load_if_exists=True,
            )
            self._check_plan(json.loads(json.dumps({**plan, "distributions": self._space}, default=str)))

    def claim(self, target: int) -> Claim | None:
        """Take an unfinished trial that no process runs, or else a new one, up to a number of trials.

        Args:
            target: How many trials there will be.

        Returns:
            The trial, or ``None`` if other processes run what is left.
        """
        with self._storage.locked():
            known = self._study.get_trials(deepcopy=False)
            for frozen in known:
                is_here = frozen.user_attrs.get(_PLACE, self._storage.place) == self._storage.place
                if frozen.state == optuna.trial.TrialState.RUNNING and is_here:
                    lock = self._lock(frozen.number)
                    try:
                        lock.acquire(timeout=0)
                    except filelock.Timeout:
                        continue
                    return self._claimed(optuna.trial.Trial(self._study, frozen._trial_id), lock)
            if sum(frozen.state in _STATES for frozen in known) >= target:
                return None
            self._study.sampler = self._sampler(len(known))
            trial = self._study.ask()
            trial.set_user_attr(_PLACE, self._storage.place)
            lock = self._lock(trial.number)
            lock.acquire()
            return self._claimed(trial, lock)

    def report(self, claim: Claim, seed: str, score: float, mean: float) -> bool:
        """Tell the score of a seed, and ask whether the trial is hopeless.

        Args:
            claim: The trial.
            seed: The seed.
            score: Mean normalized score of the seed's cells.
            mean: The same over all cells so far.
        """
        step = len(claim.by_seed)
        claim.by_seed[seed] = score
        if step not in self._frozen(claim.number).intermediate_values:
            claim.trial.report(mean, step)
        return claim.trial.should_prune()

    def tell(self, claim: Claim, score: float | None, results: Sequence[Result]) -> None:
        """Tell how a trial ended, and release it.

        Args:
            claim: The trial.
            score: Its score; ``None`` if it was pruned.
            results: The results of its cells.
        """
        facts = {
            _BY_SEED: claim.by_seed,
            _CELLS: len(results),
            _FAILED: sum(result.status == FAILED for result in results),
            _SECONDS: round(sum(result.wall_seconds or 0.0 for result in results), 3),
        }
        with self._storage.locked():
            for key, value in facts.items():
                claim.trial.set_user_attr(key, value)
            state = optuna.trial.TrialState.PRUNED if score is None else optuna.trial.TrialState.COMPLETE
            self._study.tell(claim.trial, score, state, skip_if_finished=True)
            claim.release()

    def all(self) -> list[Trial]:
        """List the trials."""
        return [
            self._read(frozen) for frozen in self._study.get_trials(deepcopy=False) if frozen.state in _STATES
        ]

    def choice(self, target: int) -> Choice | None:
        """Return the best trial; ``None`` before as many have ended as there will be, or if all failed.

        Args:
            target: How many trials there will be.
        """
        ended = [trial for trial in self.all() if trial.state != RUNNING]
        best = best_of(ended)
        if len(ended) < target or best is None or best.score is None:
            return None
        return Choice(
            recipe=self.pair.recipe,
            scale=self.pair.scale,
            options=best.options,
            score=round(best.score, 6),
            trial=best.number,
            trials=len(ended),
            pruned=sum(trial.state == PRUNED for trial in ended),
            seeds=self._search.seeds,
            tasks=self._search.tasks,
        )

    def _check_plan(self, plan: dict[str, Any]) -> None:
        before = self._study.user_attrs.get(_PLAN)
        if before is None:
            self._study.set_user_attr(_PLAN, plan)
            return
        for key, value in plan.items():
            if before.get(key) != value:
                raise UserError(
                    f"the search of {self.pair} began with other {key}: {shown(before.get(key))} became "
                    f"{shown(value)}; restore them, give the study another name, or remove "
                    f"'{self._storage.directory}'"
                )

    def _lock(self, number: int) -> filelock.BaseFileLock:
        name = "+".join(quote(part, safe="") for part in (*self.pair, str(number)))
        return filelock.FileLock(self._storage.locks / f"{name}.lock")

    def _claimed(self, trial: optuna.trial.Trial, lock: filelock.BaseFileLock) -> Claim:
        options = {
            option: self._suggest(trial, option, distribution) for option, distribution in self._space.items()
        }
        trial.set_user_attr(_VALUES, options)
        return Claim(trial.number, options, lock, trial)

    def _suggest(self, trial: optuna.trial.Trial, option: str, distribution: Distribution) -> Any:
        # A suggestion depends on the trials before it and on these, not on how often the search was stopped.
        self._study.sampler = self._sampler(trial.number, option)
        if "choices" in distribution:
            texts = [json.dumps(value, default=str) for value in distribution["choices"]]
            return distribution["choices"][texts.index(trial.suggest_categorical(option, texts))]
        low, high, step, log = (distribution[key] for key in ("low", "high", "step", "log"))
        if is_whole(distribution):
            return trial.suggest_int(option, low, high, step=step, log=log)
        return trial.suggest_float(option, low, high, step=step, log=log)

    def _sampler(self, *names: object) -> optuna.samplers.BaseSampler:
        words = "/".join(map(str, (self._search.sampler_seed, *self.pair, *names)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return optuna.samplers.TPESampler(
                seed=zlib.crc32(words.encode()), multivariate=False, constant_liar=True
            )

    def _frozen(self, number: int) -> optuna.trial.FrozenTrial:
        return self._study.get_trials(deepcopy=False)[number]

    def _read(self, frozen: optuna.trial.FrozenTrial) -> Trial:
        values = frozen.intermediate_values
        score = frozen.value if frozen.value is not None else values[max(values)] if values else None
        return Trial(
            number=frozen.number,
            state=_STATES[frozen.state],
            options=frozen.user_attrs.get(_VALUES, {}),
            score=score,
            by_seed=frozen.user_attrs.get(_BY_SEED, {}),
            cells=frozen.user_attrs.get(_CELLS, 0),
            failed_cells=frozen.user_attrs.get(_FAILED, 0),
            seconds=frozen.user_attrs.get(_SECONDS, 0.0),
        )


def best_of(trials: list[Trial]) -> Trial | None:
    """Return the finished trial with the highest score, the first one of equals.

    A trial of which every cell failed does not count.
    """
    scored = [
        (trial.score, -trial.number, trial)
        for trial in trials
        if trial.state == FINISHED and trial.score is not None and trial.failed_cells < trial.cells
    ]
    return max(scored)[-1] if scored else None
