"""Ids and options, known and unknown."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest

from lit_gfs.envs import EnvSpec, make_env
from lit_gfs.errors import UserError


@pytest.mark.parametrize(
    ("env_id", "suggestion"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("cartpole-v1", "CartPole-v1"),
        ("CartPole", "CartPole-v1"),
        ("Breakout-v5", "ALE/Breakout-v5"),
        ("ALE/Breakuot-v5", "ALE/Breakout-v5"),
        ("ALE/ms_pacman-v5", "ALE/MsPacman-v5"),
        ("ALE/Pong-v4", "ALE/Pong-v5"),
        ("walker-walk-v0", "dm_control/walker-walk-v0"),
        ("dm_control/walker-wlak-v0", "dm_control/walker-walk-v0"),
        ("dm_control/walker-walk", "dm_control/walker-walk-v0"),
        ("dm_control/walker_walk-v0", "dm_control/walker-walk-v0"),
    ],
)
def test_unknown_ids_name_the_nearest(env_id: str, suggestion: str) -> None:
    with pytest.raises(UserError) as caught:
        make_env(env_id)
    assert repr(env_id) in str(caught.value)
    assert f"{suggestion!r}" in str(caught.value).split("did you mean")[1]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "env_id", ["", "/", "ALE/", "dm_control/", "no such thing at all", "a/b/c-v1", "ALE/Combat-v5"]
)
def test_malformed_ids(env_id: str) -> None:
    with pytest.raises(UserError, match="unknown environment"):
        make_env(env_id)


def test_a_module_that_does_not_exist() -> None:
    with pytest.raises(UserError, match="no_such_module"):
        make_env("no_such_module:Thing-v0")


def test_a_module_registers_its_environments(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks.py").write_text(
        "import gymnasium\n"
        "from gymnasium.envs.classic_control import PendulumEnv\n"
        "gymnasium.register('MyPendulum-v0', PendulumEnv, max_episode_steps=5)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    env = make_env("my_tasks:MyPendulum-v0", 2, seed=0)
    assert EnvSpec.from_env(env).action_high == (2.0,)


@pytest.mark.parametrize(
    ("env_id", "option", "suggestion"),
    [
        ("CartPole-v1", "max_steps", "max_episode_steps"),
        ("Pendulum-v1", "G", "g"),
        ("ALE/Pong-v5", "repeat_probability", "repeat_action_probability"),
        ("dm_control/walker-walk-v0", "action_repeats", "action_repeat"),
    ],
)
def test_unknown_options_name_the_nearest(env_id: str, option: str, suggestion: str) -> None:
    with pytest.raises(UserError, match=f"has no option '{option}'.*did you mean '{suggestion}'"):
        make_env(env_id, **{option: 1})


@pytest.mark.parametrize("num_envs", [0, -3])
def test_there_is_at_least_one_environment(num_envs: int) -> None:
    with pytest.raises(UserError, match=f"num_envs is {num_envs}"):
        make_env("CartPole-v1", num_envs)


def test_env_spec_is_plain_data() -> None:
    spec = EnvSpec.from_env(make_env("Pendulum-v1", 2))
    values = json.loads(json.dumps(dataclasses.asdict(spec)))
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    assert EnvSpec(**values) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.env_id = "other"  # type: ignore[misc]


def test_suites_are_imported_only_when_used() -> None:
    code = (
        "import sys, lit_gfs.envs as envs\n"
        "loaded = lambda: sorted({'ale_py', 'dm_control', 'gymnasium'} & set(sys.modules))\n"
        "before = loaded(); envs.make_env('CartPole-v1'); print(before, loaded())\n"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[] ['gymnasium']"
