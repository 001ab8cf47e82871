"""Switches of interventions: every spelling comes to one of the parser's two forms."""

from __future__ import annotations

from typing import Any

import pytest

from lit_gfs.callbacks import NaNGuard, PathSensitiveInit, TemporalGradientClipping
from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.switches import options_of, with_switches, with_typed_switches
from lit_gfs.errors import UserError

KEYS = {
    "nan_guard": NaNGuard,
    "path_init": PathSensitiveInit,
    "temporal_clipping": TemporalGradientClipping,
}
ALL_OFF = [f"--gfs.{key}=null" for key in KEYS]


class MyClipping(TemporalGradientClipping):
    """An intervention of somebody else, known by its name."""


def typed(*arguments: str, contents: list[Any] | None = None) -> list[str]:
    return with_typed_switches(arguments, [with_switches(content) for content in contents or []], KEYS)


@pytest.mark.parametrize("on", [True, "on", "On", "yes", "true", {}])
def test_a_word_in_a_file_switches_on(on: Any) -> None:
    assert with_switches({"gfs": {"path_init": on}}) == {"gfs": {"path_init": {}}}
    assert with_switches({"gfs.path_init": on, "threads": 1}) == {"gfs": {"path_init": {}}, "threads": 1}


@pytest.mark.parametrize("off", [False, "off", "OFF", "no", "false", None])
def test_a_word_in_a_file_switches_off(off: Any) -> None:
    assert with_switches({"gfs": {"path_init": off}}) == {"gfs": {"path_init": None}}
    assert with_switches({"gfs.path_init": off}) == {"gfs": {"path_init": None}}
    assert with_switches({"gfs": off}) == {"gfs": None}


@pytest.mark.parametrize(
    "content", [None, 3, "gfs", ["gfs"], {"model": {"gfs": True}}, {"gfs": {"path_init": {"mirrored": True}}}]
)
def test_everything_else_in_a_file_stays(content: Any) -> None:
    assert with_switches(content) == content


def test_dotted_keys_join_those_below_gfs() -> None:
    content = {
        "gfs.temporal_clipping.init_args.decay": 0.5,
        "gfs.temporal_clipping": True,
        "gfs": {"path_init": {"growth": 2}},
        "gfs.path_init.mirrored": True,
    }
    assert with_switches(content) == {
        "gfs": {
            "path_init": {"growth": 2, "mirrored": True},
            "temporal_clipping": {"init_args": {"decay": 0.5}},
        }
    }
    assert content["gfs"] == {"path_init": {"growth": 2}}


@pytest.mark.parametrize(
    "content",
    [
        {"gfs": {"path_init": True}, "gfs.path_init": False},
        {"gfs": None, "gfs.path_init": True},
        {"gfs": {"path_init": False}, "gfs.path_init.growth": 2},
    ],
)
def test_two_keys_for_the_same_are_refused(content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"^gfs.path_init\S* stands beside another key"):
        with_switches(content)


@pytest.mark.parametrize("form", ["--gfs.path_init={}", "--gfs.path_init {}"])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("true", "True", "on", "ON", "yes", "{}"), "{}"),
        (("false", "False", "off", "no", "null", "~"), "null"),
        (("PathSensitiveInit",), "PathSensitiveInit"),
        (("lit_gfs.callbacks.PathSensitiveInit",), "lit_gfs.callbacks.PathSensitiveInit"),
        (("{growth: 2}",), "{growth: 2}"),
    ],
)
def test_a_typed_word(form: str, words: tuple[str, ...], expected: str) -> None:
    for word in words:
        arguments = form.replace("{}", word).split(" ", 1) if " " in form else [form.replace("{}", word)]
        assert typed("fit", *arguments, "--threads", "1") == [
            "fit",
            f"--gfs.path_init={expected}",
            "--threads",
            "1",
        ]


def test_other_options_stay_as_they_were_typed() -> None:
    arguments = [
        "fit",
        *("--gfs.path_init.growth", "2", "--gfs.path_init.mirrored=on", "--run.name", "on"),
        *("--print_config", "--model.compile=true", "--gfs.unknown", "true"),
    ]
    assert typed(*arguments) == arguments


@pytest.mark.parametrize("off", ["null", "off", "false", "no", "~"])
def test_gfs_null_is_one_option_for_each_key(off: str) -> None:
    assert typed("fit", "--gfs", off, "--gfs.path_init=on") == ["fit", *ALL_OFF, "--gfs.path_init={}"]
    assert typed("fit", f"--gfs={off}") == ["fit", *ALL_OFF]


def test_gfs_in_a_file_acts_where_the_file_stands() -> None:
    arguments = ["fit", "--config", "a", "--gfs.path_init=on", "--config", "b", "--config=c"]
    contents = [{"gfs": {"path_init": False}}, {"gfs": "off"}, {"gfs": {}}]

    assert typed(*arguments[:-1], contents=contents[:2]) == [
        *("fit", "--config", "a", "--gfs.path_init={}", "--config", "b"),
        *ALL_OFF,
    ]


def test_gfs_takes_a_mapping_as_studies_write_it() -> None:
    assert typed('--gfs={"path_init": true, "nan_guard": false, "temporal_clipping": {"decay": 0.5}}') == [
        "--gfs.path_init={}",
        "--gfs.nan_guard=null",
        '--gfs.temporal_clipping={"decay": 0.5}',
    ]
    assert typed("--gfs={temporal_clipping: TemporalGradientClipping}") == [
        "--gfs.temporal_clipping=TemporalGradientClipping"
    ]


@pytest.mark.parametrize("value", ["true", "maybe", "3", "[path_init]", ""])
def test_gfs_takes_no_other_value(value: str) -> None:
    with pytest.raises(UserError, match=r"^gfs is '.*'; expected null, or an option below it"):
        typed(f"--gfs={value}")


@pytest.mark.parametrize("value", ["maybe", "1", "0", "[on]", "GradientNormalization", ""])
def test_a_wrong_value_is_told_with_the_valid_ones(value: str) -> None:
    line = r"^gfs.temporal_clipping is .*; expected true, false or TemporalGradientClipping"
    with pytest.raises(UserError, match=line):
        typed(f"--gfs.temporal_clipping={value}")
    with pytest.raises(UserError, match=line):
        typed("--config", "a", contents=[{"gfs": {"temporal_clipping": value}}])


def test_the_nearest_word_is_told() -> None:
    with pytest.raises(UserError, match="did you mean 'true'"):
        typed("--gfs.path_init=ture")


def test_a_subclass_is_a_valid_choice() -> None:
    assert typed("--gfs.temporal_clipping=MyClipping") == ["--gfs.temporal_clipping=MyClipping"]


def test_options_and_their_values_are_told_apart() -> None:
    assert list(options_of(["fit", "--a", "-1", "--b=", "--c", "--d", "x=y", "z", "--e"])) == [
        ("fit", None, ["fit"]),
        ("--a", "-1", ["--a", "-1"]),
        ("--b", "", ["--b="]),
        ("--c", None, ["--c"]),
        ("--d", "x=y", ["--d", "x=y"]),
        ("z", None, ["z"]),
        ("--e", None, ["--e"]),
    ]


def test_all_interventions_of_the_command_line_are_known() -> None:
    arguments = with_typed_switches(["--gfs=off"], [], GradientFlowCLI.interventions)

    assert arguments == [f"--gfs.{name}=null" for name in GradientFlowCLI.interventions]
