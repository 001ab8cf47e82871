"""Objects that remember the arguments of their constructor, so that a run's configuration can name them."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, Self


class RemembersArguments:
    """Base of the classes whose objects are written into a run's ``config.yaml``.

    A subclass forwards options to its bases, so only the outermost call shows all of them. That call also
    calls ``__new__``.
    """

    given_arguments: dict[str, Any]
    """The arguments that the constructor was called with, by name."""

    def __new__(cls, *arguments: Any, **options: Any) -> Self:
        """Note the arguments; the constructor reports those that do not fit."""
        self = super().__new__(cls)
        given: dict[str, Any] = {}
        # Copying and unpickling also call this, without arguments, and restore the attribute afterwards.
        with contextlib.suppress(TypeError):
            bound = inspect.signature(cls.__init__).bind_partial(self, *arguments, **options)
            for name, value in list(bound.arguments.items())[1:]:
                kind = bound.signature.parameters[name].kind
                given.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        # Modules of PyTorch accept attributes only after their constructor has run.
        self.__dict__["given_arguments"] = given
        return self
