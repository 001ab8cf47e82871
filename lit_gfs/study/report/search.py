"""The part of a report about the search: the chosen options, the seeds that tuned, and those that confirm."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from lit_gfs.study.planning.plan import Study
from lit_gfs.study.report.page import decimals, section, table

TITLE = "Search"
_COLUMNS = ["recipe", "scale", "chosen options", "score of the search", "trials"]


def search_section(study: Study) -> str:
    """Make the section; an empty string if the study has no search.

    Args:
        study: The plan, with its choices.
    """
    search = study.search
    if search is None:
        return ""
    rows = [
        [
            escape(choice.recipe),
            escape(choice.scale),
            "<br>".join(
                f"<code>{escape(name)} = {_value(each)}</code>" for name, each in choice.options.items()
            ),
            decimals(choice.score),
            f"{choice.trials}, {choice.pruned} of them pruned; number {choice.trial} was best",
        ]
        for choice in search.chosen
    ]
    return section(
        "search",
        TITLE,
        f"The seeds {_listed(search.seeds)} tuned the options below, on {escape(_listed(search.tasks))}. "
        "They are in no other figure of this page: the seeds "
        f"{_listed(study.factors['seed'])} confirm. The score of the search is the mean normalized score of "
        "the best trial. It is too high, because it is the best of many.",
        table(_COLUMNS, rows) if rows else "<p>Nothing has been chosen yet.</p>",
    )


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(str(value))
