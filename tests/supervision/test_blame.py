"""Whom a worker without a beat is blamed on."""

import asyncio
import contextvars
import os
import signal
import subprocess

from holdfast.domain.ids import RunKey
from holdfast.engine.blame import Activity, BlameBoard, work_for
from tests.system.support import until

RUN = RunKey("local", "r_1")


async def test_a_run_is_not_blamed_for_a_process_that_somebody_stopped():
    """SIGSTOP finds a worker in somebody's step; to end that run as loop_blocked would be an invention."""
    board = BlameBoard(BlameBoard.create())
    process = subprocess.Popen(["sleep", "60"])

    async def step() -> list[RunKey | None]:
        found = [Activity(process.pid, board).culprit(0.1)]
        os.kill(process.pid, signal.SIGSTOP)
        until(lambda: os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT), "it has stopped", 5)
        return [*found, Activity(process.pid, board).culprit(0.1)]

    try:
        context = contextvars.copy_context()
        context.run(work_for, board.take(RUN))
        assert await board.factory(asyncio.get_running_loop(), step(), context) == [RUN, None]
    finally:
        process.kill()
        process.wait(5)
        board.close()
