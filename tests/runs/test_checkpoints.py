"""Which checkpoint a run goes on from."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_gfs.configuration.config_files import complete_arguments
from lit_gfs.errors import UserError
from lit_gfs.main import main
from lit_gfs.runs.checkpoints import damage_of, find_checkpoint, newest_intact
from lit_gfs.runs.layout import latest_run
from lit_gfs.utils.checksummed_files import read_checksummed, write_checksummed
from support.command_line import DQN, Finished, stopped

pytestmark = pytest.mark.usefixtures("empty_directory")


def write(name: str, env_steps: int, global_step: int = 0, **content: Any) -> Path:
    data = {"env_steps": env_steps, **content}
    resumable = {"state_dict": {}, "loops": {}, "optimizer_states": [], "global_step": global_step}
    write_checksummed({**resumable, "ReplayDataModule": data}, Path(name))
    return Path(name)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def shard(name: str) -> dict[str, Any]:
    path = Path("replay", name)
    digest = write_checksummed({"rows": torch.arange(3)}, path)
    return {"file": name, "first": 0, "last": 3, "sha256": digest}


def test_the_furthest_in_environment_steps_is_the_newest() -> None:
    write("b.ckpt", 300, 2)
    write("a.ckpt", 200, 9)
    write("c.ckpt", 100, 9)

    assert newest_intact(Path()) == (Path("b.ckpt"), [])


def test_optimizer_steps_then_the_time_of_writing_decide_between_equals() -> None:
    write("a.ckpt", 100, 5)
    write("b.ckpt", 100, 7)
    write("c.ckpt", 100, 7)
    os.utime("c.ckpt", (1, 1))

    assert newest_intact(Path())[0] == Path("b.ckpt")


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "unsealed"])
def test_damaged_checkpoints_are_passed_over_and_named(
    damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("previous.ckpt", 100)
    newest = write("last.ckpt", 200)
    if damage == "flip":
        flip(newest)
    elif damage == "unsealed":
        torch.save({"state_dict": {}}, newest)
    else:
        newest.write_bytes(newest.read_bytes()[: -50 if damage == "cut" else 0])

    assert find_checkpoint(".") == Path("previous.ckpt")
    line = capsys.readouterr().err.strip()
    assert line.startswith("lit_gfs: passed over: last.ckpt ")
    assert "\n" not in line
    with pytest.raises(UserError, match=r"'last.ckpt' is no checkpoint, or a damaged one.*'previous.ckpt'"):
        find_checkpoint("last.ckpt")


@pytest.mark.parametrize("damage", [flip, Path.unlink])
def test_a_checkpoint_is_damaged_if_its_replay_is(damage: Any) -> None:
    old, new = shard("replay_000000000000-000000000003.pt"), shard("replay_000000000003-000000000006.pt")
    write("previous.ckpt", 100, replay=[{"sizes": {}, "position": {}, "pieces": [old]}])
    write("last.ckpt", 200, replay=[{"sizes": {}, "position": {}, "pieces": [old, new]}])
    assert damage_of(Path("last.ckpt")) is None

    damage(Path("replay", new["file"]))

    assert new["file"] in str(damage_of(Path("last.ckpt")))
    assert damage_of(Path("last.ckpt"), with_replay=False) is None  # an evaluation does without
    path, damages = newest_intact(Path())
    assert path == Path("previous.ckpt")
    assert len(damages) == 1
    assert new["file"] in damages[0]


def test_all_damaged_is_told_with_every_name() -> None:
    flip(write("a.ckpt", 1))
    flip(write("b.ckpt", 2))

    with pytest.raises(UserError, match=r"'.' holds no intact checkpoint: a.ckpt .*; b.ckpt "):
        find_checkpoint(".")


def begin(*runs: str) -> None:
    for second, run in enumerate(runs):
        Path(run).mkdir(parents=True)
        Path(run, "config.yaml").write_text("")
        os.utime(Path(run, "config.yaml"), (second, second))


def test_the_latest_run_has_the_highest_number() -> None:
    begin("runs/a/version_10", "runs/a/version_9", "runs/b/version_3", "runs/a/mine")
    Path("runs/a/version_11").mkdir()  # nothing was begun there

    assert latest_run(name="a") == Path("runs/a/version_10")
    assert latest_run(name="a", version="mine") == Path("runs/a/mine")
    assert latest_run() == Path("runs/b/version_3")
    for place in ({"root": "elsewhere"}, {"name": "c"}, {"name": "a", "version": "version_11"}):
        with pytest.raises(UserError, match="no run in"):
            latest_run(**place)


def test_last_without_a_configuration_takes_that_of_the_run() -> None:
    begin("runs/a/version_0", "runs/b/version_0")

    assert complete_arguments(["fit", "--ckpt_path", "last", "--run.name=a", "--model.x=1"]) == [
        *["fit", "--config", "runs/a/version_0/config.yaml", "--ckpt_path", "last", "--run.name", "a"],
        *["--model.x=1", "--run.root=runs", "--run.name=a", "--run.version=version_0"],
    ]


@pytest.mark.parametrize(
    "options", [["fit", "--ckpt_path=last"], [*DQN, "--ckpt_path=last"], ["fit", "--ckpt_path={run}"]]
)
def test_a_run_goes_on_from_its_newest_intact_checkpoint(
    finished: Finished, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    finished(DQN)
    run = Path("runs/dqn_CartPole-v1/version_0")
    other = Path("runs/dqn_Acrobot-v1/version_7")  # begun later, by the same agent
    if options[0:2] == DQN[0:2]:
        shutil.copytree(run, other)
    assert read_checksummed(run / "last.ckpt")["ReplayDataModule"]["env_steps"] == 600
    flip(run / "last.ckpt")
    (run / "best.ckpt").unlink()
    capsys.readouterr()

    main([option.format(run=run) for option in options] + ["--data.total_steps=800"])

    assert "passed over: runs/dqn_CartPole-v1/version_0/last.ckpt is damaged" in capsys.readouterr().err
    assert read_checksummed(run / "last.ckpt")["ReplayDataModule"]["env_steps"] == 800
    assert [path.name for path in run.parent.iterdir()] == ["version_0"]


def test_last_without_a_run_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["fit", "--ckpt_path=last"], [*DQN, "--ckpt_path=last"]):
        assert stopped(arguments) == 2
        assert "no run in runs/" in capsys.readouterr().err
