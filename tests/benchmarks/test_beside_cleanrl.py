"""The benchmark beside scripts of CleanRL and LeanRL, with scripts that only tell speeds in their place."""

from __future__ import annotations

import argparse
import importlib
import json
import signal
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lit_gfs.errors import UserError

SCRIPT = """
import json, os, sys, time
import root_helper

class args:
    num_envs = 4

if __name__ == "__main__":
    with open(__file__ + ".json", "w") as file:
        json.dump({"pid": os.getpid(), "options": sys.argv[1:]}, file)
    global_step = 0
    while True:
        time.sleep(0.005)
        global_step += 12
        print("global_step", global_step)
        if global_step % 24 == 0:
            print("SPS:", 7)
"""

LEANRL = """
import json, os, sys, time
import tqdm
import root_helper

class args:
    num_envs = 1

if __name__ == "__main__":
    with open(__file__ + ".json", "w") as file:
        told = {"pid": os.getpid(), "options": sys.argv[1:], "uploads": os.environ["WANDB_MODE"]}
        json.dump(told, file)
    bar = tqdm.tqdm(range(100_000))
    for global_step in bar:
        time.sleep(0.002)
        if global_step % 2 == 0:
            bar.set_description("warming up")
        if global_step % 5 == 0:
            bar.set_description(f"speed: {7: 4.2f} sps, epsilon")
"""


@pytest.fixture
def beside() -> ModuleType:
    return importlib.import_module("beside_cleanrl")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Make a clone whose every script is the one above."""
    (tmp_path / "cleanrl").mkdir()
    (tmp_path / "root_helper.py").touch()
    for name in ("dqn", "ppo"):
        (tmp_path / "cleanrl" / f"{name}.py").write_text(SCRIPT)
    (tmp_path / "leanrl").mkdir()
    (tmp_path / "leanrl" / "dqn_torchcompile.py").write_text(LEANRL)
    return tmp_path


def arguments(clone: Path, **changed: Any) -> argparse.Namespace:
    options = {"script": "ppo", "cleanrl": clone, "python": Path(sys.executable), "seconds": 0.2, "turns": 1}
    more = {"clock": "wall", "precision": "32", "device": "cpu", "option": [], "their_option": []}
    more["leanrl"] = None
    return argparse.Namespace(**{**options, **more, **changed})


def told(clone: Path, name: str) -> dict[str, Any]:
    return json.loads((clone / "cleanrl" / f"{name}.py.json").read_text())


def has_ended(pid: int) -> bool:
    """Wait a while for a process to end, whether its parent has noticed or not."""
    stat = Path(f"/proc/{pid}/stat")
    for _ in range(200):
        try:
            if stat.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def lines(*stretches: tuple[int, float, int]) -> list[tuple[float, int]]:
    """Return pairs of seconds and steps, in stretches of (lines, seconds a line, steps a line)."""
    made = [(5.0, 1000)]
    for count, seconds, steps in stretches:
        made += [(made[-1][0] + seconds * n, made[-1][1] + steps * n) for n in range(1, count + 1)]
    return made


@pytest.mark.parametrize(
    ("stretches", "speed"),
    [
        # What a tenth of the time takes is warm-up, however many lines it has.
        ([(20, 0.5, 10), (9, 10.0, 1000)], 100),
        # One long stop is not the rule.
        ([(60, 1.0, 100), (1, 20.0, 100), (12, 1.0, 100)], 100),
        # Close lines are joined to segments of half a second: a median over lines would be 80.
        ([(2, 0.125, 10), (1, 0.5, 10)] * 100, 40),
        # The slower of two kinds of segments, if there are more of them.
        ([(1, 1.0, 100), (1, 2.0, 100)] * 5 + [(1, 2.0, 100)], 50),
    ],
)
def test_the_speed_is_that_of_the_usual_segment(
    beside: ModuleType, stretches: list[tuple[int, float, int]], speed: float
) -> None:
    assert beside.steady_speed(lines(*stretches)) == pytest.approx(speed)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_few_lines_are_no_speed(beside: ModuleType, count: int) -> None:
    with pytest.raises(UserError, match="expected a longer run"):
        beside.steady_speed(lines((4, 1.0, 10))[:count])


@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_script_runs_with_its_options_until_the_time_is_over(
    beside: ModuleType, clone: Path, clock: str
) -> None:
    # Long enough for a few segments of processor time, of which the script takes next to none.
    options = {"clock": clock, "seconds": 1.5, "their_option": ["buffer-size=50"]}
    known = beside.run_script(arguments(clone, script="dqn", **options))

    run = told(clone, "dqn")
    assert run["options"] == ["--no-cuda", "--learning-starts=1000", "--start-e=0.05", "--buffer-size=50"]
    assert has_ended(run["pid"])
    assert [steps for _, steps in known["lines"]] == [24 * n for n in range(1, len(known["lines"]) + 1)]
    assert known["steps_per_second"] == beside.steady_speed(known["lines"])
    assert known["num_envs"] == 4
    slept = 0.01 * (len(known["lines"]) - 1)
    passed = known["lines"][-1][0] - known["lines"][0][0]
    assert passed >= slept if clock == "wall" else passed < slept


@pytest.mark.parametrize(("device", "told_device"), [("cpu", ["--no-cuda"]), ("cuda", [])])
def test_a_script_of_leanrl_tells_its_speed_beside_a_bar(
    beside: ModuleType, clone: Path, device: str, told_device: list[str]
) -> None:
    given = {"cleanrl": None, "leanrl": clone, "script": "dqn_torchcompile", "device": device}
    known = beside.run_script(
        arguments(clone, **given, their_option=["compile=true", "cudagraphs=false", "seed=3"])
    )

    run = json.loads((clone / "leanrl" / "dqn_torchcompile.py.json").read_text())
    equalized = ["--learning-starts=1000", "--start-e=0.05"]
    assert run["options"] == [*told_device, *equalized, "--compile", "--no-cudagraphs", "--seed=3"]
    assert run["uploads"] == "disabled"
    assert has_ended(run["pid"])
    assert [steps for _, steps in known["lines"]] == [5 * n for n in range(len(known["lines"]))]
    assert known["num_envs"] == 1
    assert beside.pair_of(arguments(clone, **given)).agent == "dqn"


def test_fit_runs_on_the_same_device(
    beside: ModuleType, clone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run_alone(name: str, command: list[Any], seconds: float, **options: Any) -> str:
        commands.append([str(part) for part in command])
        command[command.index("--json") + 1].write_text("{}")
        return ""

    monkeypatch.setattr(beside, "run_alone", run_alone)
    beside.run_ours(arguments(clone, device="cuda"))
    assert "--option=trainer.accelerator=cuda" in commands[0]


def test_a_script_that_ends_by_itself_has_a_speed_too(beside: ModuleType, clone: Path) -> None:
    endless = (clone / "cleanrl/ppo.py").read_text()
    (clone / "cleanrl/ppo.py").write_text(endless.replace("while True", "while global_step < 240"))

    known = beside.run_script(arguments(clone, seconds=600.0))

    assert known["lines"][-1][1] == 240


def test_an_interrupt_ends_the_script(beside: ModuleType, clone: Path) -> None:
    (clone / "cleanrl/ppo.py").write_text(SCRIPT.replace('print("SPS:", 7)', "pass"))

    started = clone / "cleanrl/ppo.py.json"

    def interrupt(*_: Any) -> None:
        if started.exists() and started.stat().st_size:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            beside.run_script(arguments(clone))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert has_ended(told(clone, "ppo")["pid"])


def test_speeds_are_compared_turn_by_turn(
    beside: ModuleType, clone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[str] = []
    theirs, ours = iter([100.0, 200.0, 400.0]), iter([150.0, 500.0, 800.0])

    def run_script(_: argparse.Namespace) -> dict[str, Any]:
        measured.append("theirs")
        return {"steps_per_second": next(theirs), "num_envs": 4, "threads": 2, "versions": {"torch": "2.4"}}

    def run_ours(_: argparse.Namespace) -> dict[str, Any]:
        measured.append("ours")
        told = {"agent": "PPO", "num_envs": 8, "threads": 1, "precision": "32-true", "device": "cpu"}
        return {"fit": {"steps_per_second": next(ours)}, **told, "machine": {"cores": 2}}

    monkeypatch.setattr(beside, "run_script", run_script)
    monkeypatch.setattr(beside, "run_ours", run_ours)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")

    output = clone / "result.json"
    options = ["--script", "ppo", "--cleanrl", str(clone), "--python", sys.executable]
    beside.main([*options, "--option", "data.num_envs=8", "--json", str(output)])

    result = json.loads(output.read_text())
    assert result == json.loads(capsys.readouterr().out)
    assert measured == ["theirs", "ours"] * 3
    assert [turn["ratio"] for turn in result["turns"]] == [1.5, 2.5, 2.0]
    assert result["ratio"] == 2.0
    assert result["num_envs"] == {"ours": 8, "theirs": 4}
    assert result["threads"] == {"ours": 1, "theirs": 2}
    assert result["OMP_NUM_THREADS"] == "3"
    assert result["options"] == {"ours": {"data.num_envs": "8"}, "theirs": {}}
    assert result["versions"]["theirs"] == {"commit": None, "torch": "2.4"}


def test_fit_takes_its_turn(beside: ModuleType, clone: Path) -> None:
    options = ["model.trunk.width=8", "data.num_envs=2", "data.rollout_steps=16"]

    result = beside.compare(arguments(clone, precision="bf16", option=options, seconds=0.4))

    assert result["agent"] == "PPO"
    assert result["num_envs"] == {"ours": 2, "theirs": 4}
    assert (result["precision"], result["device"], result["clock"]) == ("bf16-mixed", "cpu", "wall")
    (turn,) = result["turns"]
    assert min(turn.values()) > 0
    assert turn["ratio"] == pytest.approx(turn["ours"] / turn["theirs"], rel=1e-4)


FAILING = 'raise SystemExit("no such thing")'


@pytest.mark.parametrize(
    ("script", "options", "message"),
    [
        ('print("hello")\nprint("bye")', [], "ppo.py printed no speed; its last lines: hello | bye"),
        (FAILING, [], "ppo.py failed with status 1; its last lines: no such thing"),
        (SCRIPT.replace("True", "global_step < 48"), [], "ppo.py: 0 segments between lines of speed"),
        (SCRIPT, ["--script", "pqn"], "has no cleanrl/pqn.py"),
        (
            SCRIPT,
            ["--script", "dqn_torchcompile"],
            "--script is 'dqn_torchcompile'; expected with --cleanrl: dqn,",
        ),
        (SCRIPT, ["--leanrl", "."], "argument --leanrl: not allowed with argument --cleanrl"),
        (SCRIPT, ["--python", "missing/python"], "missing/python cannot be started: No such file"),
        (SCRIPT, ["--turns", "0"], "--turns is 0"),
        (SCRIPT, ["--their-option", "num-envs"], "option 'num-envs'; expected key=value"),
    ],
)
def test_what_fails_is_told_in_a_line(
    beside: ModuleType,
    clone: Path,
    script: str,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (clone / "cleanrl/ppo.py").write_text(script)
    required = ["--script", "ppo", "--cleanrl", str(clone), "--python", sys.executable, "--seconds", "0.1"]

    with pytest.raises(SystemExit) as error:
        beside.main([*required, *options])

    assert error.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
