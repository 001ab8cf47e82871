"""``search`` from the command line: what it suggests, keeps and chooses, with fits whose scores are known."""

from __future__ import annotations

import copy
import csv
import importlib.util
import json
import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_gfs.errors import UserError
from lit_gfs.main import main
from lit_gfs.study import command
from lit_gfs.study.launchers import options
from lit_gfs.study.planning.search_section import Pair, Search
from lit_gfs.study.search import command as search_command
from lit_gfs.study.search.storage import Storage, hidden_password
from lit_gfs.study.search.trials import Claim, Trials
from support.command_line import refused, stopped
from support.searched_fits import InThisProcess, score

STUDY: dict[str, Any] = yaml.safe_load(
    """
name: found
factors:
  task:
    t: {options: {waits: nothing, fails_below: 0}, floor: 0, reference: 1}
    held_out: {options: {waits: nothing, fails_below: 0}, floor: 0, reference: 1}
  scale: {base: {}, large: {}}
  recipe:
    plain: {options: {rate: 1.0e-4}}
    tuned: {options: {rate: 1.0}}
  seed: [0, 1]
search:
  seeds: [102, 103]
  trials: 8
  recipes:
    tuned:
      rate: {low: 1e-5, high: 1e-1, log: true}
      kind: {choices: [[1, null], plain]}
      layers: {low: 1, high: 7, step: 2}
compare: {baseline: plain, base_scale: base, tuned_on: [t]}
"""
)
SEARCH = ["search", "--config=found.yaml", "--jobs=2"]
BASE = [*SEARCH, "--only.scale=base"]
TABLES = Path("runs/found")


@pytest.fixture(autouse=True)
def _directory_with_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "LocalLauncher", InThisProcess)
    for module in (command, search_command):
        monkeypatch.setattr(module, "check_options", lambda study: None)  # no parser knows these
    write()


def write(**changes: Any) -> None:
    """Write the study with some values changed, by dotted key; a value of None removes the key."""
    study = copy.deepcopy(STUDY)
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = study
        for parent in parents:
            section = section[parent]
        section[last] = value
    Path("found.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def trials(scale: str = "base") -> list[dict[str, str]]:
    """Return the rows of a scale in ``trials.csv``, without times."""
    with (TABLES / "trials.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["scale"] == scale]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def chosen() -> dict[str, dict[str, Any]]:
    """Return the choices by scale."""
    return {choice["scale"]: choice for choice in yaml.safe_load((TABLES / "chosen.yaml").read_text())}


def began() -> list[str]:
    return [line.split()[0] for line in Path("began.txt").read_text().splitlines()]


def start(arguments: list[str]) -> BaseProcess:
    """Run a search in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=main, args=(arguments,))
    process.start()
    return process


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_best_trial_is_chosen_and_confirmed_on_other_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    assert "first run: python -m lit_gfs search --config found.yaml" in refused(
        ["study", "--config=found.yaml"], capsys
    )
    main(SEARCH)

    for scale in ("base", "large"):
        rows = trials(scale)
        assert [row["trial"] for row in rows] == [str(number) for number in range(8)]
        for row in rows:
            known = [score(float(row["rate"]), seed) for seed in (102, 103)]
            assert float(row["seed_102"]) == pytest.approx(known[0], abs=1e-6)
            if row["state"] == "finished":
                assert float(row["score"]) == pytest.approx(statistics.fmean(known), abs=1e-6)
            assert row["kind"] in ("[1, null]", "plain")
            assert row["layers"] in ("1", "3", "5", "7")
        best = max((row for row in rows if row["state"] == "finished"), key=lambda row: float(row["score"]))
        choice = chosen()[scale]
        assert choice["trial"] == int(best["trial"])
        assert choice["options"]["rate"] == float(best["rate"])
        assert (choice["seeds"], choice["tasks"], choice["trials"]) == ([102, 103], ["t"], 8)
    # Both seeds of all trials, but for those that were pruned after the first; and no seed that confirms.
    assert len(began()) == len(set(began())) <= 2 * 8 * 2
    assert {name.split("-seed_")[1][:3] for name in began()} == {"102", "103"}

    Path("began.txt").unlink()
    main(["study", "--config=found.yaml", "--jobs=2"])
    assert len(began()) == 16
    with (TABLES / "runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            rate = 1e-4 if row["recipe"] == "plain" else chosen()[row["scale"]]["options"]["rate"]
            assert float(row["final_score"]) == pytest.approx(score(rate, int(row["seed"])), abs=1e-6)
    (part,) = json.loads((TABLES / "origin.json").read_text())["parts"]
    assert part["versions"]["seeds that tuned"] == "102, 103"
    assert part["versions"]["seeds that confirm"] == "0, 1"
    (part,) = json.loads((TABLES / "search/origin.json").read_text())["parts"]
    assert len(part["cells"]) == 32 - sum(choice["pruned"] for choice in chosen().values())
    page = (TABLES / "report.html").read_text(encoding="utf-8")
    assert "The seeds 102, 103 tuned the options below, on t." in page
    assert f"rate = {chosen()['base']['options']['rate']:.4g}" in page

    # The tables alone carry the choices along, there and from there on.
    (TABLES / "chosen.yaml").unlink()
    Path("began.txt").unlink()
    main(["study", "--config=found.yaml", "--root=elsewhere", "--finished=runs/found"])
    write(factors__seed=[0, 1, 2])
    main(["study", "--config=found.yaml", "--root=elsewhere"])
    assert {name.split("-")[-1] for name in began()} == {"seed_2"}
    assert len(began()) == 8
    write(factors__seed=[0, 102])
    assert "search.seeds: 102 is also in factors.seed" in refused(["study", "--config=found.yaml"], capsys)


def test_hopeless_trials_are_pruned_as_the_median_says() -> None:
    write(search__trials=14)
    main(BASE)

    finished: list[dict[str, str]] = []
    pruned = 0
    for row in trials():
        first = float(row["seed_102"])
        is_hopeless = len(finished) + pruned >= 5 and first < statistics.median(
            float(each["seed_102"]) for each in finished
        )
        # Optuna counts finished trials alone before it prunes.
        is_hopeless = is_hopeless and len(finished) >= 5
        assert (row["state"] == "pruned") == is_hopeless, row
        assert (row["seed_103"] == "") == is_hopeless
        finished += [row] * (not is_hopeless)
        pruned += is_hopeless
    assert pruned > 0
    write(search__trials=14, search__prune=False)
    main([*BASE, "--root=all"])
    with Path("all/found/trials.csv").open(newline="") as file:
        assert {row["state"] for row in csv.DictReader(file)} == {"finished"}


def test_a_killed_search_goes_on_to_the_same_trials() -> None:
    write(search__trials=7)
    main([*BASE, "--jobs=1"])
    whole, choice = trials(), chosen()
    TABLES.rename("whole")
    Path("began.txt").unlink()
    write(search__trials=7, factors__task__t__options__waits="seed_103-trial_1")

    process = start([*BASE, "--jobs=1"])
    wait_until(lambda: Path("began.txt").exists() and began()[-1].endswith("seed_103-trial_1"))
    process.kill()
    process.join()
    before = began()
    assert [row["state"] for row in trials()] == ["finished"]
    Path("go").touch()
    main([*BASE, "--jobs=1"])

    assert trials() == whole
    assert chosen() == choice
    # Nothing that had ended ran again.
    assert Counter([*before, *began()[len(before) :]]).most_common(2) == [
        ("t-base-tuned-seed_103-trial_1", 2),
        ("t-base-tuned-seed_102-trial_0", 1),
    ]


def test_a_failed_cell_of_an_unfinished_trial_is_not_run_again() -> None:
    write(factors__task__t__options={"waits": "seed_103-trial_0", "fails_below": 1})
    process = start([*BASE, "--jobs=1"])
    wait_until(lambda: Path("began.txt").exists() and began()[-1].endswith("seed_103-trial_0"))
    process.kill()
    process.join()
    Path("go").touch()

    assert stopped([*BASE, "--trials=1"]) == 1

    assert Counter(began()) == {"t-base-tuned-seed_102-trial_0": 1, "t-base-tuned-seed_103-trial_0": 2}
    assert trials()[0]["failed_cells"] == "2"


def test_a_signal_keeps_what_ended_and_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    write(factors__task__t__options__waits="seed_102-trial_1")

    def interrupt() -> None:
        wait_until(lambda: Path("began.txt").exists() and began()[-1].endswith("seed_102-trial_1"))
        os.kill(os.getpid(), signal.SIGINT)
        Path("go").touch()

    threading.Thread(target=interrupt).start()
    assert stopped([*BASE, "--jobs=1"]) == 130
    assert "stopped, with 1 trials under way; the same command continues" in capsys.readouterr().err
    assert [row["state"] for row in trials()] == ["finished", "running"]
    assert not (TABLES / "chosen.yaml").exists()
    suggested = trials()[1]["rate"]
    main([*BASE, "--trials=2"])
    assert trials()[1]["rate"] == suggested
    assert "base" in chosen()
    assert "recipe 'tuned' at scale 'large' has no choice yet" in refused(
        ["study", "--config=found.yaml"], capsys
    )


def test_two_processes_share_the_trials() -> None:
    write(search__trials=4, factors__task__t__options__waits="")  # all wait for "go"
    processes = [start([*BASE, "--jobs=1"]) for _ in range(2)]
    wait_until(lambda: Path("began.txt").exists() and len(began()) == 2)
    Path("go").touch()

    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0]

    rows = trials()
    assert [row["trial"] for row in rows] == [str(number) for number in range(4)]
    assert {row["state"] for row in rows} <= {"finished", "pruned"}
    assert len({row["rate"] for row in rows}) == 4
    assert max(Counter(began()).values()) == 1
    assert len({line.split()[1] for line in Path("began.txt").read_text().splitlines()}) == 2
    assert chosen()["base"]["trials"] == 4


def test_failed_cells_count_as_the_floor(capsys: pytest.CaptureFixture[str]) -> None:
    write(factors__task__t__options__fails_below=1e-3)
    main(BASE)
    low = [row for row in trials() if float(row["rate"]) < 1e-3]
    assert low
    assert {(row["score"], row["state"] == "pruned" or row["failed_cells"] == "2") for row in low} == {
        ("0.0", True)
    }
    assert chosen()["base"]["options"]["rate"] >= 1e-3

    write(factors__task__t__options__fails_below=1)
    assert stopped([*BASE, "--root=none", "--trials=1"]) == 1
    assert "no choice, because all cells of 1 trials failed" in capsys.readouterr().out
    assert not Path("none/found/chosen.yaml").exists()


def test_another_plan_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    main([*BASE, "--trials=1"])
    capsys.readouterr()
    for changes, what in (
        ({"search__seeds": [102, 104]}, "other seeds: [102, 103] became [102, 104]"),
        ({"search__recipes__tuned__rate__high": 1.0}, "other distributions"),
        ({"factors__recipe__tuned__options": {"rate": 2}}, "other arguments"),
    ):
        write(**changes)
        assert stopped([*BASE, "--trials=2"]) == 2
        line = capsys.readouterr().err
        assert f"the search of recipe 'tuned' at scale 'base' began with {what}" in line
        assert line.count("\n") == 1
    write()
    written = (TABLES / "chosen.yaml").read_text()
    for old, new, what in (
        ("[102, 103]", "[1]", "was searched with the seeds [1], and the study has [102, 103]"),
        ("layers", "rows", "was searched with the options ['rate', 'kind', 'rows']"),
        ("rate: ", "rate: 9", "outside of its distribution"),
        ("recipe:", "reciep:", "'reciep' is no known key; did you mean 'recipe'?"),
    ):
        (TABLES / "chosen.yaml").write_text(written.replace(old, new))
        assert what in refused(["study", "--config=found.yaml"], capsys)


def test_only_the_free_trials_of_this_directory_are_claimed(tmp_path: Path) -> None:
    search = Search(seeds=[1], recipes={"r": {"rate": {"low": 0.0, "high": 1.0, "log": False, "step": None}}})
    url = f"sqlite:///{tmp_path}/trials.db"
    here, same, other = (
        Trials(Storage(tmp_path / place, url), "s", Pair("r", "base"), search, {})
        for place in ("here", "here", "other")
    )

    first = here.claim(3)
    assert first is not None
    claims = [same.claim(3), other.claim(3), other.claim(3), here.claim(3)]
    assert [claim and claim.number for claim in claims] == [1, 2, None, None]
    storage = Storage(tmp_path / "here", url)
    storage.hold("slurm")
    with pytest.raises(UserError, match="a search with --launcher slurm is running"):
        Storage(tmp_path / "here", url).hold("slurm")
    first.release()
    assert other.claim(3) is None
    again = same.claim(3)
    assert again is not None
    assert (again.number, again.options) == (0, first.options)


def test_options_of_the_command_are_checked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main([*SEARCH, "--dry_run"])
    shown = capsys.readouterr().out
    assert "# recipe 'tuned' at scale 'large': 8 trials on the seeds 102, 103" in shown
    assert "rate: 1e-05 to 0.1, log" in shown
    main(["study", "--config=found.yaml", "--dry_run"])
    assert "# 8 cells get more options, of a search that has not ended" in capsys.readouterr().out
    main(["study", "--config=found.yaml", "--only.recipe=plain", "--only.seed=0"])  # needs no choice
    for path in sorted(Path().rglob("*"), reverse=True):
        if path.name != "found.yaml":
            path.rmdir() if path.is_dir() else path.unlink()

    assert "--only.task limits no search" in refused([*SEARCH, "--only.task=t"], capsys)
    assert "nothing to search; expected one of recipe 'tuned'" in refused(
        [*SEARCH, "--only.recipe=plain"], capsys
    )
    assert "trials is '0'" in refused([*SEARCH, "--trials=0"], capsys)
    assert "--storage 'nowhere' cannot be opened" in storage_mistake("nowhere", capsys)
    assert "u:***@h/d" in storage_mistake("nosuchdb://u:secret@h/d", capsys)
    assert hidden_password("sqlite:///a.db") == "sqlite:///a.db"
    write(search=None)
    assert "the study 'found' has no section search" in refused(SEARCH, capsys)
    write()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "search needs the package optuna, which is not installed" in (line := refused(SEARCH, capsys))
    assert line.endswith("run: pip install 'lit-gfs[search]'")


def storage_mistake(url: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert stopped([*SEARCH, f"--storage={url}"]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert "secret" not in line
    for path in sorted(Path("runs").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    Path("runs").rmdir()
    return line


def test_recipes_and_scales_whose_names_join_alike_have_locks_of_their_own(tmp_path: Path) -> None:
    space: Any = {"rate": {"low": 1e-3, "high": 1e-1, "log": True, "step": None}}
    search = Search(recipes={"a": space, "a-b": space}, trials=2, seeds=[1], tasks=["t"])
    storage = Storage(tmp_path, None)
    pairs = (Pair("a-b", "c"), Pair("a", "b-c"))
    claims = [Trials(storage, "s", pair, search, {}).claim(2) for pair in pairs]
    assert len({claim.lock.lock_file for claim in claims if isinstance(claim, Claim)}) == 2
