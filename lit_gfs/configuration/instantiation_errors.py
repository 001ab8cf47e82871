"""The cause of an error that a class raised while a configuration was built."""

from __future__ import annotations

import re

from lit_gfs.configuration.config_trust import is_by_default
from lit_gfs.errors import RunFault, UserError

_WRAPPED = re.compile(r"(?:Problem with given class_path |Given value: Namespace\(class_path=)'([^']+)'")


def raised_in(error: BaseException) -> str:
    """Name the module whose code raised an error."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return "" if traceback is None else str(traceback.tb_frame.f_globals.get("__name__", ""))


def foreseen_in(error: BaseException | None) -> UserError | RunFault | None:
    """Return the error of ours that the parser wrapped, if there is one."""
    while error is not None and not isinstance(error, UserError | RunFault):
        error = error.__cause__ or error.__context__
    return error


def refusal_in(error: BaseException | None) -> UserError | None:
    """Return one line about a library's class that refused its arguments or lacks a package.

    An error of the user's own class may be a bug in it, and keeps its traceback.
    """
    named: str | None = None
    while error is not None:
        if found := _WRAPPED.search(str(error)):
            named = found[1]
        elif named and (isinstance(error, ImportError) or is_by_default(named)):
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            return UserError(f"{named} cannot be made: {reason}")
        error = error.__cause__ or error.__context__
    return None
