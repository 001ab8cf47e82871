"""Processes of the tests: runs of the command line that need not import everything, and killed functions."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from lit_gfs.utils import checksummed_files

_CONTEXT: Any = multiprocessing.get_context("forkserver")
# All that a fit imports, once for all the processes that are forked.
_CONTEXT.set_forkserver_preload(
    [
        *("lit_gfs.cli", "lit_gfs.envs.gymnasium", "support.faulty_envs"),
        *("torch.utils.tensorboard", "matplotlib.backends.backend_agg"),
        "lit_gfs.utils.frozen_imports",
    ]
)


@dataclass
class Ended:
    """How a process ended, and what it printed."""

    status: int
    out: str
    err: str


def start(
    arguments: list[str], directory: Path, setup: Any = None, *more: list[str], draws: bool = False
) -> BaseProcess:
    """Start ``python -m lit_gfs`` with some arguments in a directory.

    Args:
        arguments: What follows the program's name.
        directory: Its working directory, where ``out.txt`` and ``err.txt`` are written.
        setup: A function that is called in the process before.
        more: Arguments of further commands, which the same process runs afterwards.
        draws: Whether it draws heat maps of gradients.
    """
    process = _CONTEXT.Process(target=_main, args=([arguments, *more], directory, setup, draws))
    process.start()
    return process


def finish(process: BaseProcess, directory: Path, timeout: float = 300) -> Ended:
    """Wait for a process; one that does not end is killed, and its status -9."""
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    assert process.exitcode is not None
    return Ended(process.exitcode, *((directory / name).read_text() for name in ("out.txt", "err.txt")))


def run(arguments: list[str], directory: Path, setup: Any = None, draws: bool = False) -> Ended:
    """Run ``python -m lit_gfs`` to its end."""
    return finish(start(arguments, directory, setup, draws=draws), directory)


def _main(commands: list[list[str]], directory: Path, setup: Any, draws: bool) -> None:
    os.chdir(directory)
    # A study may have begun the server that this process is forked from, with these ignored.
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    for stream, name, descriptor in ((sys.stdout, "out.txt", 1), (sys.stderr, "err.txt", 2)):
        stream.flush()
        with (directory / name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    import torch

    import lit_gfs.callbacks.gradient_flow
    from lit_gfs.configuration.config_trust import trust
    from lit_gfs.main import main
    from support.drawing import blank

    trust("support.faulty_envs")
    torch.set_num_threads(1)
    if not draws:
        lit_gfs.callbacks.gradient_flow.gradient_heat_map = blank
    if setup is not None:
        setup()
    for arguments in commands:
        main(arguments)


def wait_for(path: Path, seconds: float = 180.0) -> None:
    """Wait until a file has content."""
    deadline = time.monotonic() + seconds
    while not (path.is_file() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Return whether there is a process of this id."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def killed_while(function: Callable[[], Any], moment: int) -> int | None:
    """Run ``function`` in a process that kills itself before it writes, syncs or renames for the n-th time.

    Returns:
        The signal that ended it, or None if it came to its end before that moment.
    """
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else None

    moments = 0

    def killing(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any) -> Any:
            nonlocal moments
            moments += 1
            if moments == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return wrapped

    # All of it is this process's own: nothing has to be put back.
    checksummed_files._HashingFile.write = killing(checksummed_files._HashingFile.write)  # type: ignore[method-assign]
    os.fsync = killing(os.fsync)
    Path.replace = killing(Path.replace)  # type: ignore[method-assign]
    try:
        function()
    finally:
        os._exit(0)
