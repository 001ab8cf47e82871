"""Parsers of the command line that all tests of a process share: one takes half as long to make as to use."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.cli import LightningCLI

from lit_gfs.cli import GradientFlowCLI

PARTS = ("parser", "_subcommand_parsers", "_subcommand_method_arguments")
_make = LightningCLI.setup_parser
_made: dict[Any, dict[str, Any]] = {}


def share_parsers(patch: pytest.MonkeyPatch) -> None:
    """Have commands with the same options take the same parser."""
    patch.setattr(GradientFlowCLI, "setup_parser", _setup_parser)


def forget_commands() -> None:
    """Let go of the agents and the environments of earlier commands, which a parser would keep."""
    for parts in _made.values():
        parts["parser"]._instantiators = None


def _setup_parser(cli: GradientFlowCLI, *arguments: Any) -> None:
    made_of = (type(cli).add_arguments_to_parser, *cli.subcommands(), *cli.interventions.items())
    if made_of not in _made:
        _make(cli, *arguments)
        _made[made_of] = {name: getattr(cli, name) for name in PARTS}
    vars(cli).update(_made[made_of])
