"""Ids that a package registers by a function or an entry point, once the user trusts it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import gymnasium
import pytest

from lit_gfs.configuration.config_trust import trusting
from lit_gfs.envs import make_env
from lit_gfs.errors import UserError

REGISTER = """
import gymnasium
from gymnasium.envs.classic_control import PendulumEnv
def {name}():
    gymnasium.register('Plugged/Swing-v1', PendulumEnv, max_episode_steps=5)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    gymnasium.registry.pop("Plugged/Swing-v1", None)
    for name in [name for name in sys.modules if name.partition(".")[0] == "plugged"]:
        del sys.modules[name]


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    importlib.invalidate_caches()


PACKAGES = {
    "function": {"plugged/__init__.py": REGISTER.format(name="register_envs")},
    "gym": {"plugged/__init__.py": "", "plugged/gym.py": REGISTER.format(name="register_envs")},
    "module": {"plugged.py": REGISTER.format(name="register_envs")},
    "import": {"plugged.py": REGISTER.format(name="register") + "register()\n"},
    "entry point": {
        "plugged/__init__.py": "",
        "plugged/deep.py": REGISTER.format(name="enlist"),
        "plugged-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n",
        "plugged-1.0.dist-info/entry_points.txt": "[gymnasium.envs]\nPlugged = plugged.deep:enlist\n",
    },
}


@pytest.mark.parametrize("kind", PACKAGES)
def test_an_id_is_found_in_a_package_that_is_trusted_or_named(folder: Path, kind: str) -> None:
    write(folder, PACKAGES[kind])
    with pytest.raises(UserError, match="unknown environment 'Plugged/Swing-v1'"):
        make_env("Plugged/Swing-v1")
    assert "plugged" not in sys.modules

    with trusting(["plugged"]):
        assert make_env("Plugged/Swing-v1", 2).reset()["observation"].shape == (2, 3)

    gymnasium.registry.pop("Plugged/Swing-v1")
    if kind != "import":
        assert make_env("plugged:Plugged/Swing-v1", 2).reset()["observation"].shape == (2, 3)


def test_the_module_that_registers_can_be_named_itself(folder: Path) -> None:
    write(folder, PACKAGES["gym"])
    assert make_env("plugged.gym:Plugged/Swing-v1").reset()["observation"].shape == (1, 3)


def test_a_trusted_package_that_cannot_be_imported_is_named() -> None:
    with (
        trusting(["no_such_package"]),
        pytest.raises(UserError, match="'no_such_package' cannot be imported"),
    ):
        make_env("Plugged/Swing-v1")


def test_known_ids_import_nothing() -> None:
    with trusting(["no_such_package"]):
        make_env("CartPole-v1")
