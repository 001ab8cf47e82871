"""What a subcommand besides those of LightningCLI consists of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

from jsonargparse import ArgumentParser, Namespace

from lit_gfs.configuration.parser_errors import one_line
from lit_gfs.errors import UserError


class SubcommandParser(ArgumentParser):
    """A parser that raises a `UserError` with one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message in one line."""
        raise UserError(one_line(message, self)) from ex


class Subcommand(NamedTuple):
    """A subcommand: its help text, its parser, and the function that runs it and returns the exit status."""

    help: str
    parser: Callable[[], ArgumentParser]
    run: Callable[[Namespace], int]
