from __future__ import annotations

import re

import pytest

from lit_gfs.configuration.option_help import without_help
from support.command_line import refused, stopped

pytestmark = pytest.mark.usefixtures("empty_directory")


def told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert stopped(arguments) == 0
    return capsys.readouterr().out


def test_our_options_come_first_with_the_values_of_the_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = told(["fit", "--config", "quickstart", "--data.num_envs=3", "--help"], capsys)

    headings = re.findall(r"^(\S+): \S", text, re.MULTILINE)
    assert headings[:6] == ["usage", "run", "data", "model", "model.trunk", "model.optimizer"]
    assert headings[6] == "gfs.gradient_flow"
    assert headings[-1] == "trainer"
    for option in (
        "--data.num_envs 3",
        "--data.total_steps 50000",
        "--model.trunk PlainTrunk",
        "--model.trunk.width 256",
        "--model.optimizer.lr 0.0023",
        "--gfs.gradient_flow on",
        "--gfs.path_init off",
        "--trainer.gradient_clip_val 10",
    ):
        assert f"\n  {option}\n" in text
    assert not re.search("LightningModule|LightningDataModule|Hooks to be used|env_spec", text)


def test_the_help_is_about_options_with_a_word_in_their_name(capsys: pytest.CaptureFixture[str]) -> None:
    for asked in (["--help", "gfs.temporal_clipping"], ["--help=--gfs.temporal_clipping"]):
        text = told(["fit", *asked], capsys)

        assert "  --gfs.temporal_clipping off\n" in text
        assert "  --gfs.temporal_clipping.z_threshold 2.5\n" in text
        assert set(re.findall(r"^  --(\w+\.\w+)", text, re.MULTILINE)) == {"gfs.temporal_clipping"}


def test_classes_may_be_chosen_without_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(["fit", "--model=PPO", "--data=RolloutDataModule", "--data.env_id=x", "--help"], capsys)

    assert "\n  --model.clip 0.2\n" in text
    assert "\n  --data.env_id x\n" in text


def test_mistakes_beside_help_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    config = ["fit", "--config", "quickstart"]
    assert "did you mean 'gamma'?" in refused([*config, "--model.gama=1", "--help"], capsys)
    assert "did you mean '--gfs.path_init'?" in refused([*config, "--help", "gfs.pathinit"], capsys)


def test_help_is_taken_out_of_a_command_line() -> None:
    assert without_help(["fit", "--x", "1"]) == (["fit", "--x", "1"], None)
    assert without_help(["fit", "-h", "--x", "1"]) == (["fit", "--x", "1"], "")
    assert without_help(["fit", "--x=1", "--help", "gfs"]) == (["fit", "--x=1"], "gfs")
