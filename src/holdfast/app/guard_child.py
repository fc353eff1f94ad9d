"""The guard process: `python -I -S guard_child.py`, started by the supervisor only; reads `+PID` and `-PID` lines.

While the gateway lives it does nothing. When its input ends, the gateway is dead: what was named and not taken back
has a moment to leave by itself, and is killed. Standard library only, so that it is there in ten milliseconds.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final

PATIENCE_S: Final = 1.8  # a little longer than a worker takes to leave by itself


class Named:
    """A process that is to be killed, held so that its number cannot come to mean another one."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._fd: int | None = None
        if hasattr(os, "pidfd_open"):
            try:
                self._fd = os.pidfd_open(pid)
            except OSError:
                self._fd = None  # an old kernel: by its number, then

    def kill(self) -> None:
        """SIGKILL, which also ends what is stopped."""
        try:
            if self._fd is None:
                os.kill(self._pid, signal.SIGKILL)
            else:
                signal.pidfd_send_signal(self._fd, signal.SIGKILL)
        except OSError:
            pass  # it has left

    def close(self) -> None:
        """It has ended, as the gateway says."""
        if self._fd is not None:
            os.close(self._fd)


def main() -> None:
    """Wait for the end of the gateway."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a service manager sends them to everybody
        signal.signal(number, signal.SIG_IGN)
    named: dict[int, Named] = {}
    rest = b""
    while data := os.read(0, 4096):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            pid = int(line[1:])
            if line.startswith(b"+"):
                named[pid] = Named(pid)
            elif pid in named:
                named.pop(pid).close()
    if named:
        time.sleep(PATIENCE_S)
        for each in named.values():
            each.kill()


if __name__ == "__main__":
    main()
