"""Space for endings on a full disk: a file beside the database that is emptied when a write answers "disk full".

The file is the sign, too, for every process of the database. Full length: all is well. Empty: the disk is full, and
what the ballast gave back is for writes that end something. Absent: nobody serves this file, each process judges
for itself. It is laid again, by whoever notices, once twice its length is free.

What it gives back goes to the WAL at once, piece by piece: whoever filled the disk is mostly still writing, and would
have it first.
(SQLite takes a WAL that is longer than its frames as it is; the database file must not be opened and closed beside
it, that would drop its locks.)
"""

from __future__ import annotations

import errno
import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_BYTES: Final = 12 * 1024 * 1024  # an ending may be 200 kB; with a WAL of 4 MB the wal-index does not grow meanwhile
_PART: Final = 4  # at most this part of the whole disk
_TEND_S: Final = 2.0
_PROBE_BYTES: Final = 65_536
_PIECE_BYTES: Final = 262_144
_PAGE_BYTES: Final = 4_096
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Ballast:
    """One handle's view of it; used by the threads of that handle."""

    def __init__(self, database: str) -> None:
        """Nothing is made yet."""
        self._database = database
        self._path = f"{database}-ballast"
        self._lock = threading.Lock()
        self._short = False  # where there is no file to say it
        self._tended_at = 0.0
        disk = os.statvfs(Path(database).parent)
        self.bytes = min(_BYTES, disk.f_blocks * disk.f_frsize // _PART)

    @property
    def why(self) -> str:
        """What to tell whoever is refused, or asks for the health of the store."""
        return f"the disk of {self._database} is full: only stops and endings are stored"

    @property
    def remedy(self) -> str:
        """What people can do."""
        return f"free {2 * self.bytes / 1e6:.0f} MB on that disk; Holdfast then goes on by itself within seconds"

    def lay(self) -> None:
        """Make the file, as the owner of the database does; without room it is made empty, which says so."""
        with suppress(OSError):
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644))
        if self.low():
            self._restore()

    def low(self) -> bool:
        """Whether only endings may be written now."""
        length = self._length()
        return self._short if length is None else length == 0

    def free(self) -> None:
        """Give the space back: a write has met a full disk."""
        with self._lock:
            try:
                self._move_into_wal()
            except OSError:
                self._short = True
            self._tended_at = time.monotonic()

    def tend(self) -> None:
        """Lay the ballast again if there is room; looks every two seconds at most."""
        now = time.monotonic()
        if now - self._tended_at >= _TEND_S:
            self._tended_at = now
            if self.low():
                self._restore()

    def full(self) -> bool:
        """Ask the disk: SQLite does not always say why it could not write."""
        probe = f"{self._path}-{os.getpid()}"
        try:
            fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _PROBE_BYTES)
            finally:
                os.close(fd)
                os.unlink(probe)
        except OSError as error:
            return error.errno in _FULL
        return False

    def room(self) -> int:
        """Free bytes on the disk."""
        disk = os.statvfs(Path(self._database).parent)
        return disk.f_bavail * disk.f_frsize

    def _move_into_wal(self) -> None:
        left = os.stat(self._path).st_size
        fd = os.open(f"{self._database}-wal", os.O_RDWR | os.O_CLOEXEC)
        try:
            while left > 0:
                left = max(0, left - _PIECE_BYTES)
                os.truncate(self._path, left)
                _lengthen(fd)
        finally:
            os.close(fd)

    def _length(self) -> int | None:
        try:
            return os.stat(self._path).st_size
        except OSError:
            return None

    def _restore(self) -> None:
        with self._lock:
            if self.room() < 2 * self.bytes:
                return
            self._short = False
            if self._length() is None:
                return
            fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.posix_fallocate(fd, 0, self.bytes)
            except OSError:
                os.ftruncate(fd, 0)
            finally:
                os.close(fd)


def _lengthen(fd: int) -> None:
    """By one piece, or what there is of it."""
    length, more = os.fstat(fd).st_size, _PIECE_BYTES
    while more >= _PAGE_BYTES:
        try:
            os.posix_fallocate(fd, length, more)
        except OSError:
            more //= 2
        else:
            return
