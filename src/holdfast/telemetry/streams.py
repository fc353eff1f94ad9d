"""Standard error that cannot hold up whoever writes to it.

A pipe that nobody reads, a terminal that was stopped with Ctrl-S and a journal that stands still all make `write`
wait for ever, and with it the event loop of every run. So lines go out without waiting: what does not fit is kept up
to a bound, in order, and what is over the bound is dropped and counted.

Why not O_NONBLOCK on descriptor 2: the flag belongs to the open file, which we share with the shell and with whoever
else writes there. A pipe or a terminal is opened anew through /proc, so that the flag is ours alone; a socket takes
MSG_DONTWAIT. A file is written as it is: a new opening would have another offset.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import select
import socket
import stat
import sys
import threading
import time
from collections import deque
from typing import Final

BACKLOG_BYTES: Final = 262_144
_POLL_MS: Final = 500
_CHUNK: Final = 4096  # PIPE_BUF of Linux: a pipe that can be written takes this much


class Outlet:
    """Writes whole lines to a descriptor, and never waits."""

    def __init__(self, fd: int) -> None:
        """Find out what the descriptor is."""
        self.fd = fd
        self.dropped = 0  # lines
        self._lock = threading.Lock()
        self._backlog: deque[bytes] = deque()
        self._backlog_bytes = 0
        self._drainer: threading.Thread | None = None
        self._own = fd
        self._socket: socket.socket | None = None
        self._ask_first = False
        self.waits = False  # whether a plain write could
        with contextlib.suppress(OSError):
            self._open()

    @property
    def idle(self) -> bool:
        """Whether nothing is kept back."""
        return not self._backlog

    def write(self, line: bytes) -> None:
        """One line, or several that belong together; at once, later, or never, and then counted."""
        with self._lock:
            if self._backlog:
                self._keep(line)
                self._push()
                return
            rest = self._put(line)
            if rest:
                self._keep(rest)

    def flush(self, limit_s: float) -> None:
        """Give what is kept back a last chance, for at most `limit_s` seconds."""
        until = time.monotonic() + limit_s
        while self._backlog and time.monotonic() < until:
            time.sleep(0.01)

    def close(self) -> None:
        """Let go of what was opened; what is kept back is lost."""
        with self._lock:
            self._backlog.clear()
            if self._socket is not None:
                self._socket.close()
            elif self._own != self.fd:
                os.close(self._own)
            self._own = -1

    def _open(self) -> None:
        mode = os.fstat(self.fd).st_mode
        if stat.S_ISSOCK(mode):
            self._socket = socket.socket(fileno=os.dup(self.fd))
            self.waits = True
        elif stat.S_ISFIFO(mode) or (stat.S_ISCHR(mode) and os.isatty(self.fd)):
            self.waits = self._ask_first = True
            with contextlib.suppress(OSError):  # no /proc, or another user's: then each write asks first
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._own = os.open(f"/proc/self/fd/{self.fd}", flags)
                self._ask_first = False

    def _keep(self, data: bytes) -> None:
        if self._backlog_bytes + len(data) > BACKLOG_BYTES:
            self.dropped += 1
            return
        self._backlog.append(data)
        self._backlog_bytes += len(data)
        if self._drainer is None:
            self._drainer = threading.Thread(target=self._drain, name="holdfast-log", daemon=True)
            self._drainer.start()

    def _push(self) -> None:
        """As much of what is kept back as goes out now."""
        while self._backlog:
            data = self._backlog[0]
            rest = self._put(data)
            self._backlog_bytes -= len(data) - len(rest)
            if rest:
                self._backlog[0] = rest
                return
            self._backlog.popleft()

    def _put(self, data: bytes) -> bytes:
        """What could not be written now; a stream that fails takes the data with it, counted."""
        view = memoryview(data)
        try:
            while view:
                if self._ask_first and not self._ready(0):
                    break
                view = view[self._some(view[:_CHUNK] if self._ask_first else view) :]
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ENOBUFS):
                self.dropped += 1
                return b""
        return bytes(view)

    def _some(self, view: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(view, socket.MSG_DONTWAIT)
        return os.write(self._own, view)

    def _ready(self, limit_ms: int) -> bool:
        poll = select.poll()
        poll.register(self._own, select.POLLOUT)
        return bool(poll.poll(limit_ms))

    def _drain(self) -> None:
        """The thread that lives as long as something is kept back."""
        while True:
            with self._lock:
                self._push()
                if not self._backlog:
                    self._drainer = None
                    return
            began = time.monotonic()
            self._ready(_POLL_MS)
            if time.monotonic() - began < 0.001:
                time.sleep(0.005)  # writable, but not by a whole line: no spinning


class _Raw(io.RawIOBase):
    def __init__(self, outlet: Outlet) -> None:
        super().__init__()
        self._outlet = outlet

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._outlet.fd

    def isatty(self) -> bool:
        return os.isatty(self._outlet.fd)

    def write(self, data: bytes | bytearray | memoryview) -> int:  # type: ignore[override]
        self._outlet.write(bytes(data))
        return len(data)


_lock = threading.Lock()
_outlets: dict[int, Outlet] = {}


def standard_error() -> Outlet | None:
    """The one outlet of this process's standard error; None where sys.stderr was replaced, or there is none."""
    stream = sys.stderr
    if stream is None or (stream is not sys.__stderr__ and not isinstance(stream, _Guarded)):
        return None
    return _outlet(2)


def ensure_descriptors() -> None:
    """Where 0, 1 or 2 is closed, /dev/null takes its place: else the database would get the number, and our lines."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number, for children, too
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # so that what prints need not ask
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - as long as the process


def guard_prints(*, stdout: bool = False) -> None:
    """From now on what anybody prints to standard error (and output) of this process cannot wait either."""
    if sys.stderr is sys.__stderr__ and sys.stderr is not None and _outlet(2).waits:
        sys.stderr = _Guarded(_outlet(2))
    if stdout and sys.stdout is sys.__stdout__ and sys.stdout is not None and _outlet(1).waits:
        sys.stdout = _Guarded(_outlet(1))


class _Guarded(io.TextIOWrapper):
    def __init__(self, outlet: Outlet) -> None:
        raw: io.RawIOBase = _Raw(outlet)
        super().__init__(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _outlet(fd: int) -> Outlet:
    with _lock:
        if fd not in _outlets:
            _outlets[fd] = Outlet(fd)
        return _outlets[fd]
