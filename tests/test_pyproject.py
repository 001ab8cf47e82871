"""What pyproject.toml lists by hand is what there is."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imported_packages() -> set[str]:
    """Return the packages of others that shipped modules import, at their top or within a function."""
    packages: set[str] = set()
    for directory in ("lit_gfs", "callbacks", "datamodules", "configs"):
        for path in (ROOT / directory).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    packages |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    packages.add(str(node.module).partition(".")[0])
    return packages - sys.stdlib_module_names - {"lit_gfs"}


def distribution(requirement: str) -> str:
    """Return the name of a requirement's distribution, in its normal form."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=]", requirement)[0]).lower()


def test_every_imported_package_is_a_declared_dependency() -> None:
    project = PROJECT["project"]
    extras = project["optional-dependencies"]
    optional = [each for name in ("video", "minatar", "offline", "ray") for each in extras[name]]
    declared = {distribution(each) for each in project["dependencies"] + optional}
    declared.add("imageio-ffmpeg")  # the extra of imageio[ffmpeg]
    installed = packages_distributions()

    undeclared = [
        package
        for package in imported_packages()
        if declared.isdisjoint(map(distribution, installed.get(package, [package])))
    ]

    assert sorted(undeclared) == []
