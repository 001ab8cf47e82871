"""The benchmark of memory in use: its samples, and what it makes of them."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from lit_gfs.errors import UserError

MIB = 2**20

SHORT = [
    "--option=model.trunk.width=4",
    "--option=data.env_options.max_frames=80",
    "--option=data.num_envs=4",
]
ROLLOUT = ["--option=data.rollout_steps=8"]
REPLAY = ["--option=data.learning_starts=20", "--option=data.steps_per_update=16"]


@pytest.fixture
def resident(empty_directory: Path) -> ModuleType:
    return importlib.import_module("resident_memory")


@pytest.mark.parametrize(("agent", "options"), [("dqn", REPLAY), ("pqn", ROLLOUT)])
def test_a_leak_shows(
    resident: ModuleType, agent: str, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    in_use = iter(range(100 * MIB, 200 * MIB, 2 * MIB))
    monkeypatch.setattr(resident, "resident_bytes", lambda: next(in_use))

    resident.main(
        ["--agent", agent, "--steps", "320", "--every", "32", *SHORT, *options, "--json", "out.json"]
    )

    result = json.loads(Path("out.json").read_text())
    steps, mib = zip(*result["samples_mib"], strict=True)
    assert len(steps) >= 10
    assert mib == tuple(100 + 2 * n for n in range(len(steps)))
    # Only what settled counts: after three tenths of the run.
    kept = [n for n, step in enumerate(steps) if step >= 96]
    assert kept[0] > 0
    slope, _ = np.polyfit([steps[n] for n in kept], [mib[n] for n in kept], 1)
    assert result["mib_per_100k_steps"] == pytest.approx(100_000 * slope, rel=1e-4)
    assert result["largest_rise_mib"] == 2 * (len(kept) - 1)
    assert result["steps"] == 320
    assert result["updates"] > 0


def test_a_rise_is_from_any_sample_to_any_later_one(resident: ModuleType) -> None:
    mib = [900, 50, 40, 43, 41, 46, 30, 35]

    found = resident.rise([(10 * n, count * MIB) for n, count in enumerate(mib)], settled=10)

    assert found["largest_rise_mib"] == 6
    assert resident.rise([(10 * n, 7 * MIB) for n in range(5)], 0) == {
        "mib_per_100k_steps": 0,
        "largest_rise_mib": 0,
    }


def test_too_few_samples_are_no_slope(resident: ModuleType) -> None:
    with pytest.raises(UserError, match="2 samples after step 30"):
        resident.rise([(10 * n, MIB) for n in range(5)], settled=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--every", "33"], "--every is 33; expected at most a tenth of --steps, 32"),
        (
            ["--every", "32", "--option", "data.buffer_size=200"],
            "data.buffer_size is 200; expected at most 96",
        ),
        (["--every", "0"], "0 is not positive"),
        (["--every", "32", "--option", "data"], "option 'data'; expected key=value"),
    ],
)
def test_a_mistake_is_told_in_a_line(
    resident: ModuleType, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        resident.main(["--agent", "dqn", "--steps", "320", *SHORT, *REPLAY, *options])

    assert error.value.code == 2
    assert message in capsys.readouterr().err
