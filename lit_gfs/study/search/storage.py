"""Where the trials of a search are kept, and the locks of the processes that share them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import filelock
import optuna
from optuna.storages.journal import JournalFileBackend

from lit_gfs.errors import UserError, in_one_line
from lit_gfs.runs.storage_errors import is_storage_error
from lit_gfs.utils.atomic_files import replacing_text

JOURNAL_NAME = "optuna.journal"
PLACE_NAME = "place"


class Storage:
    """Where the trials of a study are kept, and the locks of the processes that share them.

    Args:
        directory: The directory of the search.
        url: URL of a database; ``None`` for a journal in the directory.

    Raises:
        UserError: If the directory cannot be written, or the database cannot be opened.
    """

    def __init__(self, directory: Path, url: str | None) -> None:
        self.directory = directory.absolute()
        self.locks = self.directory / "locks"
        try:
            self.locks.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if is_storage_error(error) and not isinstance(error, PermissionError):
                raise
            raise UserError(
                f"'{directory}' cannot be written ({error.strerror}); name another --root"
            ) from error
        self._lock = filelock.FileLock(self.locks / "storage.lock")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with self.locked():
            self.place = self._read_place()
            self.optuna = self._open(url)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes of this directory from claiming trials and writing tables."""
        with self._lock:
            yield

    def hold(self, launcher: str) -> None:
        """Keep other processes with the same launcher out of this directory, until this process ends.

        Raises:
            UserError: If there is one.
        """
        self._held = filelock.FileLock(self.locks / f"{launcher}.lock")
        try:
            self._held.acquire(timeout=0)
        except filelock.Timeout as error:
            raise UserError(
                f"a search with --launcher {launcher} is running in '{self.directory}'; one is enough, "
                "because its jobs run at the same time"
            ) from error

    def _open(self, url: str | None) -> optuna.storages.BaseStorage:
        if url is None:
            backend = JournalFileBackend(str(self.directory / JOURNAL_NAME))
            return optuna.storages.JournalStorage(backend)
        try:
            return optuna.storages.RDBStorage(url)
        except Exception as error:  # SQLAlchemy, or any driver of a database
            raise UserError(
                f"--storage {hidden_password(url)!r} cannot be opened ({in_one_line(error)}); expected "
                "the URL of a database, such as sqlite:///search.db"
            ) from error

    def _read_place(self) -> str:
        """Return the identity of the directory: only processes that share it see each other's locks."""
        path = self.directory / PLACE_NAME
        if not path.is_file():
            with replacing_text(path) as file:
                file.write(uuid.uuid4().hex)
        return path.read_text(encoding="utf-8")


def hidden_password(url: str) -> str:
    """Return a URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return url
    return urlunsplit(parts._replace(netloc=f"{parts.username}:***@{parts.netloc.rpartition('@')[2]}"))
