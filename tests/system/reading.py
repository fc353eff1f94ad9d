"""Readers that lose their connection again and again, wherever its bytes happen to end."""

import http.client
import json
import random
import socket
import struct
import threading
import time
from contextlib import closing

import msgspec

from tests.system.support import TERMINAL, Http, System

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset
SSE, NDJSON, JSON = "text/event-stream", "application/x-ndjson", "application/json"


class _Page(msgspec.Struct):
    events: list[msgspec.Raw]
    head: int


class Row(msgspec.Struct, frozen=True):
    """An event as bytes, with the id that SSE gives it."""

    data: bytes
    id: str


def stored(system: System, run: str) -> list[Row]:
    """The log itself, from where the store keeps it."""
    return [Row(data, f"{seq}-{epoch}") for seq, epoch, data in system.log_rows(run)]


class Reader:
    """Reads one run in one form, in a thread; every so often its connection breaks and it comes back.

    Attributes:
        rows: What it has, by seq; an event that came twice was the same bytes twice.
        breaks: How often its connection broke.
    """

    def __init__(self, http: Http, run: str, form: str, breaks: int, bytes_: int, chance: random.Random) -> None:
        self.rows: list[bytes] = []
        self.ids: dict[int, str] = {}
        self.breaks = 0
        self.problem: BaseException | None = None
        self._http = http
        self._path = f"/api/runs/{run}/events"
        self._form = form
        self._breaks_max = breaks
        self._bytes = bytes_  # of the log, about: the breaks are spread over it
        self._chance = chance
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def complete(self) -> bool:
        return bool(self.rows) and msgspec.json.decode(self.rows[-1])["type"] in TERMINAL

    def join(self, limit_s: float) -> None:
        self._thread.join(limit_s)
        assert not self._thread.is_alive(), f"{self._form}: at {len(self.rows)} events after {limit_s} s"
        if self.problem is not None:
            raise self.problem

    def _read(self) -> None:
        try:
            while not self.complete:
                if self._form == JSON:
                    self._page()
                else:
                    self._stream()
        except BaseException as problem:  # noqa: BLE001 - raised again by join
            self.problem = problem

    def _budget(self) -> int | None:
        """After how many bytes the next connection breaks; None where it may live."""
        if self.breaks >= self._breaks_max:
            return None
        return self._chance.randrange(1, 2 * max(1, self._bytes // self._breaks_max))

    def _offset(self) -> int:
        """Mostly where it was; sometimes further back, as a client that lost its memory."""
        return len(self.rows) if self._chance.random() < 0.8 else self._chance.randrange(len(self.rows) + 1)

    def _asks(self, offset: int) -> tuple[str, dict[str, str]]:
        """One of the ways to say the same offset."""
        ways = [(f"?after={offset}", {})]
        if offset in self.ids:
            id_ = self.ids[offset]
            stale = self._chance.randrange(offset + 1)
            ways += [
                (f"?after={id_}", {}),
                ("", {"Last-Event-ID": id_}),
                (f"?after={stale}", {"Last-Event-ID": id_}),  # as an EventSource, which repeats its first URL
            ]
        return self._chance.choice(ways)

    def _stream(self) -> None:
        offset, budget = self._offset(), self._budget()
        query, headers = self._asks(offset)
        with closing(self._http.connection()) as connection:
            connection.connect()
            sock = connection.sock
            connection.request("GET", self._path + query, headers={"Accept": self._form, **headers})
            response = connection.getresponse()
            assert response.status == 200, f"{response.status} at {offset}: {response.read()!r}"
            buffer, seq = b"", offset
            while piece := response.read1(min(budget or 65536, 65536)):
                buffer += piece
                *frames, buffer = buffer.split(b"\n\n" if self._form == SSE else b"\n")
                for frame in frames:
                    seq = self._frame(frame, seq)
                if budget is not None:
                    budget -= len(piece)
                    if budget <= 0:
                        self._break(sock, response)
                        return
            assert buffer == b"", f"the server closed within an event: {buffer[-100:]!r}"
            assert self.complete, f"the server closed at {seq}, before the terminal event"

    def _break(self, sock: socket.socket, response: http.client.HTTPResponse) -> None:
        self.breaks += 1
        if self._chance.random() < 0.5:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        response.close()

    def _frame(self, frame: bytes, seq: int) -> int:
        if self._form == NDJSON:
            return self._take(frame, seq) if frame else seq
        fields = dict(line.split(b": ", 1) for line in frame.split(b"\n"))
        assert b"event" not in fields or fields[b"event"] != b"resync", f"resync after {seq}: {frame!r}"
        if b"data" not in fields:
            return seq
        seq = self._take(fields[b"data"], seq)
        assert fields[b"id"].startswith(b"%d-" % seq), f"{fields[b'id']!r} is not the id of {seq}"
        self.ids[seq] = fields[b"id"].decode()
        return seq

    def _take(self, data: bytes, seq: int) -> int:
        """The event after `seq`: known already, then the same, else the next."""
        if seq < len(self.rows):
            assert self.rows[seq] == data, f"event {seq + 1} changed: {self.rows[seq]!r} != {data!r}"
        else:
            self.rows.append(data)
        found = msgspec.json.decode(data)["seq"]
        assert found == seq + 1, f"{found} came after {seq}"
        return seq + 1

    def _page(self) -> None:
        """A poll of one page; each is a connection of its own, so each is a break."""
        offset = self._offset()
        if self.breaks > self._breaks_max:
            offset = len(self.rows)
        limit = self._chance.choice([1, 7, 100, 500])
        query, headers = self._asks(offset)
        path = f"{self._path}{query or '?'}&limit={limit}"
        with closing(self._http.connection()) as connection:
            connection.request("GET", path.replace("?&", "?"), headers={"Accept": JSON, **headers})
            response = connection.getresponse()
            body = response.read()
        assert response.status == 200, f"{response.status}: {body!r}"
        page = msgspec.json.decode(body, type=_Page)
        assert len(page.events) <= limit
        for data in page.events:
            offset = self._take(bytes(data), offset)
        self.breaks += 1
        if offset == page.head:
            time.sleep(0.02)


class Stuck:
    """A reader that asks for everything and then takes nothing, as a laptop that sleeps."""

    def __init__(self, http: Http, run: str) -> None:
        self._sock = socket.socket()
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._sock.settimeout(30)
        self._sock.connect(("127.0.0.1", http.port))
        head = f"GET /api/runs/{run}/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {NDJSON}\r\n\r\n"
        self._sock.sendall(head.encode())

    def rest(self) -> list[bytes]:
        """Everything, from the first event to the close by the server."""
        response = http.client.HTTPResponse(self._sock)
        try:
            response.begin()
            return [line for line in response.read().split(b"\n") if line]
        finally:
            response.close()
            self.close()

    def close(self) -> None:
        self._sock.close()


def ticks(n: int, seconds: float, size: int = 100, hold: float = 0.0) -> str:
    """The input of the agent `ticker`."""
    return json.dumps({"n": n, "seconds": seconds, "size": size, "hold": hold})
