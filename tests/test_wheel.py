"""What is shipped: the wheel, in a virtual environment of its own, outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without this process's own packages in sight; return what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    process = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        directory,
        ROOT,
        cwd=directory,
    )
    return next(directory.glob("lit_gfs-*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new virtual environment with the wheel; it sees the dependencies that are installed here."""
    directory = tmp_path_factory.mktemp("venv")
    venv.create(directory, with_pip=False)
    interpreter = directory / "bin" / "python"
    site_packages = Path(
        run(
            interpreter, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=directory
        ).strip()
    )
    # A path file inside of the listed directory is not followed, so the editable install stays out of sight.
    (site_packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site_packages,
        wheel,
        cwd=directory,
    )
    return interpreter


def test_the_wheel_holds_all_packages_and_configs(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())

    expected = {"lit_gfs/py.typed"}
    for folder in ("lit_gfs", "callbacks", "datamodules", "configs"):
        prefix = "" if folder == "lit_gfs" else "lit_gfs/"
        for pattern in ("*.py", "*.yaml"):
            files = (ROOT / folder).rglob(pattern)
            expected |= {prefix + path.relative_to(ROOT).as_posix() for path in files}
    assert expected <= held
    assert {name.split("/")[0] for name in held if not name.startswith("lit_gfs-")} == {"lit_gfs"}


def test_an_installed_wheel_trains_from_any_folder(python: Path, tmp_path: Path) -> None:
    places = run(
        python,
        "-c",
        "import lit_gfs, lit_gfs.callbacks, lit_gfs.datamodules, lit_gfs.configs as c;"
        "print(lit_gfs.__file__, lit_gfs.callbacks.__file__, lit_gfs.datamodules.__file__, c.__file__)",
        cwd=tmp_path,
    )
    assert all(str(python.parent.parent) in place for place in places.split())

    printed = run(
        python,
        *("-m", "lit_gfs", "fit", "--config", "quickstart", "--data.total_steps", "600"),
        *("--data.learning_starts", "200", "--data.eval_every", "400", "--data.eval_episodes", "2"),
        cwd=tmp_path,
    )

    assert "finished" in printed
    assert (tmp_path / "runs/dqn_CartPole-v1/version_0/last.ckpt").is_file()
