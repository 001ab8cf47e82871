"""Which packages a configuration may name classes of.

To import a module is to run its code, and a configuration may come from somebody else, or lie beside a
checkpoint that does. So it may name classes of the libraries that this one is built on, and of what the user
trusts: by ``--trust package`` on the command line, or by `trust` in a program of one's own. No configuration
can say it for itself.
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
"""Packages that every configuration may name classes of."""

# Modules of these packages that act when they are imported.
_SCRIPTS = (
    "lit_gfs.__main__",
    "torch._inductor.compile_worker.__main__",
    "torch.utils.model_dump.__main__",
    "torchrl.render.__main__",
)
_OPTION = "--trust"


def trust(*packages: str) -> None:
    """Let configurations name classes of more packages, for as long as the process lives.

    Args:
        packages: Packages, or modules of them: ``my_package``, ``my_package.networks``.

    Raises:
        UserError: If one of them is no name of a package.
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
    """Trust packages for a while; those that were trusted before stay so.

    Args:
        packages: As in `trust`.
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
    """Take ``--trust package[,package]`` out of a command line; it may be given several times.

    Args:
        arguments: What was typed.

    Returns:
        The other arguments, and the packages.

    Raises:
        UserError: If it has no value.
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
    """An option that the help shows, and that leaves nothing in a configuration: it is taken out before."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str, metavar: str) -> None:
        super().__init__(
            option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, help=help, metavar=metavar
        )

    def __call__(self, *arguments: Any) -> None:
        """Do nothing."""


def add_trust_option(parser: jsonargparse.ArgumentParser) -> None:
    """Have a parser's help show ``--trust``, which `take_trust` reads."""
    parser.add_argument(
        _OPTION,
        action=_TypedOnly,
        metavar="PACKAGE[,PACKAGE]",
        help="More packages that configurations may name classes of; only to be typed.",
    )


def trust_options(packages: Sequence[str]) -> list[str]:
    """Return the arguments that have another command line trust the same packages."""
    return [f"{_OPTION}={','.join(packages)}"] if packages else []


def is_by_default(path: str) -> bool:
    """Say whether an import path is of a library that every configuration may name, besides this one."""
    return path.partition(".")[0] in set(LIBRARIES) - {"lit_gfs"}


def refusal(place: str, path: str) -> str:
    """Say in one line that a configuration may not name something, and what to do about it."""
    package = re.split(r"[.:]", path)[0]
    return (
        f"{place} is {path!r}, which is not imported; expected something of lightning, torch, torchrl, "
        f"tensordict or lit_gfs; if you trust that package, type {_OPTION} {package}"
    )


# Enforced before anything is imported that a value names, and again on where that is defined: a path such as
# torch.os.system does not pass. A dict with a class_path stays a dict where any value is accepted.
jsonargparse.set_parsing_settings(
    import_path_denylist=["*", *_SCRIPTS],
    import_path_allowlist=list(LIBRARIES),
    instantiate_subclass_spec_in_any=False,
)
