"""Every shipped configuration trains for a few steps, with every recipe on top of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from fakes import write_cifar10
from lit_gfs.cli import GradientFlowCLI, main
from lit_gfs.config_files import complete_arguments, find_config, shipped_configs
from lit_gfs.errors import UserError

SMALL_ROLLOUT = [
    "--data.num_envs=2",
    "--data.rollout_steps=8",
    "--data.total_steps=32",
    "--data.minibatches=2",
]
SMALL_REPLAY = [
    "--data.num_envs=2",
    "--data.total_steps=80",
    "--data.learning_starts=40",
    "--data.buffer_size=1000",
    "--data.batch_size=8",
]
SMALL_LABELS = ["--data.samples=64", "--data.batch_size=16", "--data.epochs=2", "--data.shuffle_every=1"]
# Full games and episodes take minutes on a slow machine: evaluation has tests of its own.
QUICK = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]

# A recipe changes a configuration and is none itself; neither is a grid of runs.
RECIPES = sorted(name for name in shipped_configs() if name.startswith("recipes/"))
WHOLE = sorted(name for name in shipped_configs() if "/" not in name)


def train(directory: Path, *names: str) -> None:
    small = SMALL_ROLLOUT if names[0].startswith(("ppo", "pqn")) else SMALL_REPLAY
    if names[0].startswith("label_shuffle"):
        small = SMALL_LABELS
        write_cifar10(directory / "data/cifar-10-batches-bin")
    configs = [argument for name in names for argument in ("--config", name)]

    main(["fit", *configs, *small, *QUICK])

    (run,) = directory.glob("runs/*/version_0")
    assert (run / "config.yaml").is_file()
    assert list(run.glob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", WHOLE)
def test_every_shipped_config_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    train(tmp_path, name)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "name",
    [
        name
        if name in ("quickstart", "ppo_cartpole", "label_shuffle")
        else pytest.param(name, marks=pytest.mark.slow)
        for name in WHOLE
    ],
)
def test_every_recipe_trains_on_top_of(
    name: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    train(tmp_path, name, recipe)


# What each recipe may change: these keys and those below them.
INTERVENTIONS = {"gfs.path_init", "gfs.temporal_clipping", "gfs.gradient_normalization"}
CHANGES = {
    "recipes/baseline": INTERVENTIONS,
    "recipes/gfs": {*INTERVENTIONS, "trainer.gradient_clip_val"},
    "recipes/multiskip_kron": {
        "model.init_args.trunk.class_path",
        "model.init_args.trunk.init_args.norm",
        "model.init_args.optimizer",
    },
}


@pytest.fixture(scope="module")
def fit_parser() -> ArgumentParser:
    class ParsingOnly(GradientFlowCLI):
        def instantiate_classes(self) -> None:
            """Build nothing."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Run nothing."""

    return ParsingOnly(complete_arguments(["fit", "--config", "quickstart"]))._parser("fit")


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", WHOLE)
def test_a_recipe_leaves_the_rest_of_a_config_alone(
    name: str, recipe: str, fit_parser: ArgumentParser
) -> None:
    def settings(*names: str) -> dict[str, Any]:
        configs = [argument for name in names for argument in ("--config", str(find_config(name)))]
        parsed = dict(fit_parser.parse_args(configs).items())
        return {key: value for key, value in parsed.items() if key != "config"}

    before, after = settings(name), settings(name, recipe)

    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    assert {key for key in changed if not key.startswith(tuple(CHANGES[recipe]))} == set()


def test_the_multi_skip_recipe_keeps_depth_width_and_activation(fit_parser: ArgumentParser) -> None:
    configs = [str(find_config(name)) for name in ("ppo_cartpole", "recipes/multiskip_kron")]
    arguments = ["--config", configs[0], "--config", configs[1], "--model.trunk.depth=8"]

    agent = fit_parser.parse_args(arguments).model.init_args

    assert agent.trunk.class_path == "lit_gfs.networks.MultiSkipTrunk"
    assert agent.trunk.init_args.as_dict() == {"depth": 8, "width": 64, "norm": "layer", "activation": "tanh"}
    assert agent.optimizer.class_path == "lit_gfs.optim.Kron"
    assert agent.optimizer.init_args.lr == 1.7e-4


@pytest.mark.parametrize("name", ["dqn_pong", "dqn_pong.yaml", "configs/dqn_pong.yaml", "configs/dqn_pong"])
def test_a_shipped_config_is_found_by_any_of_its_names(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert find_config(name) == shipped_configs()["dqn_pong"]


def test_a_file_comes_before_a_shipped_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dqn_pong").write_text("")

    assert find_config("dqn_pong") == Path("dqn_pong")


def test_a_misspelt_config_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"'dqn_pnog' not found; .*; did you mean 'dqn_pong'"):
        find_config("dqn_pnog")


def test_the_promised_configs_are_shipped() -> None:
    assert set(shipped_configs()) >= {
        "quickstart",
        "dqn_acrobot",
        "dqn_pong",
        "dqn_breakout",
        "ppo_cartpole",
        "ppo_pong",
        "ppo_breakout",
        "ppo_cartpole_swingup",
        "ppo_walker_walk",
        "ppo_cheetah_run",
        "label_shuffle",
        "label_shuffle_cifar10",
        "pqn_cartpole",
        "pqn_acrobot",
        "pqn_pong",
        "pqn_breakout",
        "recipes/baseline",
        "recipes/gfs",
        "recipes/multiskip_kron",
    }
