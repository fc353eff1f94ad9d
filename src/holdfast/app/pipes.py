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
_PIECE_CHARACTERS: Final = 1500  # a line of it stays below 4 KiB, also where each needs an escape of two
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


def write_long(fd: int, line: Line) -> bool:
    """As `write_line`, for what may be longer than the pipe takes as one piece; `Pieces` puts it together again."""
    text = json.dumps(line, default=str)
    pieces = [text[at : at + _PIECE_CHARACTERS] for at in range(0, len(text), _PIECE_CHARACTERS)]
    return all(
        write_line(fd, {"report": "piece", "id": line.get("id"), "last": n == len(pieces), "text": piece})
        for n, piece in enumerate(pieces, 1)
    )


class Pieces:
    """Puts long lines together; of one that was not finished, the next with its id begins anew."""

    def __init__(self) -> None:
        self._texts: dict[Any, str] = {}

    def add(self, piece: Line) -> Line | None:
        """Take a piece; the line, once it is whole."""
        number = piece["id"]
        text = self._texts.pop(number, "") + piece["text"]
        if piece["last"]:
            return json.loads(text)  # type: ignore[no-any-return]
        self._texts.clear()  # pieces of one line follow each other: what else is there was broken off
        if len(text) <= _LINE_BYTES_MAX:
            self._texts[number] = text
        return None


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
