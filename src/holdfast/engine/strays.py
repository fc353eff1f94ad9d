"""The tasks that an agent started and did not wait for: in `asyncio.wait`, behind a shield, or not at all.

A cancellation reaches what a task waits for, and these it does not wait for. Left alone they would go on asking models
and calling tools after a Stop that said it had stopped.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from holdfast.aio import settle
from holdfast.engine.blame import works_for

_LEAST_S: Final = 0.1  # for them, where the agent has taken the whole grace


async def end_strays(work: asyncio.Task[Any], slot: int | None, left_s: float) -> set[asyncio.Task[Any]]:
    """Cancel what works for the run of `slot` beside `work`; those that have not ended in `left_s` seconds.

    To be called when `work` has ended, or is given up on: what it waited for has been cancelled with it, and a second
    word would break off what that does about the first.
    """
    if not slot:
        return set()
    strays = [task for task in asyncio.all_tasks() if task is not work and works_for(task) == slot]
    for task in strays:
        task.cancel()
    return set(await settle(strays, max(_LEAST_S, left_s)))  # type: ignore[arg-type] # they are tasks
