"""The files that a stranger meets first are whole, and agree with each other."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import lit_gfs

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ADDRESS = re.compile(r"https://github\.com/[\w.-]+/lit_gfs\b")


def read_yaml(name: str) -> dict[str, Any]:
    content = yaml.safe_load((ROOT / name).read_text())
    assert isinstance(content, dict)
    return content


def test_the_citation_has_what_the_format_requires() -> None:
    citation = read_yaml("CITATION.cff")

    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["version"] == lit_gfs.__version__ == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]


def test_the_citation_refers_to_the_paper() -> None:
    (paper,) = read_yaml("CITATION.cff")["references"]

    assert {"type", "title", "authors", "year"} <= paper.keys()
    assert "2506.15544" in paper["url"]
    assert all({"family-names", "given-names"} <= author.keys() for author in paper["authors"])


def test_the_workflow_runs_what_decides_here() -> None:
    (job,) = read_yaml(".github/workflows/ci.yml")["jobs"].values()
    versions = [step["with"]["python-version"] for step in job["steps"] if "python" in step.get("uses", "")]

    assert ".ci/run" in [step.get("run") for step in job["steps"]]
    assert [f">={version}" for version in versions] == [PROJECT["requires-python"]]
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_what_decides_builds_the_site() -> None:
    (line,) = [line for line in (ROOT / ".ci/run").read_text().splitlines() if "docs" in line]
    assert line.startswith("make ")
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()


def test_the_hooks_are_those_of_make_lint() -> None:
    hooks = {
        hook["id"]: hook for repo in read_yaml(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]
    }

    assert hooks["ruff"]["entry"].startswith(".venv/bin/ruff check")
    assert hooks["ruff-format"]["entry"] == ".venv/bin/ruff format"


def test_every_page_is_in_the_navigation() -> None:
    def pages(entry: Any) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        below = entry.values() if isinstance(entry, dict) else entry
        return [page for each in below for page in pages(each)]

    listed = pages(read_yaml("mkdocs.yml")["nav"])
    written = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]

    assert sorted(listed) == sorted(written)


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("../../lit_gfs/optim/muon.py", "https://example.org/blob/main/lit_gfs/optim/muon.py"),
        ("../../callbacks", "https://example.org/tree/main/callbacks"),
        ("../results/README.md#control", "../results/README.md#control"),
        ("path_init.md", "path_init.md"),
    ],
)
def test_a_link_out_of_docs_leads_to_the_repository_in_the_site(link: str, target: str) -> None:
    hook = runpy.run_path(str(ROOT / "docs/hooks/repository_links.py"))
    page = SimpleNamespace(file=SimpleNamespace(abs_src_path=str(ROOT / "docs/interventions/layer_rates.md")))
    config = SimpleNamespace(docs_dir=str(ROOT / "docs"), repo_url="https://example.org")

    markdown = hook["on_page_markdown"](f"see [it]({link}).", page=page, config=config)

    assert markdown == f"see [it]({target})."


def test_the_site_needs_no_other_server() -> None:
    assert read_yaml("mkdocs.yml")["theme"]["font"] is False


def test_the_changelog_knows_the_version() -> None:
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md", "CITATION.cff", "mkdocs.yml"])
def test_there_is_one_address_of_the_repository(name: str) -> None:
    addresses = set(ADDRESS.findall((ROOT / name).read_text()))

    assert addresses == {PROJECT["urls"]["Repository"]}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
