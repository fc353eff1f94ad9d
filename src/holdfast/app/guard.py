"""The guard as its supervisor has it: kills what the gateway leaves behind when it is killed itself.

A worker sees its orders pipe end and leaves. One that is held by a single call into C, or is stopped, sees nothing, and
no thread of it can act. So a small process of its own waits on a pipe, too, and has the names of those that must end.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

_END_S: Final = 2.0
_SCRIPT: Final = Path(__file__).with_name("guard_child.py")


class Guard:
    """One guard process, replaced if it ends."""

    def __init__(self) -> None:
        """Start nothing yet."""
        self._named: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None

    @property
    def pid(self) -> int | None:
        """Its process id."""
        return None if self._process is None else self._process.pid

    def watch(self, pid: int) -> None:
        """Kill this child of ours, should we die before it."""
        self._named.add(pid)
        self._say(f"+{pid}")

    def release(self, pid: int) -> None:
        """That child has ended, and is about to be reaped or was."""
        self._named.discard(pid)
        self._say(f"-{pid}")

    def tend(self) -> None:
        """Start it, if it does not run (any more).

        Raises:
            OSError: No process can be had now.
        """
        if self._pipe is not None and self._process is not None and self._process.poll() is None:
            return
        self._hang_up()
        if self._process is not None:
            self._process.kill()
            self._process.wait(_END_S)
        theirs, ours = os.pipe()
        try:
            # A session of its own: what is sent to our group, from a terminal or by a kill, is not meant for it.
            self._process = subprocess.Popen(  # our own script  # nosec B603
                [sys.executable, "-I", "-S", str(_SCRIPT)],
                stdin=theirs,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(ours, False)
        self._pipe = ours
        for pid in self._named:
            self._say(f"+{pid}")

    async def close(self) -> None:
        """Let it end; it kills what is still named."""
        self._hang_up()
        process, self._process = self._process, None
        if process is None:
            return
        until = time.monotonic() + _END_S
        while process.poll() is None and time.monotonic() < until:  # noqa: ASYNC110 - waitpid has no event here
            await asyncio.sleep(0.005)
        if process.poll() is None:
            process.kill()
            process.wait(_END_S)

    def _say(self, line: str) -> None:
        if self._pipe is None:
            return
        try:
            os.write(self._pipe, line.encode() + b"\n")
        except OSError:  # it has ended, or does not read: `tend` starts another, which is told everything
            self._hang_up()

    def _hang_up(self) -> None:
        pipe, self._pipe = self._pipe, None
        if pipe is not None:
            with suppress(OSError):
                os.close(pipe)
