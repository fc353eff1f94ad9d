"""A page of text that fills a terminal: drawn over itself, and gone without a trace when it is left.

The keys come one by one, without Enter. Whatever ends the program, the terminal is given back as it was.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import tty
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Any, Final, Self

_ENTER: Final = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # another screen, no cursor, no line goes on in the next
_LEAVE: Final = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_HOME, _END_OF_LINE, _END_OF_PAGE = "\x1b[H", "\x1b[K", "\x1b[J"
BOLD, REVERSE, PLAIN = "\x1b[1m", "\x1b[7m", "\x1b[0m"
_KEYS: Final = {"\x1b[A": "up", "\x1bOA": "up", "k": "up", "\x1b[B": "down", "\x1bOB": "down", "j": "down"}
_VSUSP: Final = termios.VSUSP
_ENDS: Final = (signal.SIGTERM, signal.SIGHUP)
_READ_BYTES: Final = 64
_SIZE: Final = (80, 24)  # of a terminal that does not say
_SEQUENCE: Final = re.compile(r"\x1b[\[O][0-9;]*[A-Za-z~]")  # what a key such as an arrow sends
END: Final = "end"  # the key of a terminal that has gone


class Page:
    """The terminal, as a context; outside of it everything is as it was."""

    def __init__(self) -> None:
        """Nothing is touched yet."""
        self._in = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[Any] | None = None
        self._drawn: tuple[list[str], tuple[int, int]] | None = None
        self._pressed = ""  # keys that were not asked for yet
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take the terminal; Ctrl-C is KeyboardInterrupt, and what ends the process ends the context first."""
        self._handlers = {number: signal.signal(number, _ended) for number in _ENDS}
        self._handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._in >= 0:
            self._before = termios.tcgetattr(self._in)
            tty.setcbreak(self._in)
            now = termios.tcgetattr(self._in)
            now[6][_VSUSP] = b"\0"  # Ctrl-Z would leave the shell on our screen
            termios.tcsetattr(self._in, termios.TCSANOW, now)
        _write(_ENTER)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it back."""
        try:
            _write(_LEAVE)
            if self._before is not None:
                termios.tcsetattr(self._in, termios.TCSADRAIN, self._before)
        except (OSError, termios.error):
            pass  # it is not there any more
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines, as they are now."""
        try:
            found = os.get_terminal_size(sys.stdout.fileno())  # not of the environment, which stays as it was
        except OSError:
            return _SIZE
        return (found.columns, found.lines) if all(found) else _SIZE

    def draw(self, lines: Sequence[str]) -> None:
        """Show these lines from the top, as many as there is room for, and nothing else."""
        size = self.size
        if self._drawn == (list(lines), size):
            return
        self._drawn = (list(lines), size)
        lines = lines[: size[1]]
        _write(_HOME + "\r\n".join(f"{line}{PLAIN}{_END_OF_LINE}" for line in lines) + _END_OF_PAGE)

    def key(self, limit_s: float) -> str:
        """The next key that was pressed within this time, or ""."""
        if not self._pressed:
            if self._in < 0:
                select.select([], [], [], limit_s)
                return ""
            if not select.select([self._in], [], [], limit_s)[0]:
                return ""
            try:
                self._pressed = os.read(self._in, _READ_BYTES).decode(errors="replace")
            except OSError:
                return END
            if not self._pressed:
                return END
        sequence = _SEQUENCE.match(self._pressed)
        found = sequence[0] if sequence else self._pressed[0]
        self._pressed = self._pressed[len(found) :]
        return _KEYS.get(found, found)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _ended(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
