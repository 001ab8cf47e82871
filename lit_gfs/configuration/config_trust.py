"""Trusted packages, whose classes a configuration may name.

Importing a module runs its code, and a configuration may come from an unknown source, also next to a
checkpoint. So a configuration may only name classes of the libraries that this package builds on, and of
packages that the user trusts. The user trusts a package with ``--trust package`` on the command line, or with
`trust` in a program. A configuration cannot trust packages itself.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jsonargparse

from lit_gfs.errors import UserError
from lit_gfs.utils.trust import TRUSTED

LIBRARIES = (
    "lightning",
    "pytorch_lightning",
    "lightning_fabric",
    "torch",
    "torchrl",
    "tensordict",
    "lit_gfs",
)
"""Packages whose classes every configuration may name."""

# Modules of these packages with side effects on import.
_SCRIPTS = (
    "lit_gfs.__main__",
    "torch._inductor.compile_worker.__main__",
    "torch.utils.model_dump.__main__",
    "torchrl.render.__main__",
)
_OPTION = "--trust"


def trust(*packages: str) -> None:
    """Trust more packages until the end of the process.

    Args:
        packages: Names of packages or modules, such as ``my_package`` or ``my_package.networks``.

    Raises:
        UserError: If a name is not a valid package name.
    """
    for package in packages:
        if not all(part.isidentifier() for part in package.split(".")):
            raise UserError(f"{_OPTION} {package!r} is no package; expected names such as my_package")
    try:
        jsonargparse.set_parsing_settings(import_path_allowlist=list(packages))
    except ValueError as error:
        raise UserError(f"{_OPTION} {', '.join(packages)}: {error}") from error
    TRUSTED.update(packages)


@contextlib.contextmanager
def trusting(packages: Sequence[str]) -> Iterator[None]:
    """Trust packages within the context; packages that were already trusted remain trusted.

    Args:
        packages: Names as in `trust`.
    """
    added = [package for package in packages if package not in TRUSTED]
    trust(*added)
    try:
        yield
    finally:
        TRUSTED.difference_update(added)
        jsonargparse.set_parsing_settings(
            import_path_denylist=[package for package in added if package not in LIBRARIES]
        )


def take_trust(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Remove all ``--trust package[,package]`` options from a command line.

    Args:
        arguments: Arguments of the command line.

    Returns:
        The other arguments, and the packages.

    Raises:
        UserError: If an option has no value.
    """
    others: list[str] = []
    packages: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        option, equals, value = argument.partition("=")
        if option != _OPTION:
            others.append(argument)
            continue
        named = re.findall(r"[^\s,\[\]'\"]+", value if equals else next(remaining, ""))
        if not named or named[0].startswith("--"):
            raise UserError(f"{_OPTION} has no value; expected a package, as in: {_OPTION} my_package")
        packages += named
    return others, packages


class _TypedOnly(argparse.Action):
    """An option for the help text only; it is removed from the command line before parsing."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str, metavar: str) -> None:
        super().__init__(
            option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, help=help, metavar=metavar
        )

    def __call__(self, *arguments: Any) -> None:
        """Do nothing; the option has no value in a configuration."""


def add_trust_option(parser: jsonargparse.ArgumentParser) -> None:
    """Add ``--trust`` to the help of a parser; `take_trust` reads the option."""
    parser.add_argument(
        _OPTION,
        action=_TypedOnly,
        metavar="PACKAGE[,PACKAGE]",
        help="More packages that configurations may name classes of; only to be typed.",
    )


def trust_options(packages: Sequence[str]) -> list[str]:
    """Return the command-line arguments that trust these packages."""
    return [f"{_OPTION}={','.join(packages)}"] if packages else []


def is_by_default(path: str) -> bool:
    """Return whether an import path belongs to one of `LIBRARIES` other than this package."""
    return path.partition(".")[0] in set(LIBRARIES) - {"lit_gfs"}


def refusal(place: str, path: str) -> str:
    """Return a one-line message about an import path that is not trusted, with advice."""
    package = re.split(r"[.:]", path)[0]
    return (
        f"{place} is {path!r}, which is not imported; expected something of lightning, torch, torchrl, "
        f"tensordict or lit_gfs; if you trust that package, type {_OPTION} {package}"
    )


# jsonargparse checks an import path before the import, and then the module that defines the imported object.
# So it rejects paths such as torch.os.system. For arguments of any type, a dict with a class_path stays a
# dict.
jsonargparse.set_parsing_settings(
    import_path_denylist=["*", *_SCRIPTS],
    import_path_allowlist=list(LIBRARIES),
    instantiate_subclass_spec_in_any=False,
)
