"""How the process begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

from lit_gfs.cli import GradientFlowCLI
from lit_gfs.main import LIGHTNING, SUBCOMMANDS, main


@pytest.mark.parametrize(
    "start", ["runpy.run_module('lit_gfs', run_name='__main__')", "lit_gfs.__main__.run()"]
)
def test_ctrl_c_while_everything_is_imported_is_told(start: str) -> None:
    script = f"""\
        import os, runpy, signal, sys
        import lit_gfs.__main__

        class Interrupting:
            def find_spec(self, name, path=None, target=None):
                if name == "lightning":
                    os.kill(os.getpid(), signal.SIGINT)

        sys.argv[1:] = ["fit", "--config=quickstart"]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, Interrupting())
        {start}
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert process.returncode == 128 + signal.SIGINT
    assert process.stderr == "lit_gfs: stopped by SIGINT\n"


WITHOUT_TORCH = [
    [],
    ["--help"],
    ["--version"],
    ["fti"],
    ["fit", "--config", "quikstart"],
    ["fit", "ppo_cartpole"],
    ["validate", "--ckpt_path", "nowhere.ckpt"],
    ["configs"],
    ["configs", "recipes/gfs"],
    ["report", "nowhere"],
    ["diagnose", "--help"],
    ["diagnose", "nowhere"],
    ["compare", "--help"],
    ["study", "--help"],
    ["study", "--config", "studies/smoke", "--dry_run"],
    ["search", "--config", "studies/search_smoke", "--dry_run"],
    ["study", "--config", "studies/smoek"],
]


def test_what_runs_nothing_imports_no_torch(tmp_path: Path) -> None:
    script = f"""\
        import contextlib, io, sys
        from lit_gfs.main import main

        for arguments in {WITHOUT_TORCH}:
            with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                with contextlib.suppress(SystemExit):
                    main(arguments)
            heavy = {{"torch", "lightning", "torchrl", "matplotlib", "scipy", "gymnasium"}} & set(sys.modules)
            print(*arguments, "imports", *sorted(heavy))
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)

    assert process.stdout.splitlines() == [" ".join([*each, "imports"]) for each in WITHOUT_TORCH]
    assert process.stderr == ""


def test_importing_callbacks_imports_neither_the_command_line_nor_environments() -> None:
    script = "import sys, lit_gfs.callbacks; print(*sys.modules)"
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    ours = {name for name in process.stdout.split() if name.startswith("lit_gfs.")}
    assert "lit_gfs.callbacks.curvature" in ours
    rooms = {name.split(".")[1] for name in ours}
    assert not rooms & {"agents", "cli", "collectors", "configuration", "datamodules", "study"}
    others = {name.partition(".")[0] for name in process.stdout.split()}
    assert not others & {"gymnasium", "jsonargparse", "sklearn", "tensorboard", "torchrl"}


def test_the_help_lists_every_subcommand(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])

    told = capsys.readouterr().out
    assert "stay trainable" in told
    for name, subcommand in SUBCOMMANDS.items():
        assert f"  {name:<10}{subcommand.line}\n" in told
    lightning = {name for name, subcommand in SUBCOMMANDS.items() if subcommand.module == LIGHTNING}
    assert lightning == set(GradientFlowCLI.subcommands())


def test_the_versions_are_those_of_the_installed_packages(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])

    packages = ("lit_gfs", "torch", "lightning", "torchrl")
    assert capsys.readouterr().out.splitlines() == [f"{name} {version(name)}" for name in packages]


def test_the_command_begins_like_the_module() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())

    assert project["project"]["scripts"] == {"lit-gfs": "lit_gfs.__main__:run"}
