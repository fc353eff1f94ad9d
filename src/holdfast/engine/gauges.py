"""How many of everything a process has: what must return to where it was, however many runs came and went."""

from __future__ import annotations

import asyncio
import os
import threading
from contextlib import suppress
from typing import Any, Final

_DESCRIPTORS: Final = ("/proc/self/fd", "/dev/fd")  # Linux; macOS


def process_facts(loop: asyncio.AbstractEventLoop | None) -> dict[str, Any]:
    """Threads, open descriptors and the tasks of a loop; from any thread, without waiting.

    `fds` is None where the system does not show them.
    """
    return {
        "threads": threading.active_count(),
        "fds": _descriptors(),
        "loop_tasks": 0 if loop is None else _tasks(loop),
    }


def _descriptors() -> int | None:
    for path in _DESCRIPTORS:
        with suppress(OSError):
            return len(os.listdir(path)) - 1  # one is the listing's own
    return None


def _tasks(loop: asyncio.AbstractEventLoop) -> int | None:
    with suppress(RuntimeError):  # the set changed under us again and again
        return len(asyncio.all_tasks(loop))
    return None
