"""Classes that a configuration may name, and the arguments that they accept, for suggestions."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from torch.optim import Optimizer

from lit_gfs.agents.learner import Learner
from lit_gfs.errors import nearest
from lit_gfs.networks import Encoder, Trunk
from lit_gfs.utils.signatures import accepted_parameters

KINDS_OF_KEYS: dict[str, type] = {
    "trunk": Trunk,
    "critic_trunk": Trunk,
    "encoder": Encoder,
    "optimizer": Optimizer,
}
"""Base classes by the option that takes them."""
_KINDS_OF_PARTS: dict[str, type] = {"callbacks": Callback, "logger": Logger}
"""Base classes of the Trainer's parts, by its option."""
_FEW = 8
"""The most classes that a message lists by name."""


def known_class(name: str) -> type | None:
    """Return the class of that name, or ``None``."""
    return next((cls for cls in _known_classes() if cls.__name__ == name), None)


def class_names(named: type | None) -> set[str]:
    """Return the name of a class, or the names of all known classes that can be built."""
    if named is not None:
        return {named.__name__}
    # Kron by its full name: a library that may be imported has an optimizer of the same name.
    return {cls.__name__ for cls in _known_classes() if not inspect.isabstract(cls)} | {"lit_gfs.optim.Kron"}


def argument_names(named: type | None) -> set[str]:
    """Return the names of a class's arguments, or those of all known classes and of the Trainer."""
    if named is not None:
        return set(accepted_parameters(named))
    classes = [cls for cls in _known_classes() if cls.__module__.startswith(("lit_gfs.", "torch.optim"))]
    return {name for cls in [*classes, Trainer] for name in accepted_parameters(cls)}


def nearest_class(value: str, base: type) -> str:
    """Suggest subclasses for a misspelt one, as `lit_gfs.errors.nearest` does; list them if they are few."""
    names = _names_of(base) | ({"Kron"} if base is Optimizer else set())
    close = nearest(value.rpartition(".")[2], names)
    if not close and len(names) <= _FEW:
        close = f": {', '.join(sorted(names))}"
    # By its full name: a library that may be imported has an optimizer of the same name.
    return close.replace("'Kron'", "'lit_gfs.optim.Kron'")


def misspelt_part(key: str, shown: str) -> str:
    """Describe the first class in a value that nothing is called, if one of another name is near.

    Args:
        key: Last part of the option, such as ``callbacks``.
        shown: The user's value: a name, or text with ``'class_path': 'Name'`` in it.

    Returns:
        The name, what was expected and the nearest choice; an empty string where there is none.
    """
    kind = _KINDS_OF_PARTS.get(key)
    if kind is None:
        return ""
    for name in re.findall(r"'class_path': '([\w.]+)'", shown) or [shown.strip("'")]:
        if name.rpartition(".")[2] not in _names_of(kind) and (close := nearest_class(name, kind)):
            return f"{name!r}; expected a class of {kind.__name__}{close}"
    return ""


def buildable(base: type) -> list[str]:
    """Return the names of our own subclasses, without those that are bases of others."""
    classes = {cls for cls in _subclasses(base) if cls.__module__.startswith("lit_gfs.")}
    return sorted(cls.__name__ for cls in classes - {each for cls in classes for each in cls.__bases__})


def _known_classes() -> Iterator[type]:
    return _subclasses(Learner, LightningDataModule, Trunk, Encoder, Optimizer, Callback)


def _names_of(base: type) -> set[str]:
    return {cls.__name__ for cls in _subclasses(base) if cls is not base and not inspect.isabstract(cls)}


def _subclasses(*bases: type) -> Iterator[type]:
    pending = list(bases)
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        yield cls
