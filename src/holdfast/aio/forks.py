"""What a fork of this process must not keep open.

Close-on-exec says nothing about `os.fork()` alone, which is how `multiprocessing` starts its processes on Linux before
Python 3.14. Such a child has every descriptor of ours: as long as one lives, the lock on the database is held and the
port is listened on, by nobody who would answer, long after we have ended.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

_kept: Final[set[int]] = set()


def not_for_forks(fd: int) -> None:
    """From now on every child that is forked closes `fd` before anything else."""
    _kept.add(fd)


def closed_here(fd: int) -> None:
    """Its number may mean another file from now on."""
    _kept.discard(fd)


def _in_child() -> None:
    for fd in _kept:
        with suppress(OSError):
            os.close(fd)
    _kept.clear()


os.register_at_fork(after_in_child=_in_child)
