"""The suites of environments, each found by the prefix of its ids."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from lit_gfs.envs.auto_reset import AutoResetEnv

SUITES: dict[str, str] = {
    "ALE/<Game>-v5": "lit_gfs.envs.atari",
    "MinAtar/<Game>-v1": "lit_gfs.envs.minatar",
    "dm_control/<domain>-<task>-v0": "lit_gfs.envs.dm_control",
    "tensor/<id>": "lit_gfs.envs.tensor.suite",
}
"""For each suite, the form of its ids and the module that declares it, as a `Suite` named ``SUITE``.

A new suite is one module and one line here. The prefix of all its ids is the part of the form before ``<``.
"""

_WITHOUT_PREFIX = "lit_gfs.envs.gymnasium"
"""The suite of all other ids."""


@dataclass(frozen=True)
class Suite:
    """Environments of one kind; one class serves each id.

    Attributes:
        ids: Lists all ids.
        env_class: Returns the class that serves an id. It is called with the id, the number of environments,
            and keyword-only arguments: ``seed``, ``render`` and the options of the suite.
    """

    ids: Callable[[], Collection[str]]
    env_class: Callable[[str], type[AutoResetEnv]]

    def has(self, env_id: str) -> bool:
        """Say whether the suite has an environment of this id."""
        return env_id in self.ids()

    def options(self, env_id: str) -> list[str] | None:
        """List the options that an environment takes; ``None`` if it takes any."""
        return list(_keyword_only(self.env_class(env_id)))

    def default_options(self, env_id: str) -> dict[str, Any]:
        """Return the options of an environment with their defaults; ``render`` is not among them."""
        defaults = _keyword_only(self.env_class(env_id))
        del defaults["render"]
        return defaults


def find_suite(env_id: str) -> Suite:
    """Return the suite of an id; this imports only that suite."""
    module = next((SUITES[form] for form in SUITES if env_id.startswith(_prefix(form))), _WITHOUT_PREFIX)
    return _load(module)


def has_prefix(env_id: str) -> bool:
    """Say whether an id begins with the prefix of a suite."""
    return env_id.startswith(tuple(map(_prefix, SUITES)))


def all_ids() -> list[str]:
    """List the ids of all suites; this imports them."""
    return [env_id for module in (_WITHOUT_PREFIX, *SUITES.values()) for env_id in _load(module).ids()]


def id_forms() -> str:
    """Describe the ids that there are, for messages."""
    *forms, last = map(repr, SUITES)
    return f"{', '.join(['a gymnasium id', *forms])} or {last}"


def _prefix(form: str) -> str:
    return form.partition("<")[0]


def _load(module: str) -> Suite:
    return importlib.import_module(module).SUITE


def _keyword_only(env_class: type[AutoResetEnv]) -> dict[str, Any]:
    """Return the keyword-only arguments of a constructor, but for the seed, with their defaults."""
    parameters = inspect.signature(env_class.__init__).parameters.values()
    return {
        each.name: each.default
        for each in parameters
        if each.kind is each.KEYWORD_ONLY and each.name != "seed"
    }
