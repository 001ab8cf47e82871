"""How the process begins."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest


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

        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.meta_path.insert(0, Interrupting())
        {start}
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    assert process.returncode == 128 + signal.SIGINT
    assert process.stderr == "lit_gfs: stopped by SIGINT\n"


def test_the_command_begins_like_the_module() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())

    assert project["project"]["scripts"] == {"lit-gfs": "lit_gfs.__main__:run"}
