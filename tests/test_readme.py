"""Every command and every program in the README runs, made short by options at its end."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

from lit_gfs.cli import main
from lit_gfs.config_files import shipped_configs

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line.removeprefix("python -m lit_gfs ")
    for language, block in BLOCKS
    if language == ""
    for line in block.splitlines()
    if line.startswith("python -m lit_gfs ")
]
ROLLOUT = "--data.num_envs=2 --data.rollout_steps=8 --data.total_steps=32 --data.minibatches=2"
REPLAY = "--data.num_envs=2 --data.total_steps=80 --data.learning_starts=40 --data.batch_size=8"
# Whole episodes of Atari and dm_control take long without a policy worth watching.
NO_EVALUATION = "--trainer.limit_val_batches=0"


def shortened(command: str) -> str:
    """Add what makes a command of the README end within seconds."""
    if command.startswith(("validate", "test ")):
        return f"{command} --data.eval_episodes=1"
    if "--ckpt_path" in command:
        return f"{command} --data.total_steps=200"
    if "--config ppo" in command:
        return f"{command} {ROLLOUT} {NO_EVALUATION}"
    return f"{command} {REPLAY}"


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"gamma": 0.9}}}))
    assert len(COMMANDS) >= 10

    for command in COMMANDS:
        main(shlex.split(shortened(command)))

    assert (tmp_path / "runs/dqn_CartPole-v1/version_0/episode.mp4").stat().st_size > 1_000


def test_every_python_program_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    programs = [block for language, block in BLOCKS if language == "python"]
    assert len(programs) == 2

    for program in programs:
        exec(compile(program, "README.md", "exec"), {"__name__": "readme"})


def test_every_yaml_block_parses() -> None:
    fragments = [yaml.safe_load(block) for language, block in BLOCKS if language == "yaml"]

    assert fragments
    assert all(isinstance(fragment, dict) for fragment in fragments)


def test_every_shipped_config_is_listed() -> None:
    assert [name for name in shipped_configs() if f"`{name}`" not in README] == []


def test_every_link_leads_somewhere() -> None:
    root = Path(__file__).resolve().parent.parent
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if "://" not in link]

    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_the_make_targets_exist() -> None:
    makefile = (Path(__file__).resolve().parent.parent / "Makefile").read_text()

    for target in re.findall(r"^make ([\w-]+)", README, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
