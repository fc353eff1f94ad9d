"""Keeps the WAL short from a thread of its own, so that no commit waits for a checkpoint.

A passive checkpoint copies what it can while others write, but a WAL begins anew only when a checkpoint has caught
up with every writer, and no reader is left in it. Under constant load that never comes by itself: then the writer is
asked to copy the little that a passive one has left, between two of its transactions, where nobody writes.
How much of the file is in use is read from the salts of its frames, which change each time it begins anew.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from holdfast.stores.errors import StoreError
from holdfast.stores.sqlite.ballast import Ballast

_FRAMES_MAX: Final = 1000  # 4 MB: the writer is asked
_FRAMES: Final = 500  # copied while others write
_LOOK_S: Final = 0.05
_CALM_LOOK_S: Final = 0.2  # while little is written, and there is little
_CALM_FRAMES: Final = 32  # new ones since the last look
_SLEEP_S: Final = 30.0
_HOLD_MS: Final = 100  # how long TRUNCATE waits for others, while writers may wait for it
_IDLE_S: Final = 5.0
_IDLE_FRAMES: Final = 64  # fewer new frames in that time: nobody waits for the disk
_FORGET_S: Final = 1.0  # between two tries to empty a WAL of what was deleted
_TRUNCATE_BYTES: Final = 1_000_000
_JOIN_S: Final = 2.0
_HEADER: Final = 32
_FRAME_HEADER: Final = 24


def frames_in(wal: str) -> int:
    """How many frames of the WAL are in use: frames of this round bear the salts of its header, older ones others."""
    try:
        fd = os.open(wal, os.O_RDONLY | os.O_CLOEXEC)  # a WAL has no locks that closing it would drop
    except OSError:
        return 0
    try:
        head = os.pread(fd, _HEADER, 0)
        if len(head) < _HEADER:
            return 0
        page: int = struct.unpack(">I", head[8:12])[0]
        low, high = 0, (os.fstat(fd).st_size - _HEADER) // (page + _FRAME_HEADER)
        while low < high:
            middle = (low + high + 1) // 2
            offset = _HEADER + (middle - 1) * (page + _FRAME_HEADER)
            if os.pread(fd, 8, offset + 8) == head[16:24]:
                low = middle
            else:
                high = middle - 1
        return low
    finally:
        os.close(fd)


class Checkpoints:
    """The thread, with its own connection."""

    def __init__(
        self, path: str, open_: Callable[[], sqlite3.Connection], ballast: Ballast, catch_up: Callable[[], None]
    ) -> None:
        """Start. `catch_up` asks this handle's writer to copy what is left."""
        self._path = path
        self._wal = f"{path}-wal"
        self._open = open_
        self._ballast = ballast
        self._catch_up = catch_up
        self._conn: sqlite3.Connection | None = None
        self._written = threading.Event()
        self._closing = threading.Event()
        self._forgets = False  # something was deleted, and the WAL may still hold it
        self._frames = 0  # at the last look
        self._calm = False
        self._base = (0.0, 0)  # since when fewer than _IDLE_FRAMES were written, and at which length
        self._thread = threading.Thread(target=self._work, name="holdfast-checkpoints", daemon=True)
        self._thread.start()

    def note(self) -> None:
        """Something was written; free of cost."""
        if not self._written.is_set():
            self._written.set()

    def forget(self) -> None:
        """Something was deleted for good: empty the WAL soon, however short it is, as it holds what was there."""
        self._forgets = True
        self._written.set()

    def close(self) -> None:
        """End the thread; bounded."""
        self._closing.set()
        self._written.set()
        conn = self._conn
        if conn is not None:
            with suppress(sqlite3.Error):
                conn.interrupt()
        self._thread.join(_JOIN_S)

    def _work(self) -> None:
        while not self._closing.is_set():
            written = self._written.wait(_FORGET_S if self._forgets else _SLEEP_S)
            if (written or self._forgets) and not self._closing.is_set():
                self._written.clear()
                with suppress(sqlite3.Error, StoreError, OSError):  # the disk's trouble: the writer tells of it
                    self._look()
                self._closing.wait(_CALM_LOOK_S if self._calm else _LOOK_S)
        if self._conn is not None:
            with suppress(sqlite3.Error):
                self._conn.close()

    def _look(self) -> None:
        now = time.monotonic()
        before, frames = self._frames, frames_in(self._wal)
        self._frames = frames
        self._calm = before <= frames < min(before + _CALM_FRAMES, _FRAMES // 2)
        since, base = self._base
        if not base <= frames < base + _IDLE_FRAMES:
            self._base = (now, frames)
        elif now - since >= _IDLE_S and os.stat(self._wal).st_size >= _TRUNCATE_BYTES and self._may():
            self._base = (now, 0)
            self._run("TRUNCATE")
            return
        if self._forgets and self._may():
            busy, _, _ = self._run("TRUNCATE")
            self._forgets = bool(busy)  # a reader is in it: tried again
            return
        if frames >= _FRAMES and self._may():
            self._run("PASSIVE")
            if frames >= _FRAMES_MAX:
                self._catch_up()

    def _run(self, mode: str) -> tuple[int, int, int]:
        """Whether it was held up, how many frames there are, how many of them are copied."""
        busy, there, copied = self._connection().execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        return busy, there, copied

    def _connection(self) -> sqlite3.Connection:
        if self._conn is None:
            self._conn = self._open()
            self._conn.execute(f"PRAGMA busy_timeout = {_HOLD_MS}")
        return self._conn

    def _may(self) -> bool:
        """On a full disk only where the database grows into room that is there: the rest is for endings."""
        if not self._ballast.low():
            return True
        conn = self._connection()
        pages, size = (conn.execute(f"PRAGMA {what}").fetchone()[0] for what in ("page_count", "page_size"))
        growth = pages * size - os.stat(self._path).st_size
        return bool(growth * 2 <= self._ballast.room())
