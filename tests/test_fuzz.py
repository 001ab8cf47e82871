"""Shipped configurations, damaged at random: each is refused in one line, or can be built.

Nothing is trained: building it shows whether a configuration holds, and a damaged one may ask for days.
"""

from __future__ import annotations

import contextlib
import copy
import io
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_gfs.cli import GradientFlowCLI
from lit_gfs.configuration.config_files import shipped_configs
from lit_gfs.main import main
from support.datasets import write_cifar10

CONFIGS = sorted(name for name in shipped_configs() if "/" not in name)
QUICK = ["quickstart", "ppo_cartpole", "pqn_acrobot", "dqn_pong", "ppo_walker_walk", "label_shuffle"]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 1, 2, 3, 10**6, 10**9, 10**15, 10**30, -(10**30)]),
    st.sampled_from([0.0, -0.5, 0.5, 1.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")]),
    st.sampled_from(
        ["", "x", "null", "1", "relu", "DQN", "os.system", "lit_gfs.agents.PPO", "a: b", "é", "{}"]
    ),
    st.text(max_size=5),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | scalars, inner, max_size=3)
    ),
    max_leaves=6,
)


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, value in content.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


@st.composite
def damaged(draw: Callable[..., Any], name: str) -> Any:
    """Draw a shipped configuration with one to three changes."""
    content = copy.deepcopy(yaml.safe_load(shipped_configs()[name].read_text(encoding="utf-8")))
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from(sorted(places(content), key=str)))
        parent = content
        for step in path:
            parent = parent[step]
        match draw(st.sampled_from(["replace", "delete", "add", "misspell"])):
            case "replace":
                parent[key] = draw(values)
            case "delete":
                del parent[key]
            case "add":
                parent[draw(st.text(max_size=5))] = draw(values)
            case "misspell":
                position = draw(st.integers(0, len(str(key))))
                parent[f"{str(key)[:position]}x{str(key)[position:]}"] = parent.pop(key)
        if not content:
            break
    return content


def check(content: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build what a configuration says; what is refused has to be refused well."""
    with tempfile.TemporaryDirectory() as directory, monkeypatch.context() as patch:
        patch.chdir(directory)
        patch.setattr(GradientFlowCLI, "_run_subcommand", lambda *_: None)
        patch.setattr(GradientFlowCLI, "_set_seed", lambda *_: None)
        write_cifar10(Path("data/cifar-10-batches-bin"))
        Path("mine.yaml").write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
        before = sorted(Path().rglob("*"))
        errors, status = io.StringIO(), 0
        try:
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                main(["fit", "--config", "mine.yaml"])
        except SystemExit as stop:
            status = int(stop.code or 0)
        told = errors.getvalue()
        if status or told:
            assert status == 2
            assert told.startswith("lit_gfs: error: ")
            assert told.count("\n") == 1
            assert sorted(Path().rglob("*")) == before


MANY = int(os.environ.get("FUZZ_EXAMPLES", "200"))


def fuzz(name: str, examples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(name))
    def run(content: Any) -> None:
        check(content, monkeypatch)

    run()


@pytest.mark.parametrize("name", QUICK)
def test_a_damaged_config_is_refused_or_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(name, 8, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_many_damaged_configs_are_refused_or_built(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fuzz(name, MANY, monkeypatch)
