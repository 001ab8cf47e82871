"""What a user changed is told apart from what the shipped configurations say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lit_gfs.configuration.changes import DEFAULT, Change, read_given
from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.configuration.run_text import run_text
from lit_gfs.runs.layout import CONFIG_HEADER

RESOLVED = {
    "seed_everything": 3,
    "model": {
        "class_path": "lit_gfs.agents.DQN",
        "init_args": {
            "gamma": 0.99,
            "trunk": {"class_path": "lit_gfs.networks.PlainTrunk", "init_args": {"depth": 16, "width": 256}},
        },
    },
    "data": {"class_path": "x.ReplayDataModule", "init_args": {"env_options": {"max_frames": 40}}},
    "gfs": {"path_init": {"class_path": "x.PathSensitiveInit", "init_args": {"mirrored": False}}},
}
INTERVENTIONS = ["path_init", "layer_rates", "temporal_clipping", "gradient_normalization"]


def given(command: str):
    return read_given(complete_arguments(["fit", *command.split()]))


def test_only_options_with_another_value_are_changes() -> None:
    found = given(
        "--config quickstart --model.init_args.gamma=0.99 --model.trunk.depth 16 --seed_everything 3 "
        "--gfs.path_init {} --data.env_options={max_frames:40} --trainer.max_steps 5"
    )

    assert found.bases == ["quickstart"]
    assert found.changes(RESOLVED) == [
        Change("model.trunk.depth", 2, 16),
        Change("seed_everything", DEFAULT, 3),
        Change("gfs.path_init", DEFAULT, "PathSensitiveInit"),
        Change("data.env_options.max_frames:40", DEFAULT, None),
        Change("trainer.max_steps", DEFAULT, "5"),
    ]


def test_a_file_of_the_users_own_is_a_change_and_a_runs_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"trunk": {"init_args": {"depth": 16}}}}})
    )
    Path("config.yaml").write_text(CONFIG_HEADER + yaml.safe_dump(RESOLVED))

    assert given("--config quickstart --config mine.yaml").changes(RESOLVED) == [
        Change("model.trunk.depth", 2, 16)
    ]
    assert given("--config config.yaml").changes(RESOLVED) == []


@pytest.mark.parametrize(
    ("command", "are_on", "method"),
    [
        ("--config quickstart", [], "baseline"),
        ("--config quickstart --config recipes/gfs", INTERVENTIONS, "gfs"),
        ("--config quickstart --config recipes/gfs --gfs.gradient_flow {}", INTERVENTIONS, "gfs"),
        ("--config quickstart --config recipes/gfs --gfs.layer_rates null", INTERVENTIONS[:1], "init"),
        ("--config quickstart --config recipes/gfs --gfs null", [], "baseline"),
        ("--config quickstart --gfs.path_init {}", ["gradient_flow", *INTERVENTIONS[:3]], "init-rates-clip"),
    ],
)
def test_a_recipe_names_the_method_unless_the_user_changes_it(
    command: str, are_on: list[str], method: str
) -> None:
    assert given(command).method(are_on) == method


def test_the_text_has_command_changes_and_versions() -> None:
    text = run_text(given("--config quickstart --model.trunk.depth 16"), RESOLVED)

    assert "    python -m lit_gfs fit --config quickstart --model.trunk.depth 16\n" in text
    assert "differ from `quickstart`" in text
    assert "| `model.trunk.depth` | 2 | 16 |" in text
    assert "| torch | " in text
