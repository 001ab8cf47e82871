"""The parser of a subcommand besides those of LightningCLI."""

from __future__ import annotations

from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from lit_gfs.configuration.parser_errors import one_line
from lit_gfs.errors import UserError


class SubcommandParser(ArgumentParser):
    """A parser that raises a `UserError` with one line."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise the message in one line."""
        raise UserError(one_line(message, self)) from ex
