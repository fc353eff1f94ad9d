"""A TCP proxy that breaks connections: after so many bytes, or by silence, as networks do."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Callable
from contextlib import closing, suppress

from tests.system.reading import RESET

_PIECE = 65536
_LOOK_S = 0.05


class CuttingProxy:
    """Stands before one port; each connection ends after the bytes that `budget` gives it, None for never.

    Attributes:
        cuts: How many connections were broken.
        silent: While set, bytes of the server are swallowed and no connection is closed: it is half-open.
    """

    def __init__(self, port: int, budget: Callable[[], int | None] = lambda: None) -> None:
        self.cuts = 0
        self.connections = 0
        self.silent = threading.Event()
        self._budget = budget
        self._target = port
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(_LOOK_S)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._spawn(self._accept)

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _spawn(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._ending.is_set():
            with suppress(TimeoutError):
                near, _ = self._listener.accept()
                self.connections += 1
                self._spawn(self._carry, near)

    def _carry(self, near: socket.socket) -> None:
        left = self._budget()
        with closing(near), suppress(OSError), closing(socket.create_connection(("127.0.0.1", self._target), 5)) as far:
            while not self._ending.is_set():
                for sock in select.select([near, far], [], [], _LOOK_S)[0]:
                    data = sock.recv(_PIECE)
                    if not data:
                        return
                    if sock is near:
                        far.sendall(data)
                        continue
                    if self.silent.is_set():
                        self._hold(near)
                        return
                    near.sendall(data if left is None else data[:left])
                    left = None if left is None else left - len(data)
                    if left is not None and left <= 0:
                        self.cuts += 1
                        if self.cuts % 2:
                            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                        return

    def _hold(self, near: socket.socket) -> None:
        """Say nothing more on a connection, and do not close it until its client does."""
        while not self._ending.is_set():
            if select.select([near], [], [], _LOOK_S)[0] and not near.recv(_PIECE):
                return
