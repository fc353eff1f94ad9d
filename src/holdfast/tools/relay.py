"""Stands between a worker and an MCP server over stdio, in a process of its own, and holds the server to its bounds.

    python -I -S relay.py LIMIT_BYTES command [argument ...]

The library that reads a server's output keeps a line until it ends, and parses whatever comes: a server that writes
fifty megabytes, or notifications for ever, fills the worker's memory and its loop. Here

- a line that is longer than the limit is thrown away while it is read, and the request that it answers gets an error;
- what is no JSON-RPC is dropped, and of notifications and requests of the server's own only so many a second pass;
- what the worker writes is always taken, so that a server which does not read cannot hold up a Stop;
- the server, and what it started, is killed when the worker closes the pipe or dies: closed input, TERM, KILL;
- when the server ends, every open request is told with which code, and what it last complained of.

The standard library alone, and no import of holdfast: it is there in a few milliseconds and needs little memory.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from typing import IO, Any, Final

EOF_GRACE_S: Final = 0.5  # after its input is closed, and again after TERM
LINGER_S: Final = 1.0  # how long a server's failure to start is told to whoever asks
WAITING_BYTES_MAX: Final = 16 * 1024 * 1024  # for a server that does not read; then it is killed
RUNAWAY: Final = 16  # so many times the limit without an end of line: killed
NOTICES_PER_S: Final = 20
NOTICES_BURST: Final = 50
COMPLAINTS_PER_S: Final = 20
COMPLAINT_BYTES: Final = 2000
CHUNK: Final = 65_536
EDGE: Final = 4096  # of a line that is too long, where its id may be
LOOK_S: Final = 60.0  # every wait has a limit; what is waited for wakes it
POLL_S: Final = 0.01  # between two looks at what cannot wake us
_ID: Final = re.compile(rb'"id"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d+)')


class Bucket:
    """So many a second, and a burst."""

    def __init__(self, rate: float, burst: float) -> None:
        """Begin full."""
        self._rate, self._burst = rate, burst
        self._left, self._at = burst, time.monotonic()

    def take(self) -> bool:
        """Whether one more may pass."""
        now = time.monotonic()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Lines:
    """Splits a stream into lines; of one that is too long, its first and last bytes and its length remain."""

    def __init__(self, limit: int) -> None:
        """Begin with nothing."""
        self._limit = limit
        self._clear()

    def feed(self, chunk: bytes) -> list[tuple[bytes, int]]:
        """The lines that `chunk` ends, each with its length; longer than what is there if it was too long."""
        *ends, rest = chunk.split(b"\n")
        found = []
        for end in ends:
            self._add(end)
            gap = b"\x00" if self.size > len(self._head) + len(self._tail) else b""
            line = self._head + gap + self._tail if self._long else b"".join(self._parts)
            found.append((line, self.size))
            self._clear()
        self._add(rest)
        return found

    def _clear(self) -> None:
        self._parts: list[bytes] = []
        self._head = self._tail = b""
        self._long = False
        self.size = 0  # of the line that is not yet whole

    def _add(self, piece: bytes) -> None:
        self.size += len(piece)
        if not self._long and self.size <= self._limit:
            self._parts.append(piece)
            return
        if not self._long:
            self._long = True
            piece, self._parts = b"".join([*self._parts, piece]), []
        room = EDGE - len(self._head)
        self._head += piece[:room]
        self._tail = (self._tail + piece[room:])[-EDGE:]


class Relay:
    """One server, from its start to its end."""

    def __init__(self, limit: int, command: list[str]) -> None:
        """Nothing is started yet."""
        self._limit = limit
        self._command = command
        self._name = " ".join(os.path.basename(word) for word in command[:2])
        self._lock = threading.Lock()
        self._open: dict[str, Any] = {}  # requests without an answer, by their id as JSON
        self._to_server: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._wake = threading.Condition(self._lock)
        self._input_ended = threading.Event()
        self._last_words = ""
        self._answered = False  # whether the server ever answered anything
        self._why = ""  # why it was killed
        self._dropped = 0

    def run(self) -> int:
        """Relay until either side ends; the exit code."""
        try:
            server = subprocess.Popen(  # arguments, no shell  # nosec B603
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            self._start_thread(self._from_worker, None)
            self._refuse_all(f"cannot start {self._command[0]}: {error.strerror or error}")
            return 127
        self._server = server
        signal.signal(signal.SIGTERM, lambda *_: self._kill_now())
        self._start_thread(self._from_worker, server)
        self._start_thread(self._into_server, server.stdin)
        output = self._start_thread(self._from_server, server.stdout)
        self._start_thread(self._complaints, server.stderr)
        self._start_thread(self._end_after_input, server)
        code = server.wait()  # bounded: by the worker, which closes the pipe when it has waited long enough
        output.join(EOF_GRACE_S)
        self._signal(signal.SIGKILL)  # what it started and left behind
        if not self._input_ended.is_set():
            said = f": {self._last_words}" if self._last_words else ""
            self._refuse_all(self._why or f"the MCP server ended with code {code}{said}", linger=not self._answered)
        return code if 0 <= code < 256 else 1

    def _start_thread(self, work: Any, *args: Any) -> threading.Thread:
        thread = threading.Thread(target=work, args=args, daemon=True)
        thread.start()
        return thread

    # from the worker to the server

    def _from_worker(self, server: subprocess.Popen[bytes] | None) -> None:
        for line in sys.stdin.buffer:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and "method" in message and "id" in message:
                    with self._lock:
                        self._open[json.dumps(message["id"])] = message["id"]
            with self._wake:
                self._to_server.append(line)
                self._waiting_bytes += len(line)
                self._wake.notify()
                deaf = self._waiting_bytes > WAITING_BYTES_MAX
            if deaf and server is not None:
                self._kill("the MCP server does not read its input")
        self._input_ended.set()
        with self._wake:
            self._wake.notify()

    def _into_server(self, pipe: IO[bytes]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while True:
                with self._wake:
                    while not self._to_server and not self._input_ended.is_set():
                        self._wake.wait(LOOK_S)
                    if not self._to_server:
                        break
                    line = self._to_server.popleft()
                    self._waiting_bytes -= len(line)
                pipe.write(line)
                pipe.flush()
            pipe.close()

    def _end_after_input(self, server: subprocess.Popen[bytes]) -> None:
        """The worker has closed the pipe, or is dead: so is the server, in bounded time."""
        while not self._input_ended.wait(LOOK_S):
            pass
        for number in (signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + EOF_GRACE_S
            while server.poll() is None and time.monotonic() < until:
                time.sleep(POLL_S)
            self._signal(number)

    # from the server to the worker

    def _from_server(self, pipe: IO[bytes]) -> None:
        lines, notices = Lines(self._limit), Bucket(NOTICES_PER_S, NOTICES_BURST)
        while chunk := os.read(pipe.fileno(), CHUNK):
            dropped = self._dropped
            for line, size in lines.feed(chunk):
                if size > self._limit:
                    self._too_long(line, size)
                else:
                    self._pass(line, notices)
            if lines.size > RUNAWAY * self._limit:
                self._kill(f"the MCP server wrote {lines.size} bytes without an end of line and was killed")
                return
            if self._dropped - dropped > NOTICES_BURST:
                time.sleep(POLL_S)  # a server that floods is slowed down, instead of two processes that spin

    def _pass(self, line: bytes, notices: Bucket) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            if line.strip():
                self._drop()
        elif "method" in message:
            if notices.take():
                self._write(line)
            else:
                self._drop()
        else:
            with self._lock:
                self._open.pop(json.dumps(message.get("id")), None)
                self._answered = True
            self._write(line)

    def _too_long(self, line: bytes, size: int) -> None:
        """Whose answer it was is at its beginning or at its end; else it may be anybody's, and all are told."""
        with self._lock:
            found = [text.decode() for text in _ID.findall(line) if text.decode() in self._open]
            ids = [self._open[found[0]]] if found else list(self._open.values())
        for request in ids:
            why = f"the server's message of {size} bytes is longer than mcp_message_bytes = {self._limit}"
            self._refuse(request, f"{why} and was dropped")

    def _drop(self) -> None:
        self._dropped += 1
        if self._dropped == 1:
            self._complain("it floods its output, or writes what is no JSON-RPC: some of it is dropped")

    def _refuse_all(self, why: str, linger: bool = True) -> None:
        """Tell every open request, and for a while those that still come."""
        until = time.monotonic() + (LINGER_S if linger else 0.0)
        while True:
            with self._lock:
                ids = list(self._open.values())
            for request in ids:
                self._refuse(request, why)
            if time.monotonic() >= until or self._input_ended.is_set():
                return
            time.sleep(POLL_S)

    def _refuse(self, request: Any, why: str) -> None:
        with self._lock:
            self._open.pop(json.dumps(request), None)
        error = {"code": -32000, "message": why}
        self._write(json.dumps({"jsonrpc": "2.0", "id": request, "error": error}).encode())

    def _write(self, line: bytes) -> None:
        with contextlib.suppress(OSError), _out:
            sys.stdout.buffer.write(line + b"\n")
            sys.stdout.buffer.flush()

    # what it complains of

    def _complaints(self, pipe: IO[bytes]) -> None:
        bucket, lines = Bucket(COMPLAINTS_PER_S, 5 * COMPLAINTS_PER_S), Lines(COMPLAINT_BYTES)
        while chunk := os.read(pipe.fileno(), CHUNK):
            for line, _ in lines.feed(chunk):
                said = line[:COMPLAINT_BYTES].decode(errors="replace").strip()
                self._last_words = said or self._last_words
                if bucket.take():
                    self._complain(said)

    def _complain(self, said: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{self._name}: {said}\n".encode()[: COMPLAINT_BYTES * 2])

    # ends

    def _kill(self, why: str) -> None:
        self._why = why
        self._signal(signal.SIGKILL)

    def _kill_now(self) -> None:
        self._signal(signal.SIGKILL)
        os._exit(1)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._server.pid, number)


_out = threading.Lock()


def _die_with_parent() -> None:
    """Linux: the server does not survive this process, whatever ends it."""
    with contextlib.suppress(Exception):
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    exit_code = Relay(int(sys.argv[1]), sys.argv[2:]).run()
    with contextlib.suppress(OSError):
        sys.stdout.buffer.flush()
    os._exit(exit_code)
