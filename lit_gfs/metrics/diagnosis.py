"""Diagnosis of a run: what its logged scalars say is wrong, since which step, and what to try.

The rules are those of ``docs/collapse.md``. Each is a function of the series alone. Most thresholds are
shares and ratios, so that they hold for networks and returns of any size. All must hold at several
neighbouring points.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from lit_gfs.metrics import learning_rules, network_rules
from lit_gfs.metrics.findings import Finding, Scalars


class Rule(NamedTuple):
    """A rule.

    Attributes:
        name: What it looks for.
        source: What logs its series.
        judge: Returns its findings; ``None`` if the series are missing or too short.
    """

    name: str
    source: str
    judge: Callable[[Scalars], list[Finding] | None]


_MONITOR = "more measurements of --gfs.representation true"

RULES = (
    Rule("features collapsed", _MONITOR, network_rules.collapsed_features),
    Rule("dormant units", _MONITOR, network_rules.dormant_units),
    Rule(
        "starving or exploding layers",
        "more measurements of --gfs.gradient_flow true, and four layers",
        network_rules.uneven_layers,
    ),
    Rule("divergence", "--gfs.nan_guard true", learning_rules.divergence),
    Rule("churn", _MONITOR, learning_rules.churning_policy),
    Rule("learning rate too high", _MONITOR, learning_rules.too_high_rate),
    Rule("evaluation and training apart", "more evaluations", learning_rules.evaluation_apart),
    Rule("return lost", "more evaluations", learning_rules.lost_return),
)
"""All rules, in the order of their findings."""

_TAGS = (
    network_rules.RANK,
    network_rules.DORMANT,
    learning_rules.SKIPPED,
    learning_rules.NONFINITE,
    learning_rules.TD_ERROR,
    learning_rules.CHURN,
    learning_rules.HEAD_CHURN,
    learning_rules.KL,
    learning_rules.EVALUATION,
    learning_rules.TRAINING,
    learning_rules.EPSILON,
)
_OF_LAYERS = (network_rules.NORM, network_rules.DORMANT_LAYER)


def is_read(tag: str) -> bool:
    """Return whether a rule reads the scalar."""
    return tag in _TAGS or tag.startswith(_OF_LAYERS)


def diagnose(scalars: Scalars) -> list[Finding]:
    """Return what the rules find in a run.

    Args:
        scalars: Its series by tag; rules without their series find nothing.
    """
    return [finding for rule in RULES for finding in rule.judge(scalars) or ()]


def not_judged(scalars: Scalars) -> list[Rule]:
    """List the rules whose series are missing or too short."""
    return [rule for rule in RULES if rule.judge(scalars) is None]


def summary_line(scalars: Scalars) -> str:
    """Say in one line how many rules fired, how many did not, and which had too little data to judge."""
    silent = not_judged(scalars)
    fired = len({finding.name for finding in diagnose(scalars)})
    line = f"{fired} of {len(RULES) - len(silent)} rules fired"
    if silent:
        line += f"; not judged: {', '.join(f'{rule.name} (needs {rule.source})' for rule in silent)}"
    return line
