"""``study`` and ``report`` from the command line, with fits that really train, for a moment."""

from __future__ import annotations

import csv
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_gfs.configuration.config_files import find_config
from lit_gfs.main import main
from lit_gfs.study.planning.options_check import check_options
from lit_gfs.study.planning.plan import Study
from support.command_line import stopped

STUDY: dict[str, Any] = yaml.safe_load(
    """
name: tiny
score: {tag: eval/phase_accuracy, curve_tag: eval/accuracy, x_label: optimizer steps}
factors:
  task:
    digits:
      configs: [label_shuffle]
      options:
        data.samples: 256
        data.shuffle_every: 1
        data.epochs: 3
        data.eval_every: 1
        gfs.gradient_flow.init_args.every_n_steps: 1
      floor: 0.1
      reference: 1
  scale:
    base: {options: {model.trunk.depth: 2, model.trunk.width: 8}}
    large: {options: {model.trunk.depth: 4, model.trunk.width: 16}}
  recipe:
    baseline: {configs: [recipes/baseline]}
    gfs: {configs: [recipes/gfs]}
  seed: [0, 1]
skip: [{scale: base, recipe: gfs}, {scale: large, recipe: baseline}]
compare: {baseline: baseline, base_scale: base}
"""
)
RUN = ["study", "--config", "tiny.yaml"]
PAIR = [*RUN, "--only.recipe=baseline"]
"""Two of the four cells, which differ in their seeds."""
TABLES = Path("runs/tiny")


@pytest.fixture(autouse=True)
def _directory_with_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(STUDY)


def write(study: dict[str, Any]) -> None:
    Path("tiny.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def with_options(**options: Any) -> dict[str, Any]:
    """Return the study with other options of its task."""
    task = STUDY["factors"]["task"]["digits"]
    changed = {**task, "options": {**task["options"], **options}}
    return {**STUDY, "factors": {**STUDY["factors"], "task": {"digits": changed}}}


def rows(name: str, *ignored: str) -> list[dict[str, str]]:
    with (TABLES / name).open(newline="") as file:
        return [{key: row[key] for key in row if key not in ignored} for row in csv.DictReader(file)]


def tables() -> list[list[dict[str, str]]]:
    """Return everything in the tables but times."""
    return [
        rows("runs.csv", "wall_seconds", "cpu_seconds"),
        rows("curves.csv", "seconds"),
        rows("gradient_norms.csv"),
    ]


def test_a_study_that_is_killed_goes_on_to_the_same_tables(tmp_path: Path) -> None:
    main(PAIR)
    whole = tables()
    assert sorted(row["status"] for row in whole[0]) == ["finished"] * 2 + ["missing"] * 2
    assert {row["cell"] for row in whole[2]} == {"digits-base-baseline-seed_0"}
    assert {path.name for path in TABLES.iterdir()} >= {"study.yaml", "summary.json", "report.html"}
    before = {path: path.stat().st_mtime_ns for path in TABLES.glob("cells/*/result.json")}
    main(PAIR)
    assert {path: path.stat().st_mtime_ns for path in TABLES.glob("cells/*/result.json")} == before
    TABLES.rename("whole")

    process = subprocess.Popen([sys.executable, "-m", "lit_gfs", *PAIR, "--jobs", "2"])
    wait_for_a_cell()
    time.sleep(random.uniform(0, 2))  # any moment will do
    process.send_signal(signal.SIGKILL)
    process.wait()
    main([*PAIR, "--jobs", "2"])

    assert tables() == whole


def test_a_study_goes_on_from_the_tables_of_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    main([*PAIR, "--jobs=2"])
    whole = tables()
    TABLES.rename("whole")
    main([*PAIR, "--only.seed=0", "--jobs=2"])
    part = keep_tables("part")
    assert [row["status"] for row in rows("runs.csv")].count("missing") == 3
    times = {row["cell"]: row["wall_seconds"] for row in rows("runs.csv")}
    shutil.rmtree("runs")
    seconds = [row["seconds"] for row in csv.DictReader((part / "curves.csv").open(newline=""))]

    main([*PAIR, "--finished=part", "--dry_run=true"])
    planned = [line for line in capsys.readouterr().out.splitlines() if line.startswith("#")]
    assert planned == ["# digits-base-baseline-seed_1"]
    assert not Path("runs").exists()
    main([*PAIR, "--finished", "part", "--jobs=1"])

    assert "4 cells: 1 finished before, 2 left out, 1 to run, 1 at a time" in capsys.readouterr().out
    assert tables() == whole
    merged = {row["cell"]: row for row in rows("runs.csv") if row["status"] == "finished"}
    assert all(merged[cell]["wall_seconds"] == time for cell, time in times.items() if time)
    assert all(float(row["cpu_seconds"]) > 0 for row in merged.values())
    taken = [row["seconds"] for row in rows("curves.csv") if row["cell"].endswith("seed_0")]
    assert taken == seconds
    parts = json.loads((TABLES / "origin.json").read_text())["parts"]
    assert [sorted(part["cells"]) for part in parts] == [
        sorted(cell for cell in merged if cell.endswith(f"seed_{seed}")) for seed in (0, 1)
    ]
    assert [part["versions"]["cells at a time"] for part in parts] == ["2", "1"]

    # The same command goes on, also without the option, and nothing runs again.
    for again in ([*PAIR, "--finished=part"], PAIR):
        main([*again, "--jobs=1"])
        assert ", 0 to run," in capsys.readouterr().out
        assert json.loads((TABLES / "origin.json").read_text())["parts"] == parts
    page = (TABLES / "report.html").read_text(encoding="utf-8")
    assert "run in 2 parts" in page


def test_tables_of_other_arguments_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--only.seed=0", "--only.recipe=baseline"]
    main([*RUN, *only])
    keep_tables("part")
    shutil.rmtree("runs")
    write(with_options(**{"data.epochs": 2}))

    for options in (["--finished=part"], ["--finished=part", "--dry_run=true"]):
        assert mistake_of([*RUN, *options], capsys) == (
            "cell 'digits-base-baseline-seed_0' was finished with other arguments: "
            "--data.epochs=3 became --data.epochs=2; leave 'part' out"
        )
    write(STUDY)
    threads = mistake_of([*RUN, "--finished=part", "--threads=2"], capsys)
    assert "--threads=1 became --threads=2" in threads
    Path("part/curves.csv").unlink()
    assert "'part' has no curves.csv" in mistake_of([*RUN, "--finished=part"], capsys)
    assert not Path("runs").exists()


def test_an_origin_of_one_part_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    only = ["--only.seed=0", "--only.recipe=baseline"]
    main([*RUN, *only])
    part = keep_tables("part")
    shutil.rmtree("runs")
    (first,) = json.loads((part / "origin.json").read_text())["parts"]
    old = {"command": first["command"], "versions": {"date": "2020-01-01"}}
    (part / "origin.json").write_text(json.dumps(old))
    with (part / "runs.csv").open(newline="") as file:
        table = [row[:-2] for row in csv.reader(file)]  # without the columns that were added
    with (part / "runs.csv").open("w", newline="") as file:
        csv.writer(file).writerows(table)

    main([*RUN, "--finished=part", *only])

    assert ", 0 to run," in capsys.readouterr().out
    parts = json.loads((TABLES / "origin.json").read_text())["parts"]
    assert [part["cells"] for part in parts] == [["digits-base-baseline-seed_0"]]  # merging is no part
    assert parts[0]["versions"] == old["versions"]
    assert rows("runs.csv")[0]["cpu_seconds"] == ""


def keep_tables(name: str) -> Path:
    """Copy what is left of a study once its runs are gone."""
    place = Path(name)
    place.mkdir()
    for file in TABLES.iterdir():
        if file.suffix in {".csv", ".json", ".yaml"}:
            shutil.copy(file, place)
    return place


class KillOnce(Callback):
    """Kills the process after the third epoch, unless that has been done in the working directory."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 2 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_cell_that_is_killed_goes_on_to_the_same_tables(capsys: pytest.CaptureFixture[str]) -> None:
    write(with_options(**{"trainer.callbacks": {"class_path": f"{__name__}.KillOnce"}, "data.epochs": 5}))
    run = [*RUN, "--only.recipe=baseline", "--only.seed=0", f"--trust={__name__}", "--jobs=1"]
    Path("killed").touch()
    main(run)
    whole = tables()
    TABLES.rename("whole")
    Path("killed").unlink()

    main(run)

    assert "killed by SIGKILL (out of memory?); starts again" in capsys.readouterr().out
    assert tables() == whole
    (cell,) = TABLES.glob("cells/*")
    assert len(list(cell.glob("events*"))) == 2  # it did go on
    assert {path.name for path in cell.glob("*.ckpt")} == {"best.ckpt", "last.ckpt"}


# Other signals take the same way: fit is stopped by each of them in test_graceful_stop.
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_leaves_tables_and_says_how_to_go_on(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # The second cell lasts until the signal has come.
    study = with_options()
    endless = {"data.shuffle_every": 1_000_000, "data.epochs": 1_000_000}
    study["when"] = [{"where": {"seed": "1"}, "options": endless}]
    write(study)

    def interrupt() -> None:
        wait_for_a_cell("result.json")
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    assert stopped([*PAIR, "--jobs", "1"]) == 128 + number
    assert "cells left; the same command continues" in capsys.readouterr().err
    statuses = [row["status"] for row in rows("runs.csv")]
    assert statuses[0] == "finished"
    assert statuses[-1] == "missing"


def test_a_part_of_a_study_with_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    study = with_options()
    study["when"] = [{"where": {"scale": "large"}, "options": {"data.samples": 10_000_000}}]
    write(study)

    assert stopped([*RUN, "--only.recipe=[baseline,gfs]", "--only.seed=1"]) == 1
    by_status = {row["status"]: row for row in rows("runs.csv")}
    assert by_status["finished"]["cell"] == "digits-base-baseline-seed_1"
    assert by_status["failed"]["cell"] == "digits-large-gfs-seed_1"
    assert "10000000" in by_status["failed"]["error"].replace(",", "").replace("_", "")
    assert "missing" in by_status
    assert "(1 of 4 cells failed)" in capsys.readouterr().out

    (TABLES / "report.html").unlink()
    main(["report", str(TABLES)])
    assert "CPU cores" in (TABLES / "report.html").read_text(encoding="utf-8")
    for name in ("origin.json", "runs.csv"):
        written = (TABLES / name).read_text(encoding="utf-8")
        (TABLES / name).write_text(written.replace("command", "").replace(",scale,", ",size,"))
        assert name in mistake_of(["report", str(TABLES)], capsys)
        (TABLES / name).write_text("")
        assert name in mistake_of(["report", str(TABLES)], capsys)
        (TABLES / name).write_text(written, encoding="utf-8")
    (TABLES / "curves.csv").unlink()
    assert "has no curves.csv" in mistake_of(["report", str(TABLES)], capsys)

    write(with_options(**{"data.epochs": 2}))
    change = "finished with other arguments: --data.epochs=3 became --data.epochs=2;"
    assert mistake_of(RUN, capsys).startswith(f"cell 'digits-base-baseline-seed_1' was {change}")


def mistake_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line that a command ends with."""
    capsys.readouterr()
    assert stopped(arguments) == 2
    line = capsys.readouterr().err.strip()
    assert line.startswith("lit_gfs: error: ")
    assert "\n" not in line
    return line.removeprefix("lit_gfs: error: ")


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--job=3", "--job"),
        ("--only.recipe=gsf", "--only: 'gsf' is no known level of recipe; did you mean 'gfs'"),
    ],
)
def test_a_wrong_option_is_told(option: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert expected in mistake_of([*RUN, option], capsys)
    assert not Path("runs").exists()


def test_a_misspelt_option_is_told_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    study = with_options()
    study["when"] = [{"where": {"scale": "large", "seed": 1}, "options": {"model.trunk.depht": 3}}]
    write(study)

    message = mistake_of(RUN, capsys)

    assert message.startswith("cell 'digits-large-gfs-seed_1': model.trunk.depht is no known key")
    assert not Path("runs").exists()


def test_a_missing_configuration_is_told_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    study = with_options()
    study["factors"]["recipe"] = {"baseline": {}, "gfs": {"configs": ["recipes/gsf"]}}
    write(study)

    message = mistake_of(RUN, capsys)

    assert message.startswith("cell 'digits-large-gfs-seed_0': --config 'recipes/gsf' not found")
    assert "did you mean 'recipes/gfs'" in message


def test_a_task_without_a_floor_has_to_be_an_atari_game(capsys: pytest.CaptureFixture[str]) -> None:
    study = with_options()
    del study["factors"]["task"]["digits"]["floor"], study["factors"]["task"]["digits"]["reference"]
    write(study)

    assert "factors.task.digits has no floor and no reference" in mistake_of(RUN, capsys)


def test_the_atari_study_is_ready(capsys: pytest.CaptureFixture[str]) -> None:
    main(["study", "--config", "studies/atari", "--dry_run", "true", "--jobs", "1000"])

    lines = capsys.readouterr().out.splitlines()
    # Two lines a run: three seeds of three recipes at three sizes, and a control at the two larger ones.
    assert len(lines) == 2 * 10 * 2 * 3 * (3 * 3 + 2)
    assert lines[0] == "# Amidar-pqn-small-baseline-seed_0"
    assert lines[1].startswith("python -m lit_gfs fit ")
    assert "--data.env_id=ALE/Amidar-v5 " in lines[1]
    assert not Path("runs").exists()
    rates = {
        recipe: {
            rate
            for line in lines[1::2]
            if f"-{recipe}-seed" in line
            for rate in re.findall(r"--model\.optimizer\.lr=(\S+)", line)
        }
        for recipe in ("lr_third", "multiskip_kron", "gfs")
    }
    # The paper's: a third of 2.5e-4. The control has the same rate.
    assert rates == {"lr_third": {"8.3e-05"}, "multiskip_kron": {"8.3e-05"}, "gfs": set()}


@pytest.mark.parametrize("name", ["studies/control", "studies/label_shuffle", "studies/smoke"])
def test_the_options_of_every_shipped_study_are_known(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    study = Study.load(find_config(name))
    check_options(study)
    main(["study", "--config", name, "--dry_run"])

    planned = len(study.cells())
    assert capsys.readouterr().out.count("\npython -m lit_gfs fit ") == planned


def test_a_score_that_no_agent_reports_is_told_before_the_first_cell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    study = with_options()
    study["score"] = {"tag": "eval/phase_acuracy"}
    write(study)

    line = mistake_of(RUN, capsys)

    assert line.startswith("score.tag is 'eval/phase_acuracy'; expected one of eval/accuracy, eval/phase")
    assert line.endswith("did you mean 'eval/phase_accuracy'?")


def test_a_plan_names_configurations_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    study = with_options()
    study["factors"]["recipe"]["gfs"] = {"configs": ["recipes/gsf"]}
    write(study)

    assert mistake_of([*RUN, "--dry_run"], capsys).startswith(
        "factors.recipe.gfs: --config 'recipes/gsf' not found"
    )


def wait_for_a_cell(name: str = "log.txt", seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not list(TABLES.glob(f"cells/*/{name}")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
