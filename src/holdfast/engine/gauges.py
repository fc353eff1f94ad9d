"""How many of everything a process has: what must return to where it was, however many runs came and went."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from holdfast.telemetry.facts import process_facts


def loop_facts(loop: asyncio.AbstractEventLoop | None) -> dict[str, Any]:
    """Those of this process, and the tasks of a loop; from any thread, without waiting."""
    return process_facts() | {"loop_tasks": 0 if loop is None else _tasks(loop)}


def _tasks(loop: asyncio.AbstractEventLoop) -> int | None:
    with suppress(RuntimeError):  # the set changed under us again and again
        return len(asyncio.all_tasks(loop))
    return None
