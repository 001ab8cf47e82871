"""The program of a cell's process: ``python -m lit_gfs.study.cell <cell directory>``, on any machine.

It runs the ``task.json`` of the directory. If its standard input is a pipe, it ends when that is closed, and
so with the process that started it. Its exit status says how it ended:

====== ====================================================================================================
status meaning
====== ====================================================================================================
0      it wrote ``result.json``
5      the disk failed; the last line of its output, before that goes to ``log.txt``, is the reason
6      another process has the lease of the cell
other  it died: the cell has failed, or has to run again if a signal ended the process
====== ====================================================================================================
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import stat
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from lit_gfs.errors import UserError
from lit_gfs.study.cell.task import Task, read_task


def main(arguments: Sequence[str]) -> int:
    """Run the cell of a directory.

    Args:
        arguments: The directory.

    Returns:
        The exit status, unless the process ends before with another one.
    """
    try:
        (name,) = arguments
        task = read_task(Path(name))
    except (ValueError, UserError) as error:
        message = str(error) if isinstance(error, UserError) else "expected one cell's directory"
        print(f"lit_gfs.study.cell: error: {message}", file=sys.stderr)
        return 2
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        _end_after(_standard_input_ends)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as output:  # the run's own output goes to its log

        def tell_fault(message: str) -> None:
            with contextlib.suppress(OSError):
                print(message, file=output, flush=True)

        _run(task, {}, tell_fault)
    return 0


def run_as_child(directory: Path, environment: Mapping[str, str], faults: Connection) -> None:
    """Run the cell of a directory in a child process of a study.

    Args:
        directory: The directory.
        environment: Environment variables to set besides those of the task.
        faults: Receives the message of a fault of the storage.
    """
    _end_after(_parent_ends)
    _run(read_task(directory), environment, faults.send)


def _run(task: Task, environment: Mapping[str, str], tell_fault: Callable[[str], None]) -> None:
    os.chdir(task.working_directory)
    if str(task.working_directory) not in sys.path:
        sys.path.insert(0, str(task.working_directory))  # as for the study itself
    # Libraries read the number of threads when they are imported.
    os.environ.update({**task.environment, **environment})
    from lit_gfs.study.cell.worker import work

    if status := work(task, tell_fault):
        os._exit(status)


def _standard_input_ends() -> None:
    while os.read(0, 4096):  # not by `sys.stdin`, whose lock would be held at this process's end
        pass


def _parent_ends() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()


def _end_after(wait: Callable[[], object]) -> None:
    """End this process when a function returns, which waits for the process that started this one."""

    def end() -> None:
        wait()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
