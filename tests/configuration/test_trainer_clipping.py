"""The Trainer's clipping of a shipped configuration gives way to an intervention that scales gradients."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import Namespace

from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_checks import read_configs
from lit_gfs.configuration.config_files import complete_arguments, shipped_configs
from lit_gfs.configuration.trainer_clipping import replaced_clipping

SCALING = ("temporal_clipping", "gradient_normalization")
ON = "--gfs.temporal_clipping={}"
WHOLE = sorted(name for name in shipped_configs() if "/" not in name)


class ParsedOnly(GradientFlowCLI):
    """Parses, and builds nothing."""

    def _set_seed(self) -> None:
        """Leave the generators alone."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


@pytest.fixture(scope="module")
def cli() -> ParsedOnly:
    return ParsedOnly(complete_arguments(["fit", "--config", "quickstart"]))


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def parsed(cli: ParsedOnly, *arguments: str) -> Namespace:
    cli.parse_arguments(cli.parser, complete_arguments(["fit", *arguments]))
    return cli.config.fit


def replaced(*arguments: str) -> str | None:
    completed = complete_arguments(["fit", *arguments])
    found = replaced_clipping(completed, read_configs(completed), SCALING)
    return None if found is None else str(found)


def own(content: dict[str, Any], name: str = "mine.yaml") -> list[str]:
    Path(name).write_text(yaml.safe_dump(content))
    return ["--config", name]


CLIPPED = {"trainer": {"gradient_clip_val": 3}}


def test_the_line_names_all_that_replace_and_what_they_replace() -> None:
    config = ["--config", "ppo_cartpole"]
    normalization = "--gfs.gradient_normalization={}"

    told = "trainer.gradient_clip_val 0.5 of ppo_cartpole"
    assert replaced(*config, ON) == f"gfs.temporal_clipping replaces {told}"
    assert replaced(*config, normalization) == f"gfs.gradient_normalization replaces {told}"
    both = "gfs.temporal_clipping and gfs.gradient_normalization replace"
    assert replaced(*config, normalization, ON) == f"{both} {told}"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [ON, "--gfs.temporal_clipping=null"],
        ["--gfs.path_init={}", "--gfs.curvature={}"],
        [ON, "--trainer.gradient_clip_val=3"],
        [ON, "--trainer.gradient_clip_val", "3"],
        ["--trainer={gradient_clip_val: 3}", ON],
        [ON, "--trainer.gradient_clip_val=null"],
        ["--config", "recipes/gfs"],
        ["--config", "recipes/gfs", "--trainer.gradient_clip_val=3"],
    ],
)
def test_without_an_intervention_or_with_a_users_value_nothing_is_replaced(arguments: list[str]) -> None:
    assert replaced("--config", "quickstart", *arguments) is None


@pytest.mark.parametrize("inner", ["z_threshold", "init_args.z_threshold"])
def test_an_argument_of_the_intervention_switches_it_on(inner: str) -> None:
    option = f"--gfs.temporal_clipping.{inner}=3"

    assert replaced("--config=quickstart", "--gfs.temporal_clipping=null", option) is not None
    assert replaced("--config=quickstart", option, "--gfs.temporal_clipping=null") is None


def test_a_value_in_a_users_file_stays() -> None:
    assert replaced("--config=quickstart", *own(CLIPPED), ON) is None


def test_the_last_one_to_set_the_value_counts() -> None:
    told = "gfs.temporal_clipping replaces trainer.gradient_clip_val 10 of pqn_cartpole"
    assert replaced(*own(CLIPPED), ON, "--config=pqn_cartpole") == told


def test_a_users_file_may_switch_the_intervention_on() -> None:
    assert replaced("--config=quickstart", *own({"gfs.temporal_clipping": True})) is not None
    assert replaced(*own({"gfs": {"temporal_clipping": "on"}}), "--config=quickstart") is not None


def test_a_shipped_configuration_is_known_by_its_place_not_by_its_name() -> None:
    content = yaml.safe_load(shipped_configs()["quickstart"].read_text())

    assert replaced(*own(content, "quickstart.yaml"), ON) is None
    assert replaced("--config", str(shipped_configs()["quickstart"]), ON) is not None


def test_one_flag_is_enough_on_every_shipped_configuration(cli: ParsedOnly) -> None:
    clipped: dict[Any, int] = {}
    for name, key in zip(WHOLE, cycle(SCALING), strict=False):
        content = yaml.safe_load(shipped_configs()[name].read_text())
        value = content.get("trainer", {}).get("gradient_clip_val")

        line = f"gfs.{key} replaces trainer.gradient_clip_val {value} of {name}"
        assert replaced("--config", name, f"--gfs.{key}={{}}") == (None if value is None else line)
        clipped[value] = clipped.get(value, 0) + 1

        if clipped[value] == 1:  # the whole parser takes long: once for each value
            config = parsed(cli, "--config", name, f"--gfs.{key}", "true")
            assert config.gfs[key] is not None, name
            assert config.trainer.gradient_clip_val is None, name
    assert len(clipped) >= 3
    assert sum(count for value, count in clipped.items() if value is not None) >= 10


def test_what_print_config_shows_means_the_same_when_it_is_read(
    cli: ParsedOnly, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--config=quickstart", "--gfs.temporal_clipping=on", "--gfs.temporal_clipping.decay=0.5"]
    with pytest.raises(SystemExit):
        parsed(cli, *flags, "--print_config")
    Path("printed.yaml").write_text(capsys.readouterr().out)

    printed = parsed(cli, "--config=printed.yaml")

    assert printed.trainer.gradient_clip_val is None
    assert printed.gfs == parsed(cli, *flags).gfs
    assert printed.gfs.temporal_clipping.init_args.decay == 0.5
