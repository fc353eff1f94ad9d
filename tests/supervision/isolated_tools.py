"""Tools that run in processes of their own; copied beside the database, imported there and by the worker."""

import os
import signal
import time
from pathlib import Path

from holdfast.tools import command, isolated

WAIT_S = 60.0  # longer than any test
PIDS = Path(__file__).with_name("tool.pids")


@isolated
def generations() -> str:
    """Sleep in three generations that are deaf to SIGTERM, one of them in a session of its own, one an orphan."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _note()
    if os.fork() == 0:
        _note()
        if os.fork() == 0:
            os.setsid()
            _note()
            if os.fork() == 0:
                if os.fork() == 0:
                    _note()
                    time.sleep(WAIT_S)
                os._exit(0)
        time.sleep(WAIT_S)
    time.sleep(WAIT_S)
    return "awake"


@isolated
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def shell(script: str) -> str:
    """Run a line in a shell."""
    result = await command(["sh", "-c", script])
    return f"{result.code} {result.stdout}"


def _note() -> None:
    fd = os.open(PIDS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(fd, f"{os.getpid()}\n".encode())
    finally:
        os.close(fd)
