"""The argument parser's errors in one line, with the nearest valid choice.

jsonargparse explains every alternative that it tried, over many lines. A user never means the last
alternative of an optional argument ("or None"), so the line tells the first concrete complaint.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from types import ModuleType
from typing import Any

from jsonargparse import ArgumentParser

from lit_gfs.configuration.config_trust import refusal
from lit_gfs.configuration.suggestions import meant_options, nearest_option
from lit_gfs.errors import LONGEST_SHOWN, nearest

_KEY = re.compile(r'Parser key "([^"]+)"')
_NESTED = re.compile(r"NestedArg\(key='([^']+)'")
_NOT_IMPORTED = re.compile(r"Importing '([^']+)' is not allowed")
_NOT_A_PATH = re.compile(r"- Expected a path but .*? either not accessible or invalid(?=\s+- )")
_WRONG_CLASS = re.compile(
    r"Expected '([^']+)' to be a (?:sub)?(?:class|function).*? (?:of|returns) (?:<class ')?(\w+)"
)
_NO_SUBCLASS = re.compile(r"Import path does not correspond to a subclass of (\w+).*?Given value: (\S+)")
_NOT_ACCEPTED = re.compile(r"Option '([^']+)' is not accepted")
_WRONG_TYPE = re.compile(r"Expected an? (.+?)\. Got value: (.*?)(?: - Expected|$)")
_NO_CLASS = re.compile(r"Expected a dot import path string: (\S+)")
_NOT_FOUND = re.compile(r"Expected a path but (\S+) either not accessible.*has no attribute")
_AMBIGUOUS = re.compile(r"Multiple subclasses with name (\S+)\. .*ambiguity: (.*?)\. -")
_OURS = re.compile(r"Subtypes: \[<class 'lit_gfs\.callbacks\.[\w.]+\.(\w+)'>, <class 'NoneType'>\]")
# The innermost alternatives: the outer ones only repeat the complaint.
_ALTERNATIVES = re.compile(r".*Subtypes: \[(.*?)\] Errors:.*? Given value: (.*?)(?= - (?:Expected|Not a) |$)")
_PLAIN = re.compile(r"<class '(?:float|int|bool|str|dict|list)'>|\b(?:dict|list)\[|Literal")
_UNRECOGNIZED = re.compile(r"[Uu]nrecognized arguments: (\S+)")
_UNKNOWN_KEY = re.compile(r"does not accept (?:option|nested key|key) '([^']+)'")
_MISSING = re.compile(r"the following arguments are required: ([\w., ]+?)(?= - |$)")
_NO_VALUE = re.compile(r"argument (?:\S+/)?(--\S+): expected one argument")
_NO_GROUP = re.compile(r"Unable to load config ['\"](.*?)['\"]")
_RESTRICTED = re.compile(
    r"Not of type (PositiveInt|NonNegativeInt): (?:invalid literal .*?: '(.*?)'|(\S+) does not conform)"
)
_RESTRICTIONS = {
    "PositiveInt": "a whole number of at least 1",
    "NonNegativeInt": "a whole number of at least 0",
    "PositiveFloat": "a number above 0",
}
_EMPTY = re.compile(r"(Given value|Got value|import path string): *(?=\n|$)")
_SUBCOMMAND = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)")


def one_line(
    message: str, parser: ArgumentParser, find_options: Callable[[], Collection[str]] | None = None
) -> str:
    """Shorten a jsonargparse message.

    Args:
        message: The parser's own, over several lines.
        parser: The parser that found the error, for the valid keys.
        find_options: Lists the full names of all options, those of chosen classes included; ``None`` takes
            the parser's.

    Returns:
        One line: the key, the value, what was expected, and the nearest valid choice where there is one.
    """
    whole = " ".join(_EMPTY.sub(r"\1: ''", message).split())
    text = _NOT_A_PATH.sub("", whole)
    places = list(dict.fromkeys(_KEY.findall(text)))
    typed = _NESTED.search(text)
    path = f"{places[0]}.{typed[1]}" if typed and places else ".".join(places)
    ours = _OURS.search(text)  # the class of ours that alone was expected, as under gfs.<name>
    named = _classes().known_class(ours[1]) if ours else None
    if found := _NOT_IMPORTED.search(text):
        return refusal(path, found[1])
    if found := _NOT_ACCEPTED.search(text):
        key = path if typed else f"{path}.{found[1]}"
        name = found[1].split(".")[-1]
        options = find_options() if find_options else set()
        below = {option for option in options if option.startswith(f"{key.rpartition('.')[0]}.")}
        # An argument of the same name belongs to another class.
        others = _classes().argument_names(named) - {name}
        return f"{key} is no known key{meant_options(name, below) or nearest(name, others)}"
    if (found := _NO_GROUP.search(text)) and places:
        return f"{places[0]} is {found[1]!r}; expected options below it, as in: --{places[0]}.<option>"
    if found := _AMBIGUOUS.search(text):
        return f"{path} is {found[1]!r}, which several classes are called; expected one of {found[2]}"
    if found := _RESTRICTED.search(text):
        return f"{path} is {found[2] or found[3]!r}; expected {_RESTRICTIONS[found[1]]}"
    alternatives = _ALTERNATIVES.match(text)
    takes_plain = alternatives is not None and _PLAIN.search(alternatives[1]) is not None
    if (found := _NO_CLASS.search(text) or _NOT_FOUND.search(whole)) and not takes_plain:
        value = found[1].strip("'")
        if kind := _classes().KINDS_OF_KEYS.get(path.rpartition(".")[2]):
            close = _classes().nearest_class(value, kind)
            return f"{path} is {value!r}; expected a class of {kind.__name__}{close}"
        expected = f"{named.__name__} or null" if named else "a class"
        return f"{path} is {value!r}; expected {expected}{nearest(value, _classes().class_names(named))}"
    if found := _WRONG_CLASS.search(text):
        return f"{path} is {found[1]!r}; expected a class of {found[2]}"
    if found := _NO_SUBCLASS.search(text):
        return f"{path} is {found[2]!r}; expected a class of {found[1]}"
    if found := _WRONG_TYPE.search(text):
        value = found[2].strip("'")
        return f"{path} is {value!r}; expected {_describe(found[1])}{_nearest_literal(value, found[1])}"
    if (found := _UNRECOGNIZED.search(text)) and typed and places:
        close = nearest(typed[1].partition(".")[0], _classes().argument_names(named))
        return f"--{path} is no known option{close}"
    if found:
        option = found[1].partition("=")[0]
        options = find_options() if find_options else {each.lstrip("-") for each in _options(parser)}
        return f"{option} is no known option{nearest_option(option, options)}"
    if found := _UNKNOWN_KEY.search(text):
        keys = {option.removeprefix("--").partition(".")[0] for option in _options(parser)}
        return f"{found[1]} is no known key{nearest(found[1].partition('.')[0], keys)}"
    if found := _SUBCOMMAND.search(text):
        choices = re.findall(r"'([^']+)'", found[2])
        return f"{found[1]!r} is no subcommand; expected {', '.join(choices)}{nearest(found[1], choices)}"
    if 'expected "subcommand"' in text:
        return "no subcommand; expected fit, validate or test, as in: fit --config quickstart"
    if found := _NO_VALUE.search(text):
        return f"{found[1]} has no value"
    if found := _MISSING.search(text):
        if path:
            return f"{path}.{found[1]} has no value; expected one"
        subcommand, dot, _ = found[1].partition(".")
        if not dot:
            return f"{found[1]} not given; {parser.prog} --help says what it is"
        names = found[1].replace(f"{subcommand}.", "").replace(", ", " and ")
        return f"{names} not given; name a configuration, as in: {subcommand} --config quickstart"
    if path and alternatives:
        if misspelt := _classes().misspelt_part(path.rpartition(".")[2], alternatives[2]):
            return f"{path} is {misspelt}"
        return f"{path} is {_typed_value(alternatives[2])!r}; expected {_describe(alternatives[1])}"
    return text


def with_whole_option(line: str, arguments: Sequence[str]) -> str:
    """Name the option that has no value as the user wrote it: the parser knows only its first part.

    Args:
        line: A line of `one_line`.
        arguments: The command line.
    """
    option, found, _ = line.partition(" has no value")
    for index, argument in enumerate(arguments):
        is_last = arguments[index + 1 : index + 2] == [] or arguments[index + 1].startswith("--")
        if found and is_last and argument.startswith(f"{option}.") and "=" not in argument:
            return f"{argument} has no value"
    return line


def without_contents(line: str, arguments: Sequence[str], contents: Sequence[Mapping[str, Any]]) -> str:
    """Name a file instead of its content, where the option's value was its path.

    Args:
        line: The line that `one_line` returned.
        arguments: The command line.
        contents: The contents of the configurations.

    Returns:
        The line, with the path in the place of the content that the parser read there.
    """
    typed = []
    for argument, following in pairwise([*arguments, ""]):
        option, equals, value = argument.partition("=")
        typed.append((option.removeprefix("--"), value if equals else following))
    place, verb, rest = line.partition(" is ")
    for key, value in [*typed, *(item for content in contents for item in content.items())]:
        is_replaced = verb and key == place and isinstance(value, str) and not rest.startswith(repr(value))
        if is_replaced and os.path.isfile(value):
            return (
                f"{place} is {value!r}, a file of something else; expected a class, or a file that names one"
            )
    return line


def _typed_value(shown: str) -> str:
    value = re.sub(r"^NestedArg\(key='[^']+', val=(.*)\)$", r"\1", shown).strip("'")
    return value if len(value) <= LONGEST_SHOWN else f"{value[: LONGEST_SHOWN - 3]}..."


def _describe(expected: str) -> str:
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", expected):
        return f"one of {literal[1]}"
    names = re.sub(r"<class '([\w.]+)'>", r"\1", expected).replace("NoneType", "null")
    names = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", names)
    for name, meaning in _RESTRICTIONS.items():
        names = names.replace(name, meaning)
    return names


def _nearest_literal(value: str, expected: str) -> str:
    return nearest(value, re.findall(r"'([^']+)'", expected)) if "Literal" in expected else ""


def _classes() -> ModuleType:
    # Imported late: a parser whose options take no class does without PyTorch and Lightning.
    from lit_gfs.configuration import known_classes

    return known_classes


def _options(parser: ArgumentParser) -> set[str]:
    options: set[str] = set()
    for action in parser._actions:
        options.update(option for option in action.option_strings if option.startswith("--"))
        for subparser in (getattr(action, "_name_parser_map", None) or {}).values():
            options |= _options(subparser)
    return options
