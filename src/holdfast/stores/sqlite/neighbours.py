"""Wakes between the processes of one database: datagrams on sockets beside each other.

A datagram carries topics only, is sent without waiting and dropped where the receiver's buffer is full. What is lost
is found otherwise: the writer looks at SQLite's data_version, and a tail looks each second.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from holdfast.stores.wakes import Hub

_LOOK_S: Final = 1.0
_DATAGRAM_BYTES_MAX: Final = 64 * 1024
_TOPICS_MAX: Final = 100  # of at most 270 bytes each
_JOIN_S: Final = 1.0
_PATH_BYTES_MAX: Final = 103
_BIND_TRIES: Final = 20


def batched(topics: Iterable[str], size: int) -> Iterator[list[str]]:
    """`topics` in lists of at most `size`."""
    rest = list(topics)
    while rest:
        yield rest[:size]
        rest = rest[size:]


def _name() -> str:
    return f"{os.getpid()}-{secrets.randbelow(1_000_000)}"


def runtime_directory() -> Path:
    """Where sockets live: XDG_RUNTIME_DIR if it is there, else a directory of this user's in the temporary one."""
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if given and os.access(given, os.W_OK):
        return Path(given) / "holdfast"
    return Path(tempfile.gettempdir()) / f"holdfast-{os.getuid()}"


class Neighbours:
    """This process's socket beside those of the other processes on the same database."""

    def __init__(self, database: str, hub: Hub) -> None:
        """Bind, and start to listen; where no socket can be had, the writer's look at data_version serves alone."""
        self._hub = hub
        digest = hashlib.sha256(os.path.realpath(database).encode()).hexdigest()[:16]
        self._directory = runtime_directory() / digest
        self._own = self._directory / _name()
        self._socket: socket.socket | None = None
        self._others: list[str] = []
        self._looked_at = 0.0
        self._ending = threading.Event()
        self._bind()
        self._listener = threading.Thread(target=self._listen, name="holdfast-wakes", daemon=True)
        self._listener.start()

    @property
    def attached(self) -> bool:
        """Whether others are on this database, as of the last second; where that cannot be known, they are."""
        return self._socket is None or bool(self._others)

    @property
    def tell(self) -> bool:
        """Whether others are here to tell us what they write: a process with another runtime directory is not seen."""
        return self._socket is not None and bool(self._others)

    def publish(self, topics: Iterable[str]) -> None:
        """Tell the others; never waits, never raises."""
        sock = self._socket
        if sock is None:
            return
        now = time.monotonic()
        if now - self._looked_at > _LOOK_S:
            self._looked_at = now
            self._look()
        if not self._others:
            return
        for some in batched(topics, _TOPICS_MAX):
            message = json.dumps(some).encode()
            for other in list(self._others):
                self._send(sock, message, other)

    def close(self) -> None:
        """Stop listening, and remove the socket; the last one removes the directory, too. Bounded."""
        self._ending.set()
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto(b"", os.fspath(self._own))  # ends the wait of the listener
            self._listener.join(_JOIN_S)
            self._leave(self._socket)
            self._socket.close()

    def _bind(self) -> None:
        """Have a socket in the directory, which whoever leaves last may remove just after it was made."""
        if len(os.fsencode(self._own)) > _PATH_BYTES_MAX:
            return
        for _ in range(_BIND_TRIES):
            try:
                self._socket = self._bound()
            except (FileExistsError, FileNotFoundError):  # it was there or not, and no longer is so
                continue
            except OSError as error:
                if error.errno == errno.EADDRINUSE:  # by one that was killed, and had our pid
                    self._own = self._directory / _name()
                    continue
            return

    def _bound(self) -> socket.socket:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            sock.bind(os.fspath(self._own))
        except OSError:
            sock.close()
            raise
        sock.settimeout(0.5)
        return sock

    def _leave(self, sock: socket.socket) -> None:
        """Remove our name, those of the dead, and then the directory if nobody's is left in it."""
        with suppress(OSError):
            self._own.unlink(missing_ok=True)
        self._look()
        for other in list(self._others):
            self._send(sock, b"", other)
        with suppress(OSError):
            self._directory.rmdir()

    def _send(self, sock: socket.socket, message: bytes, other: str) -> None:
        try:
            sock.sendto(message, socket.MSG_DONTWAIT, other)
        except (ConnectionRefusedError, FileNotFoundError):
            self._forget(other)
        except OSError:
            pass  # its buffer is full: it is being woken already, or looks by itself

    def _look(self) -> None:
        try:
            names = os.listdir(self._directory)
        except OSError:
            names = []
        self._others = [os.fspath(self._directory / n) for n in names if n != self._own.name]

    def _forget(self, other: str) -> None:
        """Whoever bound it is dead: nobody else can, because the name holds its pid."""
        with suppress(ValueError):
            self._others.remove(other)
        with suppress(OSError):
            os.unlink(other)

    def _listen(self) -> None:
        sock = self._socket
        while sock is not None and not self._ending.is_set():
            try:
                message = sock.recv(_DATAGRAM_BYTES_MAX)
            except TimeoutError:
                continue
            except OSError:
                return
            with suppress(ValueError, TypeError):
                self._hub.publish(json.loads(message) if message else ())
