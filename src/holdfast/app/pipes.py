"""Lines of JSON between a supervisor and its worker, over pipes: orders one way, reports the other."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

GATEWAYS_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)  # not the worker's, even where it gets them
_READ_BYTES: Final = 65_536
_LINE_BYTES_MAX: Final = 1_048_576

Line = dict[str, Any]


def write_line(fd: int, line: Line) -> bool:
    """Write one line without waiting; whether it went out whole. A pipe takes up to 4 KiB as one piece."""
    data = json.dumps(line, default=str).encode() + b"\n"
    try:
        return os.write(fd, data) == len(data)
    except OSError:  # full, or nobody reads it any more
        return False


class LineReader:
    """Hands each line that comes in on a descriptor to a callback, on the running loop; then the end, once."""

    def __init__(self, fd: int, on_line: Callable[[Line], None], on_end: Callable[[], None]) -> None:
        """Begin to read."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._on_line = on_line
        self._on_end = on_end
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_reader(fd, self._read)

    def close(self) -> None:
        """Read no more and close the descriptor."""
        if self._open:
            self._open = False
            self._loop.remove_reader(self._fd)
            with suppress(OSError):
                os.close(self._fd)

    def _read(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            self._on_end()
            return
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._rest = self._rest[-_LINE_BYTES_MAX:]
        for line in lines:
            with suppress(ValueError):
                self._on_line(json.loads(line))
