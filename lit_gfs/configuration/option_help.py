"""The help of ``fit``, ``validate`` and ``test``: our options first, with the values that they have."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, NamedTuple

import docstring_parser
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import LightningDataModule, Trainer

from lit_gfs.agents.learner import Learner
from lit_gfs.configuration.known_classes import buildable
from lit_gfs.configuration.named_classes import NamedClass, named_classes
from lit_gfs.configuration.suggestions import nearest_option
from lit_gfs.errors import UserError
from lit_gfs.runs.run_directory import RunDirectory

_FIRST_SENTENCE = re.compile(r"(?<=\.)\s+(?=[A-Z`\"'])")
_DEFAULT = re.compile(r"\s*\(default: [^)]*\)\.?$")
_MARKUP = re.compile(r"``|:\w+:(?=`)")
_WIDTH = 110
_LONGEST_VALUE = 60
_LONGEST_TYPE = 80
_GIVEN = {"model.env_spec"}
"""Options that the program sets by itself."""
_GENERAL = {
    "config": "A file, or a name that `lit_gfs configs` lists. Later ones override earlier ones.",
    "ckpt_path": "A checkpoint, a directory of checkpoints, or last: fit resumes from it, validate and test "
    "evaluate it. Its configuration lies beside it.",
    "seed_everything": "Seed of everything random.",
    "print_config": "Print the resolved configuration, and run nothing.",
    "help": "Show this help, or only the options with a word in their name, as in: --help gfs.path_init",
}
"""Texts for options that LightningCLI describes for other purposes."""


class Option(NamedTuple):
    """An option in the help.

    Attributes:
        name: Its full name, as in ``model.trunk.depth``.
        value: The value that it has, as in YAML; empty if it has none.
        text: Its meaning.
        type: Its type, in words; may be empty.
    """

    name: str
    value: str
    text: str
    type: str = ""


class Section(NamedTuple):
    """Options under a heading."""

    heading: str
    options: list[Option]


def without_help(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """Take ``--help`` and the word behind it out of a command line.

    Args:
        arguments: The command line, beginning with the subcommand.

    Returns:
        The other arguments, and the word: empty if there is none, ``None`` if nobody asks for help.
    """
    for index, argument in enumerate(arguments):
        option, _, word = argument.partition("=")
        if index and option in ("-h", "--help"):
            others = [*arguments[:index], *arguments[index + 1 :]]
            if not word and len(others) > index and not others[index].startswith("-"):
                word = others.pop(index)
            return others, word.removeprefix("--")
    return list(arguments), None


def help_text(
    parser: ArgumentParser, config: Namespace, interventions: Mapping[str, type], about: str = ""
) -> str:
    """Return the help of a subcommand.

    Args:
        parser: The subcommand's parser.
        config: The parsed configuration; without model and data, their options are unknown.
        interventions: Classes by the key under ``gfs``, in order.
        about: A part of the names of the options to show.

    Raises:
        UserError: If no option has it in its name.
    """
    found = sections(parser, config, interventions)
    width = min(shutil.get_terminal_size((_WIDTH, 24)).columns, _WIDTH)
    text = shown(found, about, width)
    if not text:
        names = {option.name for section in found for option in section.options}
        raise UserError(f"no option has {about!r} in its name{nearest_option(about, names)}")
    return f"usage: {parser.prog.replace(' [options]', '')} --config NAME [--OPTION VALUE ...]\n\n{text}"


def sections(parser: ArgumentParser, config: Namespace, interventions: Mapping[str, type]) -> list[Section]:
    """Return all options, ours first.

    Args:
        parser: The subcommand's parser.
        config: The parsed configuration; without model and data, their options are unknown.
        interventions: Classes by the key under ``gfs``, in order.
    """
    found = [Section("options", list(_general(parser, config))), _group("run", RunDirectory, config)]
    by_place = {named.place.removesuffix("."): named for named in named_classes(config)}
    for group, base in (("data", LightningDataModule), ("model", Learner)):
        parts = {place: each for place, each in by_place.items() if f"{place}.".startswith(f"{group}.")}
        found += [_part(place, named, parts) for place, named in parts.items()]
        if not parts:
            text = f"One of {', '.join(buildable(base))}. With --config, this help lists its options."
            found.append(Section(group, [Option(group, "", text)]))
    for key, cls in interventions.items():
        place = f"gfs.{key}"
        section = _part(place, by_place.get(place) or NamedClass(place, cls, {}, {}), {})
        state = "on" if place in by_place else "off"
        switch = Option(place, state, "true switches it on, false switches it off.")
        found.append(Section(section.heading, [switch, *section.options]))
    return [*found, _group("trainer", Trainer, config)]


def shown(found: Sequence[Section], containing: str = "", width: int = _WIDTH) -> str:
    """Return the text of all sections, or of the options that have a word in their name.

    Args:
        found: The sections.
        containing: The word.
        width: Columns of the terminal.
    """
    lines: list[str] = []
    for heading, options in found:
        chosen = [option for option in options if containing in option.name]
        if chosen:
            lines += ["", *textwrap.wrap(heading, width)]
        for option in chosen:
            lines.append(f"  --{option.name} {option.value}".rstrip())
            kind = f" ({option.type})" if 0 < len(option.type) <= _LONGEST_TYPE else ""
            indent = " " * 8
            lines += textwrap.wrap(
                f"{option.text}{kind}".strip(), width, initial_indent=indent, subsequent_indent=indent
            )
    return "\n".join(lines[1:])


def _general(parser: ArgumentParser, config: Namespace) -> Iterator[Option]:
    """Yield the options outside of all groups."""
    groups = {action.dest.partition(".")[0] for action in parser._actions if "." in action.dest}
    for action in parser._actions:
        name = action.option_strings[-1].removeprefix("--") if action.option_strings else ""
        if name.isidentifier() and name not in {*groups, "model", "data"}:
            value = config.get(name) if name not in ("config", "help", "print_config", "trust") else None
            text = _GENERAL.get(name) or (action.help or "")
            yield Option(name, "" if value is None else _in_yaml(value), text)


def _group(group: str, cls: type, config: Namespace) -> Section:
    return _part(group, NamedClass(group, cls, vars(config[group]), {}), {})


def _part(place: str, named: NamedClass, parts: Mapping[str, NamedClass]) -> Section:
    """Return the options of a class; those that are classes with a section of their own show their name."""
    texts = dict(_texts(named.cls))
    options = []
    for name, parameter in named.parameters.items():
        full = f"{place}.{name}"
        is_given = parameter.default is inspect.Parameter.empty and name not in named.arguments
        if full in _GIVEN or is_given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue  # another object of the program gives it its value
        if full in parts:
            value = parts[full].cls.__name__
        else:
            value = _in_yaml(named.arguments.get(name, parameter.default))
        options.append(Option(full, value, texts.get(name, ""), _kind(named.hints.get(name))))
    is_trainer = named.cls is Trainer  # its own summary is about all of its arguments
    summary = "Lightning's Trainer" if is_trainer else f"{named.cls.__name__}. {_summary(named.cls)}"
    return Section(f"{place}: {summary}", options)


def _summary(cls: type) -> str:
    return _plain(docstring_parser.parse(cls.__doc__ or "").short_description)


def _texts(cls: type) -> Iterator[tuple[str, str]]:
    """Yield the meaning of each argument, of base classes first."""
    for base in reversed(inspect.getmro(cls)):
        for documented in (base.__doc__, vars(base)["__init__"].__doc__ if "__init__" in vars(base) else ""):
            for each in docstring_parser.parse(documented or "").params:
                text = _plain(each.description)
                if not base.__module__.startswith("lit_gfs."):  # libraries tell stories
                    text = _DEFAULT.sub("", _FIRST_SENTENCE.split(text)[0])
                yield each.arg_name, text


def _plain(text: str | None) -> str:
    return _MARKUP.sub("", " ".join((text or "").split()))


def _in_yaml(value: Any) -> str:
    if isinstance(value, Namespace):
        value = value.get("class_path", value.as_dict())
    if inspect.isclass(value) or inspect.isroutine(value):
        return str(value.__name__)
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
    except yaml.YAMLError:
        return ""
    return text if len(text) <= _LONGEST_VALUE else f"{text[: _LONGEST_VALUE - 3]}..."


def _kind(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) in (typing.Union, UnionType):
        kinds = [_kind(each) for each in typing.get_args(hint)]
        return " or ".join(kinds) if all(kinds) else ""
    if hint is NoneType:
        return "null"
    return hint.__name__ if hint in (bool, int, float, str) else ""
