from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gfs.agents import Classifier
from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.configuration.former_options import with_present_options
from lit_gfs.main import main

WITHOUT_A_CLASS = {"evaluation_epsilon": 0.25}
AS_SAVED = {"class_path": "lit_gfs.agents.DQN", "init_args": {"evaluation_epsilon": 0.25}}


def eval_epsilon(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> float:
    """Return the option of the agent that a command line would train."""
    monkeypatch.setattr(GradientFlowCLI, "_run_subcommand", lambda cli, name: None)
    return GradientFlowCLI(complete_arguments(["fit", *arguments])).model.eval_epsilon


@pytest.mark.parametrize("model", [WITHOUT_A_CLASS, AS_SAVED])
def test_a_configuration_with_the_former_name_means_the_same(
    model: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": model}))

    assert (
        eval_epsilon(["--config=quickstart", "--config", str(path), "--run.root", str(tmp_path)], monkeypatch)
        == 0.25
    )


@pytest.mark.parametrize("option", ["--model.evaluation_epsilon", "--model.init_args.evaluation_epsilon"])
@pytest.mark.parametrize("form", ["={}", " {}"])
def test_a_command_with_the_former_name_means_the_same(
    option: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [
        "--model=lit_gfs.agents.DQN",
        *f"{option}{form.format(0.25)}".split(),
        "--data=ReplayDataModule",
    ]
    arguments += ["--data.env_id=CartPole-v1", f"--run.root={tmp_path}"]

    assert eval_epsilon(arguments, monkeypatch) == 0.25


def test_only_classes_of_this_package_had_the_former_name() -> None:
    def model(class_path: str, name: str) -> dict[str, Any]:
        return {"model": {"class_path": class_path, "init_args": {name: 0.25}}}

    assert with_present_options(model("DQN", "evaluation_epsilon")) == model("DQN", "eval_epsilon")
    theirs = model("theirs.DQN", "evaluation_epsilon")
    assert with_present_options(copy.deepcopy(theirs)) == theirs


def test_the_former_name_of_another_class_is_no_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": {"evaluation_epsilon": 0.25}}))

    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config", "quickstart", "--config", str(path)])

    assert "data.evaluation_epsilon is no known key" in capsys.readouterr().err


def test_a_saved_configuration_names_the_classifier_by_its_former_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"model": {"class_path": "lit_gfs.classifier.Classifier"}}))
    monkeypatch.setattr(GradientFlowCLI, "_run_subcommand", lambda cli, name: None)
    arguments = ["fit", "--config=label_shuffle", f"--config={path}", f"--run.root={tmp_path}"]

    assert isinstance(GradientFlowCLI(complete_arguments(arguments)).model, Classifier)
