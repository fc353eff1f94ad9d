"""Whether a database's files are still where the next start will look for them.

Whoever has a removed file open goes on writing to it, and nothing fails. But it is gone with the last process that has
it: every run that was acknowledged since is lost at the next start. And a worker that is replaced meanwhile begins with
a new file of that name, so that it never sees a run of the old one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

_SUFFIXES: Final = ("", "-wal")


class Place:
    """Of an open database that is not in memory."""

    def __init__(self, path: str) -> None:
        """Hold what is there now.

        By descriptors that open nothing (O_PATH): to close an ordinary one of a database would take away the locks that
        SQLite has on it. Where there are none, nothing is noticed.
        """
        self._held: dict[str, int] = {}
        for name in (path + suffix for suffix in _SUFFIXES):
            with suppress(OSError, AttributeError):
                self._held[name] = os.open(name, os.O_PATH | os.O_CLOEXEC)

    def lost(self) -> str:
        """Which file is no longer there, or ""."""
        for name, fd in self._held.items():
            try:
                if os.path.samestat(os.stat(name), os.fstat(fd)):
                    continue
            except FileNotFoundError:
                pass
            except OSError:
                continue  # it cannot be seen now, which says nothing
            return f"{name} was removed or replaced while it was in use: what is stored now is lost at the next start"
        return ""

    def close(self) -> None:
        """Let go."""
        held, self._held = self._held, {}
        for fd in held.values():
            os.close(fd)
