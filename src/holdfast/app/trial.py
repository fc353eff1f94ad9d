"""Whether the agents can be loaded, tried in a process that is of no other use: their code runs nowhere else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from holdfast.app.errors import StartError
from holdfast.app.process import WorkerProcess
from holdfast.config import Settings

LOAD_S: Final = 60.0
_LOOK_S: Final = 0.01
_REAP_S: Final = 2.0


async def try_agents(settings: Settings, specs: Sequence[str]) -> None:
    """Load them, and end the process that did.

    Raises:
        StartError: They cannot be loaded; says what the process said.
    """
    process = WorkerProcess(settings, specs, [])
    try:
        if why := await until_ready(process):
            raise StartError(why)
    finally:
        process.kill()
        until = time.monotonic() + _REAP_S
        while not process.exited() and time.monotonic() < until:  # noqa: ASYNC110 - waitpid has no event here
            await asyncio.sleep(_LOOK_S)
        process.let_go()


async def until_ready(process: WorkerProcess) -> str:
    """Why the process is of no use, or "" once it has loaded the agents."""
    until = time.monotonic() + LOAD_S
    while not process.ready.is_set():
        if process.exited():
            return f"the worker process ended at start with code {process.code()}; its output says why"
        if time.monotonic() > until:
            return f"the worker process was not ready within {LOAD_S:.0f} s; an import may not wait for anything"
        await asyncio.sleep(_LOOK_S)
    return process.failed
