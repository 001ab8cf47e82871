"""What the argument parser found wrong, told in one line with the nearest valid choice.

jsonargparse explains every alternative that it tried, over many lines. The last alternatives of an optional
argument ("or None") are never what the user meant, so the first concrete complaint is what is told here.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.optim import Optimizer

from lit_gfs.agents.learner import Learner
from lit_gfs.errors import nearest
from lit_gfs.networks import Encoder, Trunk

_KEY = re.compile(r'Parser key "([^"]+)"')
_NESTED = re.compile(r"NestedArg\(key='([^']+)'")
_NOT_ACCEPTED = re.compile(r"Option '([^']+)' is not accepted")
_WRONG_TYPE = re.compile(r"Expected an? (.+?)\. Got value: (.*?)(?: - Expected|$)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NOT_FOUND = re.compile(r"Expected a path but (\S+) either not accessible.*has no attribute")
_AMBIGUOUS = re.compile(r"Multiple subclasses with name (\S+)\. .*ambiguity: (.*?)\. -")
_OURS = re.compile(r"Subtypes: \[<class 'lit_gfs\.callbacks\.[\w.]+\.(\w+)'>, <class 'NoneType'>\]")
_ALTERNATIVES = re.compile(r"Subtypes: \[(.*?)\] Errors:.* Given value: (.*)$")
_UNRECOGNIZED = re.compile(r"[Uu]nrecognized arguments: (\S+)")
_UNKNOWN_KEY = re.compile(r"does not accept (?:option|nested key|key) '([^']+)'")
_MISSING = re.compile(r"the following arguments are required: (.*)")
_SUBCOMMAND = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")


def one_line(message: str, parser: ArgumentParser) -> str:
    """Shorten a jsonargparse message.

    Args:
        message: The parser's own, over several lines.
        parser: The parser that found the error, for the valid keys.

    Returns:
        One line: the key, the value, what was expected, and the nearest valid choice where there is one.
    """
    text = " ".join(message.split())
    places = list(dict.fromkeys(_KEY.findall(text)))
    typed = _NESTED.search(text)
    path = f"{places[0]}.{typed[1]}" if typed and places else ".".join(places)
    named = _named_class(text)
    if found := _NOT_ACCEPTED.search(text):
        key = path if typed else f"{path}.{found[1]}"
        return f"{key} is no known key{nearest(found[1].split('.')[-1], _argument_names(named))}"
    if found := _AMBIGUOUS.search(text):
        return f"{path} is {found[1]!r}, which several classes are called; expected one of {found[2]}"
    if found := _NO_CLASS.search(text) or _NOT_FOUND.search(text):
        expected = f"{named.__name__} or null" if named else "a class"
        return f"{path} is {found[1]!r}; expected {expected}{nearest(found[1], _class_names(named))}"
    if found := _WRONG_TYPE.search(text):
        return f"{path} is {found[2]!r}; expected {_describe(found[1])}{_nearest_literal(found[2], found[1])}"
    if found := _UNRECOGNIZED.search(text):
        option = found[1].partition("=")[0]
        return f"{option} is no known option{nearest(option, _options(parser))}"
    if found := _UNKNOWN_KEY.search(text):
        keys = {option.removeprefix("--").partition(".")[0] for option in _options(parser)}
        return f"{found[1]} is no known key{nearest(found[1].partition('.')[0], keys)}"
    if found := _SUBCOMMAND.search(text):
        choices = re.findall(r"'([^']+)'", found[2])
        return f"{found[1]!r} is no subcommand; expected {', '.join(choices)}{nearest(found[1], choices)}"
    if 'expected "subcommand"' in text:
        return "no subcommand; expected fit, validate or test, as in: fit --config quickstart"
    if found := _MISSING.search(text):
        return f"{found[1]} not given; name a configuration, as in: fit --config quickstart"
    if path and (found := _ALTERNATIVES.search(text)):
        return f"{path} is {found[2]!r}; expected {_describe(found[1])}"
    return text


def _describe(expected: str) -> str:
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", expected):
        return f"one of {literal[1]}"
    return re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", expected).replace("NoneType", "null")


def _nearest_literal(value: str, expected: str) -> str:
    return nearest(value, re.findall(r"'([^']+)'", expected)) if "Literal" in expected else ""


def _known_classes() -> Iterator[type]:
    pending: list[type] = [Learner, LightningDataModule, Trunk, Encoder, Optimizer, Callback]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        yield cls


def _named_class(text: str) -> type | None:
    """Return the class of ours that alone was expected, as under ``gfs.<name>``."""
    found = _OURS.search(text)
    return next((cls for cls in _known_classes() if found and cls.__name__ == found[1]), None)


def _class_names(named: type | None) -> set[str]:
    if named is not None:
        return {named.__name__}
    # The optimizer goes by its full name: a library that may be imported has one of the same name.
    return {cls.__name__ for cls in _known_classes() if not inspect.isabstract(cls)} | {"lit_gfs.optim.Kron"}


def _argument_names(named: type | None) -> set[str]:
    if named is not None:
        return set(inspect.signature(named).parameters)
    classes = [cls for cls in _known_classes() if cls.__module__.startswith(("lit_gfs.", "torch.optim"))]
    return {name for cls in [*classes, Trainer] for name in inspect.signature(cls).parameters}


def _options(parser: ArgumentParser) -> set[str]:
    options: set[str] = set()
    for action in parser._actions:
        options.update(option for option in action.option_strings if option.startswith("--"))
        for subparser in (getattr(action, "_name_parser_map", None) or {}).values():
            options |= _options(subparser)
    return options
