"""A report names the code that ran."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from lit_gfs.study import environment
from lit_gfs.study.cell.worker import cpu_seconds


def git(*arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_that_has_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "module.py"
    module.write_text("")
    monkeypatch.setattr(environment, "__file__", str(module))
    monkeypatch.chdir(tmp_path)
    assert environment.commit() == "not a checkout"
    git("init", "--quiet")
    git("commit", "--allow-empty", "--quiet", "--message=another project")
    assert environment.commit() == "not a checkout"  # installed below another project

    git("add", "module.py")
    git("commit", "--quiet", "--message=the code")

    assert environment.commit() == git("rev-parse", "HEAD")[:12]
    module.write_text("changed")
    assert environment.commit() == git("rev-parse", "HEAD")[:12] + "-dirty"


def test_processor_time_counts_child_processes() -> None:
    before = cpu_seconds()
    subprocess.run(["sh", "-c", "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done"], check=True)
    child = cpu_seconds() - before
    assert child > 0.05
