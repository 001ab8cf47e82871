from __future__ import annotations

import contextlib
import gc
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import support.accelerator  # noqa: F401 - before anything looks for a GPU

# isort: split
import lightning.fabric.utilities.registry
import pytest
import torch

import lit_gfs.callbacks.gradient_flow
import lit_gfs.study.report.panels
from lit_gfs.main import main
from support.command_line import Finished
from support.drawing import blank
from support.fakes import CountingEnv
from support.shared_parsers import forget_commands, share_parsers
from support.training import MakeTrainer, quiet_trainer

# What a shell starts in the background, or under nohup, ignores these; what is tested here heeds them.
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

# A Trainer asks all installed packages for callbacks of theirs, which takes longer than many a fit.
registry = lightning.fabric.utilities.registry
registry.entry_points = cache(registry.entry_points)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what was imported: it would go through all of it again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests run side by side; small tensors gain nothing from more threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _blank_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave pictures blank where they are not looked at: one takes longer than many a fit."""
    if request.path.name != "test_gradient_flow.py":
        monkeypatch.setattr(lit_gfs.callbacks.gradient_flow, "gradient_heat_map", blank)
    if request.path.parent.name != "report":
        monkeypatch.setattr(lit_gfs.study.report.panels, "_encoded", lambda figure, kind: b"")


@pytest.fixture(autouse=True)
def _shared_parsers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the commands of all tests take the parsers that the first of them made."""
    share_parsers(monkeypatch)
    yield
    forget_commands()


@pytest.fixture
def counting_envs(monkeypatch: pytest.MonkeyPatch) -> list[CountingEnv]:
    """Have datamodules make counting environments, of 3, 4, 5 ... steps; list those that were made."""
    made: list[CountingEnv] = []

    def make_env(env_id: str, num_envs: int = 1, **options: Any) -> CountingEnv:
        made.append(CountingEnv([3 + index for index in range(num_envs)]))
        return made[-1]

    monkeypatch.setattr("lit_gfs.datamodules.evaluated.make_env", make_env)
    return made


@pytest.fixture
def make_trainer(tmp_path: Path) -> MakeTrainer:
    """Build a Trainer that writes nothing unless told to, and that into a directory of the test's own."""
    return partial(quiet_trainer, default_root_dir=tmp_path)


@pytest.fixture
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def kept_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Run a command in a directory of its own, once for all tests; give what it left in ``runs``."""

    @cache
    def kept(*arguments: str) -> Path:
        with contextlib.chdir(tmp_path_factory.mktemp("kept")):
            main(arguments)
            # Nothing is left where the run was: what goes on from a copy cannot look there.
            return Path("runs").rename("kept").absolute()

    return kept


@pytest.fixture
def finished(empty_directory: Path, kept_runs: Callable[..., Path]) -> Finished:
    """Have an empty directory as it is after a command, which may have run for another test."""
    return lambda arguments: shutil.copytree(kept_runs(*arguments), "runs")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Give a directory in which no more than a megabyte can be written."""
    directory = tmp_path / "small_disk"
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(directory)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        yield directory
        subprocess.run(["umount", str(directory)], check=True)
        return
    # Mounting is for root; any file that grows beyond a megabyte fails in the same place.
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, most))
    yield directory
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
