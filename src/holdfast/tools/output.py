"""Reads what a tool's processes write, keeps a bounded part of it, and shows it while it comes.

Whatever a process writes is read, so that no full pipe holds it up, but no faster than `RATE`: a process that floods
its output must not take the worker's loop. Of more than `bytes_max` the first and the last half are kept, with a mark
between them that says how much is missing.
"""

from __future__ import annotations

import asyncio
import codecs
import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

READ_BYTES: Final = 65_536
RATE: Final = 1_048_576  # bytes read of one pipe in one `WINDOW_S`
WINDOW_S: Final = 0.02
LAST_READS: Final = 64  # of a pipe that a process left behind holds open


class Kept:
    """The first and the last bytes of a stream."""

    def __init__(self, bytes_max: int) -> None:
        """Keep at most so many."""
        self._half = bytes_max // 2
        self._head = bytearray()
        self._tail: deque[bytes] = deque()
        self._tail_bytes = 0
        self.bytes = 0

    @property
    def left_out(self) -> int:
        """How many bytes are missing from `text`."""
        return self.bytes - len(self._head) - min(self._tail_bytes, self._half)

    def add(self, data: bytes) -> None:
        """More of the stream."""
        self.bytes += len(data)
        room = self._half - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail.append(data)
            self._tail_bytes += len(data)
        while self._tail and self._tail_bytes - len(self._tail[0]) >= self._half:
            self._tail_bytes -= len(self._tail.popleft())

    def text(self) -> str:
        """What was kept, with a mark where something is missing."""
        tail = b"".join(self._tail)[-self._half :]
        if not self.left_out:
            return (bytes(self._head) + tail).decode(errors="replace")
        mark = f"\n[truncated: {self.left_out} of {self.bytes} bytes are left out here]\n"
        return bytes(self._head).decode(errors="replace") + mark + tail.decode(errors="replace")


class Pipe:
    """One pipe that is read on the running loop until its end."""

    def __init__(self, fd: int, take: Callable[[bytes], None]) -> None:
        """Begin to read; `take` gets each piece."""
        os.set_blocking(fd, False)
        self._fd = fd
        self._take = take
        self._loop = asyncio.get_running_loop()
        self._left = RATE
        self._pause: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(fd, self._read)

    def finish(self) -> None:
        """Take what is there now, and read no more."""
        for _ in range(LAST_READS):
            if self.ended.done() or not self._read_once():
                break
        self._close()

    def _read(self) -> None:
        self._read_once()
        if self._left <= 0 and not self.ended.done():
            self._loop.remove_reader(self._fd)
            self._pause = self._loop.call_later(WINDOW_S, self._go_on)

    def _go_on(self) -> None:
        self._pause = None
        self._left = RATE
        if not self.ended.done():
            self._loop.add_reader(self._fd, self._read)

    def _read_once(self) -> bool:
        """Whether there was something."""
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._close()
            return False
        self._left -= len(data)
        self._take(data)
        return True

    def _close(self) -> None:
        if self.ended.done():
            return
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._fd)
        with suppress(OSError):
            os.close(self._fd)
        self.ended.set_result(None)


class Shown:
    """Passes output on as text while it comes, up to a bound, and says once that there was more."""

    def __init__(self, show: Callable[[str], None], bytes_max: int) -> None:
        """Take who is shown it."""
        self._show = show
        self._left = bytes_max
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, data: bytes) -> None:
        """More of the stream."""
        if self._left <= 0:
            return
        part = data[: self._left]
        self._left -= len(part)
        text = self._decoder.decode(part, final=self._left <= 0)
        if self._left <= 0:
            text += "\n[truncated: the tool writes more than is shown]\n"
        if text:
            self._show(text)


class Feed:
    """Writes all of `data` into a pipe as it is taken, then closes it; at the latest when `until` is done."""

    def __init__(self, fd: int, data: bytes, until: asyncio.Future[None]) -> None:
        """Begin to write."""
        self._fd = fd
        self._rest = memoryview(data)
        self._loop = asyncio.get_running_loop()
        self._open = True
        self._loop.add_writer(fd, self._write)
        until.add_done_callback(lambda _: self._close())

    def _write(self) -> None:
        try:
            self._rest = self._rest[os.write(self._fd, self._rest[:READ_BYTES]) :]
        except BlockingIOError:
            return
        except OSError:  # nobody reads it any more
            self._rest = self._rest[:0]
        if not self._rest:
            self._close()

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_writer(self._fd)
            with suppress(OSError):
                os.close(self._fd)
