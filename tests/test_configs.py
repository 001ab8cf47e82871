"""Every shipped configuration trains for a few steps, with every recipe on top of it."""

from __future__ import annotations

import re
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from lit_gfs.configuration.config_files import complete_arguments, find_config, shipped_configs
from lit_gfs.configuration.method_names import METHOD_NAMES
from lit_gfs.errors import UserError
from lit_gfs.main import main
from support.command_line import BuiltOnly
from support.datasets import write_cifar10

SMALL_ROLLOUT = [
    "--data.num_envs=2",
    "--data.rollout_steps=8",
    "--data.total_steps=32",
    "--data.minibatches=2",
]
SMALL_REPLAY = [
    "--data.num_envs=2",
    "--data.total_steps=40",
    "--data.learning_starts=20",
    "--data.buffer_size=1000",
    "--data.batch_size=8",
]
# Critics of the published size take seconds for a few steps.
SMALL_CRITICS = ["--model.critic_trunk.width=16"]
SMALL_LABELS = ["--data.samples=64", "--data.batch_size=16", "--data.epochs=2", "--data.shuffle_every=1"]
# Full games and episodes take minutes on a slow machine: evaluation has tests of its own.
QUICK = ["--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"]

# A recipe changes a configuration and is none itself; neither is a grid of runs.
RECIPES = sorted(name for name in shipped_configs() if name.startswith("recipes/"))
WHOLE = sorted(name for name in shipped_configs() if "/" not in name)


def train(directory: Path, *names: str) -> None:
    small = SMALL_ROLLOUT if names[0].startswith(("ppo", "pqn")) else SMALL_REPLAY
    if names[0].startswith(("label_shuffle", "permuted_digits")):
        small = SMALL_LABELS
        write_cifar10(directory / "data/cifar-10-batches-bin")
    if names[0].endswith("_offline"):
        main(["fit", "--config=quickstart", *SMALL_REPLAY, *QUICK, "--run.name=source", "--run.root=sources"])
        small = ["--data.source=sources/source/version_0", "--data.total_steps=8", "--data.batch_size=8"]
    if "critic_trunk" in find_config(names[0]).read_text():
        small = [*small, *SMALL_CRITICS]
    configs = [argument for name in names for argument in ("--config", name)]

    main(["fit", *configs, *small, *QUICK])

    (run,) = directory.glob("runs/*/version_0")
    assert (run / "config.yaml").is_file()
    assert list(run.rglob("events.out.tfevents.*"))


@pytest.mark.parametrize("name", WHOLE)
def test_every_shipped_config_trains(name: str, empty_directory: Path) -> None:
    train(empty_directory, name)


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
def test_every_recipe_trains_on_top_of(name: str, recipe: str, empty_directory: Path) -> None:
    train(empty_directory, name, recipe)


# What each recipe may change: these keys and those below them.
INTERVENTIONS = {
    *("gfs.path_init", "gfs.temporal_clipping", "gfs.gradient_normalization"),
    *("gfs.update_normalization", "gfs.layer_rates"),
}
CHANGES = {
    "recipes/baseline": {f"gfs.{key}" for key in METHOD_NAMES},
    "recipes/gfs": {*INTERVENTIONS, "trainer.gradient_clip_val"},
    "recipes/gfs_first_order": {*INTERVENTIONS, "trainer.gradient_clip_val"},
    "recipes/gfs_ppo": {*INTERVENTIONS, "trainer.gradient_clip_val"},
    "recipes/gfs_classifier": {*INTERVENTIONS, "trainer.gradient_clip_val"},
    "recipes/multiskip_kron": {
        "model.init_args.trunk.class_path",
        "model.init_args.trunk.init_args.norm",
        "model.init_args.trunk.init_args.branch_factor",  # plain trunks have none
        "model.init_args.trunk.init_args.expansion",  # only SimBa's has one
        "model.init_args.optimizer",
    },
}


@pytest.fixture(scope="module")
def fit_parser() -> ArgumentParser:
    class ParsingOnly(BuiltOnly):
        def instantiate_classes(self) -> None:
            """Build nothing."""

    return ParsingOnly(complete_arguments(["fit", "--config", "quickstart"]))._parser("fit")


@cache
def settings(parser: ArgumentParser, *names: str) -> dict[str, Any]:
    """Return what configurations come to, defaults included, by dotted key."""
    configs = [argument for name in names for argument in ("--config", str(find_config(name)))]
    parsed = dict(parser.parse_args(configs).items())
    return {key: value for key, value in parsed.items() if key != "config"}


@pytest.mark.parametrize("name", WHOLE)
def test_recipes_leave_the_rest_of_a_config_alone(name: str, fit_parser: ArgumentParser) -> None:
    before = settings(fit_parser, name)

    for recipe in RECIPES:
        after = settings(fit_parser, name, recipe)
        changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
        assert {key for key in changed if not key.startswith(tuple(CHANGES[recipe]))} == set(), recipe


# Full games with sticky actions (Machado et al. 2018). The learner alone sees clipped rewards and lost lives.
ATARI = {
    "data.env_options": {"repeat_action_probability": 0.25},
    "data.total_steps": 10_000_000,
    "model.clip_reward": True,
    "model.reward_scale": 1.0,
    "model.end_of_life_is_terminal": True,
    "model.encoder.class_path": "lit_gfs.networks.NatureCNN",
    "model.initialization": "orthogonal",
    "model.gamma": 0.99,
}
# google/dopamine, dopamine/jax/agents/dqn/configs/dqn.gin.
DQN_ATARI = {
    **ATARI,
    "model.optimizer.class_path": "torch.optim.Adam",
    "model.optimizer.lr": 6.25e-5,
    "model.optimizer.eps": 1.5e-4,
    "model.anneal_learning_rate": False,
    "model.double": False,
    "model.loss": "mse",
    "model.target_sync_every": 8_000,
    "model.epsilon_start": 1.0,
    "model.epsilon_end": 0.01,
    "model.epsilon_decay_steps": 250_000,
    "model.eval_epsilon": 0.001,
    "data.buffer_size": 1_000_000,
    "data.batch_size": 32,
    "data.learning_starts": 20_000,
    "data.steps_per_update": 4,
    "trainer.gradient_clip_val": None,
}
# Hessel et al. 2018, table 1, in agent steps of four frames; alpha and beta are their omega and beta.
RAINBOW = {
    "model.double": True,
    "model.dueling": True,
    "model.noisy": True,
    "model.loss": "c51",
    "model.atoms": 51,
    "model.epsilon_start": 0,
    "model.epsilon_end": 0,
    "model.anneal_learning_rate": False,
    "data.n_step": 3,
    "data.priority_exponent": 0.5,
    "data.importance_exponent": 0.4,
    "trainer.gradient_clip_val": None,
}
RAINBOW_ATARI = {
    **ATARI,
    **RAINBOW,
    "model.initialization": "torch",
    "model.optimizer.class_path": "torch.optim.Adam",
    "model.optimizer.lr": 6.25e-5,
    "model.optimizer.eps": 1.5e-4,
    "model.v_min": -10,
    "model.v_max": 10,
    "model.target_sync_every": 8_000,
    "model.eval_epsilon": 0.001,
    "data.buffer_size": 1_000_000,
    "data.batch_size": 32,
    "data.learning_starts": 20_000,
    "data.steps_per_update": 4,
}
# mttga/purejaxql, purejaxql/config/alg/pqn_atari.yaml; it has no sticky actions and evaluates greedily.
PQN_ATARI = {
    **ATARI,
    "model.optimizer.class_path": "torch.optim.RAdam",
    "model.optimizer.lr": 2.5e-4,
    "model.anneal_learning_rate": False,
    "model.encoder.norm": "layer",
    "model.trunk.norm": "layer",
    "model.lambda_": 0.65,
    "model.loss": "mse",
    "model.epsilon_start": 1.0,
    "model.epsilon_end": 0.001,
    "model.epsilon_decay_steps": 1_000_000,
    "model.eval_epsilon": 0.001,
    "data.num_envs": 128,
    "data.rollout_steps": 32,
    "data.epochs": 2,
    "data.minibatches": 32,
    "trainer.gradient_clip_val": 10,
}
# What CleanRL's three scripts of PPO have in common.
PPO = {
    "model.optimizer.class_path": "torch.optim.Adam",
    "model.optimizer.eps": 1e-5,
    "model.anneal_learning_rate": True,
    "model.initialization": "orthogonal",
    "model.gamma": 0.99,
    "model.lambda_": 0.95,
    "model.normalize_advantage": True,
    "model.value_coefficient": 0.5,
    "model.target_kl": None,
    "trainer.gradient_clip_val": 0.5,
}
# vwxyzjn/cleanrl, cleanrl/ppo_atari.py.
PPO_ATARI = {
    **ATARI,
    **PPO,
    "model.optimizer.lr": 2.5e-4,
    "model.shared_network": True,
    "model.clip": 0.1,
    "model.clip_value": 0.1,
    "model.entropy_coefficient": 0.01,
    "data.num_envs": 8,
    "data.rollout_steps": 128,
    "data.epochs": 4,
    "data.minibatches": 4,
}
# vwxyzjn/cleanrl, cleanrl/ppo.py and cleanrl/ppo_continuous_action.py.
PPO_CARTPOLE = {**PPO, "model.shared_network": False, "model.clip": 0.2, "model.entropy_coefficient": 0.01}
PPO_CONTROL = {**PPO_CARTPOLE, "model.entropy_coefficient": 0.0, "model.normalize_observation": True}

# google/dopamine, dopamine/labs/environments/minatar/dqn_breakout.gin, and the defaults of JaxDQNAgent; dense
# layer and sticky actions are those of kenjyoung/MinAtar.
DQN_MINATAR = {
    "data.env_id": "MinAtar/Breakout-v1",
    "data.env_options": {"sticky_action_prob": 0.1, "difficulty_ramping": True},
    "model.encoder.class_path": "lit_gfs.networks.MinAtarCNN",
    "model.encoder.channels": 16,
    "model.encoder.norm": "none",
    "model.trunk.depth": 1,
    "model.trunk.width": 128,
    "model.trunk.norm": "none",
    "model.optimizer.class_path": "torch.optim.Adam",
    "model.optimizer.lr": 2.5e-4,
    "model.optimizer.eps": 3.125e-4,
    "model.anneal_learning_rate": False,
    "model.double": False,
    "model.loss": "mse",
    "model.gamma": 0.99,
    "model.clip_reward": False,
    "model.target_sync_every": 1_000,
    "model.epsilon_start": 1.0,
    "model.epsilon_end": 0.01,
    "model.epsilon_decay_steps": 250_000,
    "model.eval_epsilon": 0.001,
    "data.buffer_size": 100_000,
    "data.batch_size": 32,
    "data.learning_starts": 1_000,
    "data.steps_per_update": 4,
    "trainer.gradient_clip_val": None,
}
# google/dopamine, dopamine/labs/environments/minatar/rainbow_breakout.gin, with the other parts of Rainbow.
RAINBOW_MINATAR = {
    **{key: value for key, value in DQN_MINATAR.items() if "epsilon_decay" not in key},
    **RAINBOW,
    "model.v_max": 100,
}
# mttga/purejaxql, purejaxql/config/alg/pqn_minatar.yaml, in a fifth of its steps.
PQN_MINATAR = {
    "data.env_id": "MinAtar/Breakout-v1",
    "data.env_options": {"sticky_action_prob": 0.1, "difficulty_ramping": True},
    "model.encoder.class_path": "lit_gfs.networks.MinAtarCNN",
    "model.encoder.channels": 16,
    "model.encoder.norm": "layer",
    "model.trunk.depth": 1,
    "model.trunk.width": 128,
    "model.trunk.norm": "layer",
    "model.optimizer.class_path": "torch.optim.RAdam",
    "model.optimizer.lr": 5e-4,
    "model.anneal_learning_rate": True,
    "model.gamma": 0.99,
    "model.lambda_": 0.65,
    "model.loss": "mse",
    "model.clip_reward": False,
    "model.epsilon_start": 1.0,
    "model.epsilon_end": 0.05,
    "model.epsilon_decay_steps": 200_000,
    "model.eval_epsilon": 0.0,
    "data.total_steps": 2_000_000,
    "data.num_envs": 128,
    "data.rollout_steps": 32,
    "data.epochs": 2,
    "data.minibatches": 32,
    "trainer.gradient_clip_val": 10,
}

# DLR-RM/rl-baselines3-zoo, hyperparams/sac.yml, and the defaults of stable-baselines3's SAC.
SAC_PENDULUM = {
    "data.env_id": "Pendulum-v1",
    "data.num_envs": 1,
    "data.total_steps": 20_000,
    "data.batch_size": 256,
    "data.learning_starts": 100,
    "data.steps_per_update": 1,
    "data.updates_per_step": 1,
    "model.trunk.depth": 2,
    "model.optimizer.class_path": "torch.optim.Adam",
    "model.optimizer.lr": 1e-3,
    "model.anneal_learning_rate": False,
    "model.gamma": 0.99,
    "model.critics": 2,
    "model.target_tau": 0.005,
    "model.target_entropy": -1.0,
    "model.initial_temperature": 1.0,
    "trainer.gradient_clip_val": None,
}
# SonyResearch/simba, configs/agent/sac_simba.yaml with configs/env/dmc_em.yaml (500,000 simulator steps).
SIMBA = {
    "data.env_options": {"action_repeat": 2},
    "data.num_envs": 1,
    "data.total_steps": 250_000,
    "data.batch_size": 256,
    "data.learning_starts": 5_000,
    "data.steps_per_update": 1,
    "data.updates_per_step": 2,
    "data.eval_every": 25_000,
    "data.eval_episodes": 10,
    "model.trunk.class_path": "lit_gfs.networks.SimbaTrunk",
    "model.trunk.depth": 3,
    "model.trunk.width": 128,
    "model.trunk.expansion": 4,
    "model.critic_trunk.class_path": "lit_gfs.networks.SimbaTrunk",
    "model.critic_trunk.depth": 5,
    "model.critic_trunk.width": 512,
    "model.critic_trunk.expansion": 4,
    "model.optimizer.class_path": "torch.optim.AdamW",
    "model.optimizer.lr": 1e-4,
    "model.optimizer.weight_decay": 1e-2,
    "model.critic_learning_rate": None,
    "model.temperature_learning_rate": None,
    "model.normalize_observation": True,
    "model.anneal_learning_rate": False,
    "model.gamma": 0.99,
    "model.critics": 1,
    "model.target_tau": 0.005,
    "model.target_entropy": -0.5,
    "model.initial_temperature": 0.01,
    "trainer.gradient_clip_val": None,
}
# configs/env/dmc_hard.yaml (a million simulator steps).
SIMBA_HARD = SIMBA | {"data.total_steps": 500_000}
# sfujim/TD3, TD3.py and main.py.
TD3 = {
    "data.num_envs": 1,
    "data.batch_size": 256,
    "data.steps_per_update": 1,
    "model.trunk.depth": 2,
    "model.trunk.width": 256,
    "model.optimizer.class_path": "torch.optim.Adam",
    "model.optimizer.lr": 3e-4,
    "model.anneal_learning_rate": False,
    "model.gamma": 0.99,
    "model.critics": 2,
    "model.target_tau": 0.005,
    "model.policy_delay": 2,
    "model.exploration_noise": 0.1,
    "model.target_noise": 0.2,
    "model.target_noise_clip": 0.5,
    "trainer.gradient_clip_val": None,
}

HYPERPARAMETERS = {
    "sac_pendulum": SAC_PENDULUM,
    **{
        f"sac_{task.replace('-', '_')}": settings | {"data.env_id": f"dm_control/{task}-v0"}
        for settings, tasks in (
            (SIMBA, ("cartpole-swingup", "cheetah-run", "hopper-hop", "walker-run")),
            (SIMBA_HARD, ("humanoid-walk", "dog-trot")),
        )
        for task in tasks
    },
    "td3_cartpole_swingup": TD3 | {"data.env_id": "dm_control/cartpole-swingup-v0"},
    "dqn_minatar": DQN_MINATAR,
    "pqn_minatar": PQN_MINATAR,
    "pqn_minatar_stream": PQN_MINATAR
    | {
        "data.env_id": "MinAtar/Stream-v0",
        "data.env_options": {
            "games": ["Breakout", "Freeway", "SpaceInvaders", "Asterix"],
            "switch_every": 500_000,
            "sticky_action_prob": 0.1,
            "difficulty_ramping": True,
        },
        "data.total_steps": 4_000_000,
        "model.anneal_learning_rate": False,
    },
    "rainbow_minatar": RAINBOW_MINATAR,
    "rainbow_breakout": RAINBOW_ATARI | {"data.env_id": "ALE/Breakout-v5"},
    "rainbow_pong": RAINBOW_ATARI | {"data.env_id": "ALE/Pong-v5"},
    "dqn_breakout": DQN_ATARI | {"data.env_id": "ALE/Breakout-v5"},
    "dqn_pong": DQN_ATARI | {"data.env_id": "ALE/Pong-v5"},
    "pqn_breakout": PQN_ATARI | {"data.env_id": "ALE/Breakout-v5"},
    "pqn_pong": PQN_ATARI | {"data.env_id": "ALE/Pong-v5"},
    "ppo_breakout": PPO_ATARI | {"data.env_id": "ALE/Breakout-v5"},
    "ppo_pong": PPO_ATARI | {"data.env_id": "ALE/Pong-v5"},
    "ppo_cartpole": PPO_CARTPOLE | {"data.env_id": "CartPole-v1"},
    "ppo_cartpole_swingup": PPO_CONTROL | {"data.env_id": "dm_control/cartpole-swingup-v0"},
    "ppo_cheetah_run": PPO_CONTROL | {"data.env_id": "dm_control/cheetah-run-v0"},
    "ppo_walker_walk": PPO_CONTROL | {"data.env_id": "dm_control/walker-walk-v0"},
}


@pytest.mark.parametrize("name", HYPERPARAMETERS)
def test_a_config_has_the_hyperparameters_of_its_source(name: str, fit_parser: ArgumentParser) -> None:
    ours = {key.replace("init_args.", ""): value for key, value in settings(fit_parser, name).items()}

    expected = HYPERPARAMETERS[name]
    assert {key: ours[key] for key in expected} == expected


# Where a configuration has another value than its source: the value there, and the words of the header.
# What is no value of a configuration, such as a rule for weights, is in the header alone.
DQN_ATARI_DIFFERS = {
    "data.num_envs": (1, "one environment"),
    "data.total_steps": (50_000_000, "five times the steps"),
    "model.end_of_life_is_terminal": (False, "a lost life does not cut the bootstrap"),
}
RAINBOW_ATARI_DIFFERS = {
    "data.num_envs": (1, "one environment"),
    "data.total_steps": (50_000_000, "five times the steps"),
    "data.env_options": ({}, "no sticky actions"),
}
PQN_ATARI_DIFFERS = {
    "data.env_options": ({}, "no sticky actions"),
    "data.total_steps": (50_000_000, "five times the steps"),
    "model.eval_epsilon": (0.0, "greedy evaluation"),
    "trainer.gradient_clip_val": (20, "clipped at what is a norm of 20 here"),
}
PPO_ATARI_DIFFERS = {"data.env_options": ({}, "no sticky actions")}
PPO_CONTROL_DIFFERS = {
    "data.num_envs": (1, "one environment with rollouts of 2,048 steps"),
    "data.rollout_steps": (2_048, "one environment with rollouts of 2,048 steps"),
    "model.clip_value": (0.2, "the value loss is clipped at 0.2"),
    "model.reward_scale": (1.0, "scaled by a constant"),
}
PQN_DIFFERS = {
    "data.total_steps": (500_000, "in a fifth of its steps"),
    "data.minibatches": (16, "its minibatches"),
    "data.rollout_steps": (64, "its rollout"),
    "model.epsilon_end": (0.2, "epsilon down to 0.05"),
    "model.trunk.width": (256, "half of its width"),
    "trainer.gradient_clip_val": (20, "clipped at what is a norm of 20 here"),
}
DIFFERS: dict[str, dict[str, tuple[Any, str]]] = {
    "quickstart": {
        "data.num_envs": (1, "one environment"),
        "data.steps_per_update": (256, "updates after every 256 steps"),
        "model.target_sync_every": (10, "copied every 10 steps"),
        "model.anneal_learning_rate": (False, "the learning rate stays"),
    },
    "dqn_acrobot": {
        "data.num_envs": (1, "one environment"),
        "data.steps_per_update": (1, "one a step"),
        "data.learning_starts": (0, "from the first step on"),
        "model.target_sync_every": (250, "copied every 250 steps"),
        "model.anneal_learning_rate": (False, "the learning rate stays"),
    },
    "dqn_breakout": DQN_ATARI_DIFFERS,
    "dqn_pong": DQN_ATARI_DIFFERS,
    "pqn_breakout": PQN_ATARI_DIFFERS,
    "pqn_pong": PQN_ATARI_DIFFERS,
    "pqn_cartpole": PQN_DIFFERS | {"model.optimizer.lr": (1e-4, "five times its learning rate")},
    "pqn_acrobot": PQN_DIFFERS
    | {
        "model.optimizer.lr": (1e-4, "ten times its learning rate"),
        "model.lambda_": (0.95, "shorter returns"),
        "data.num_envs": (32, "a quarter of its rollout"),
    },
    "ppo_breakout": PPO_ATARI_DIFFERS,
    "ppo_pong": PPO_ATARI_DIFFERS,
    "ppo_cartpole": {
        "data.num_envs": (4, "4 environments"),
        "data.rollout_steps": (128, "rollouts of 128 steps"),
        "data.total_steps": (500_000, "more than three times the steps"),
        "model.optimizer.lr": (2.5e-4, "a quarter of the learning rate"),
        "model.clip_value": (0.2, "the value loss is clipped at 0.2"),
        "model.reward_scale": (1.0, "rewards are not scaled"),
    },
    "ppo_cartpole_swingup": PPO_CONTROL_DIFFERS
    | {
        "data.total_steps": (1_000_000, "a million steps"),
        "data.minibatches": (32, "32 minibatches"),
        "model.optimizer.lr": (3e-4, "a learning rate of 3e-4"),
    },
    "dqn_minatar": {
        "data.num_envs": (1, "four games at a time"),
        "data.total_steps": (10_000_000, "in a tenth of its steps"),
    },
    "rainbow_breakout": RAINBOW_ATARI_DIFFERS,
    "rainbow_pong": RAINBOW_ATARI_DIFFERS,
    "rainbow_minatar": {
        "data.num_envs": (1, "four games at a time"),
        "data.total_steps": (10_000_000, "in a tenth of its steps"),
        "model.double": (False, "double Q-learning"),
        "model.dueling": (False, "a dueling head"),
        "model.noisy": (False, "noisy layers in the place of epsilon"),
        "model.v_min": (-100, "values may be negative, from -100"),
    },
    "pqn_minatar": {
        "data.total_steps": (10_000_000, "in a fifth of its steps"),
        "trainer.gradient_clip_val": (20, "the loss is the squared error, there half of it"),
    },
    "sac_pendulum": {
        "data.buffer_size": (1_000_000, "never filled"),
        "model.trunk.width": (256, "256 units"),
    },
    **{
        f"sac_{task}": {
            "data.buffer_size": (1_000_000, "never filled"),
        }
        for task in (
            *("cartpole_swingup", "cheetah_run", "hopper_hop"),
            *("walker_run", "humanoid_walk", "dog_trot"),
        )
    },
    "td3_cartpole_swingup": {
        "data.env_options": ({}, "no action repeat"),
        "data.learning_starts": (25_000, "25,000 steps with random actions"),
        "data.buffer_size": (1_000_000, "never filled"),
    },
    "ppo_cheetah_run": PPO_CONTROL_DIFFERS,
    "ppo_walker_walk": PPO_CONTROL_DIFFERS | {"data.total_steps": (1_000_000, "a million steps")},
}


@pytest.mark.parametrize("name", DIFFERS)
def test_a_header_says_what_differs_from_its_source(name: str, fit_parser: ArgumentParser) -> None:
    ours = {key.replace("init_args.", ""): value for key, value in settings(fit_parser, name).items()}
    lines = takewhile(lambda line: line.startswith("#"), find_config(name).read_text().splitlines())
    header = " ".join(line.removeprefix("# ") for line in lines)

    assert [words for _, words in DIFFERS[name].values() if words not in header] == []
    assert [key for key, (theirs, _) in DIFFERS[name].items() if ours[key] == theirs] == []


def test_every_config_with_a_source_says_what_differs() -> None:
    sources = (
        *("rl-baselines3-zoo (", "Dopamine", "purejaxql", "CleanRL", "(2018, arXiv"),
        *("SonyResearch/simba", "sfujim/TD3"),
    )

    assert {
        name for name in WHOLE if any(source in find_config(name).read_text() for source in sources)
    } == set(DIFFERS)


def test_every_config_of_games_has_its_hyperparameters_checked() -> None:
    games = {name for name in WHOLE if re.search("env_id: (ALE|MinAtar)/", find_config(name).read_text())}

    assert games <= set(HYPERPARAMETERS)


def test_the_multi_skip_recipe_keeps_depth_width_and_activation(fit_parser: ArgumentParser) -> None:
    configs = [str(find_config(name)) for name in ("ppo_cartpole", "recipes/multiskip_kron")]
    arguments = ["--config", configs[0], "--config", configs[1], "--model.trunk.depth=8"]

    agent = fit_parser.parse_args(arguments).model.init_args

    assert agent.trunk.class_path == "lit_gfs.networks.MultiSkipTrunk"
    kept = {"depth": 8, "width": 64, "norm": "layer", "activation": "tanh"}
    assert agent.trunk.init_args.as_dict() == {**kept, "negative_slope": 0.01, "branch_factor": "none"}
    assert agent.optimizer.class_path == "lit_gfs.optim.Kron"
    assert agent.optimizer.init_args.lr == 1.7e-4


@pytest.mark.usefixtures("empty_directory")
@pytest.mark.parametrize("name", ["dqn_pong", "dqn_pong.yaml", "configs/dqn_pong.yaml", "configs/dqn_pong"])
def test_a_shipped_config_is_found_by_any_of_its_names(name: str) -> None:
    assert find_config(name) == shipped_configs()["dqn_pong"]


@pytest.mark.usefixtures("empty_directory")
def test_a_file_comes_before_a_shipped_config() -> None:
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
        "dqn_minatar",
        "pqn_minatar",
        "rainbow_cartpole",
        "rainbow_pong",
        "rainbow_breakout",
        "rainbow_minatar",
        "sac_pendulum",
        "sac_cartpole_swingup",
        "sac_cheetah_run",
        "sac_walker_run",
        "sac_hopper_hop",
        "sac_humanoid_walk",
        "sac_dog_trot",
        "td3_cartpole_swingup",
        "recipes/baseline",
        "recipes/gfs",
        "recipes/gfs_first_order",
        "recipes/gfs_ppo",
        "recipes/gfs_classifier",
        "recipes/multiskip_kron",
    }
