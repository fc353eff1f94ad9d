"""Who owns a database file: flock on a file beside it. Holding it proves that the owner before is dead."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Final

from holdfast.aio import closed_here, not_for_forks
from holdfast.stores.errors import StoreError, StoreTaken

_PATIENCE_S: Final = 3.0
_ORPHAN_S: Final = 10.0  # the owner is dead: its worker ends, or is ended, within two seconds
_PAUSE_S: Final = 0.05


class OwnerLock:
    """Held by the one process whose worker serves the file; the kernel lets go of it when the process ends."""

    def __init__(self, database: str) -> None:
        """Take the lock at once, or say who has it.

        Raises:
            StoreError: Another process holds it; the text names its pid.
        """
        self._path = Path(database + ".lock")
        try:
            self.fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"cannot open {self._path}: {error}; check the directory's permissions") from error
        self._take(database)
        not_for_forks(self.fd)
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go."""
        closed_here(self.fd)
        os.close(self.fd)

    def _take(self, database: str) -> None:
        """Wait a moment: the worker of a gateway that was killed holds the lock until it has seen that."""
        began = time.monotonic()
        while True:
            try:
                fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                holder = os.pread(self.fd, 64, 0).decode(errors="replace").strip() or "unknown"
                if time.monotonic() < began + (_PATIENCE_S if _lives(holder) else _ORPHAN_S):
                    time.sleep(_PAUSE_S)
                    continue
                os.close(self.fd)
                raise StoreTaken(_taken(database, holder)) from error
            return


def _taken(database: str, holder: str) -> str:
    if _lives(holder):
        return f"{database} is served by process {holder}; stop that one, or give this one another --store"
    return (
        f"{database} was served by process {holder}, which has ended, but something that it started still has "
        f"{database}.lock open; end that (fuser {database}.lock names it), or give this one another --store"
    )


def _lives(holder: str) -> bool:
    """Whether the process that wrote its id into the file lives; True where nobody can tell."""
    try:
        os.kill(int(holder), 0)
    except ProcessLookupError:
        return False
    except (OSError, ValueError, OverflowError):
        return True
    return True
