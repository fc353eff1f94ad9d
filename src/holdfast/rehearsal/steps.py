"""What a line of a rehearsal script can ask for: one type per directive, and the limits of each number.

Pure values. The parser (`script`) makes them, the player (`answer`) performs them; neither knows the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = [
    "BadJson",
    "Comments",
    "Cut",
    "Fault",
    "FirstToken",
    "Say",
    "Segment",
    "SlowHeaders",
    "Stall",
    "Status",
    "Step",
    "StreamError",
    "Think",
    "Tokens",
    "Tool",
    "ToolPart",
    "Usage",
]


@dataclass(frozen=True, slots=True)
class Say:
    """Emit `text` word by word."""

    text: str
    rate: float


@dataclass(frozen=True, slots=True)
class Tokens:
    """Emit `n` numbered tokens."""

    n: int
    rate: float


@dataclass(frozen=True, slots=True)
class Think:
    """Emit `n` numbered reasoning tokens."""

    n: int
    rate: float


@dataclass(frozen=True, slots=True)
class Tool:
    """Call the tool `name`; `args` is the text of the arguments, as the model would write it."""

    name: str
    args: str


@dataclass(frozen=True, slots=True)
class ToolPart:
    """Begin to call the tool `name`, and break off in the middle of `args`; what follows happens there."""

    name: str
    args: str


@dataclass(frozen=True, slots=True)
class FirstToken:
    """Say nothing for `seconds`, headers already sent."""

    seconds: float


@dataclass(frozen=True, slots=True)
class SlowHeaders:
    """Send nothing at all for `seconds`, not even headers."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stall:
    """Emit `after` tokens, then nothing for `seconds`; like each fault only the first `times` times (None: always)."""

    after: int
    seconds: float
    rate: float
    times: int | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Comments:
    """Emit `after` tokens, then only SSE comments for `seconds`: bytes, but no progress."""

    after: int
    seconds: float
    every: float
    rate: float
    times: int | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Cut:
    """Emit `after` tokens, then end early: `close` drops the connection, `truncate` ends the body cleanly."""

    after: int
    kind: Literal["close", "truncate"]
    rate: float
    times: int | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class BadJson:
    """Emit `after` tokens, then a chunk that is not JSON."""

    after: int
    rate: float
    times: int | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class StreamError:
    """Emit `after` tokens, then an error chunk with this code, and end."""

    after: int
    rate: float
    error: str = "rehearsal_error"
    times: int | None = None
    line: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """Answer with an error status, the first `times` times these messages are seen (None: always).

    With `above`, only where the messages have more words than that, as a context window has it.
    """

    code: int
    retry_after: float | None
    times: int | None
    line: int
    error: str = "rehearsal_status"
    above: int | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Report these token counts instead of the counted ones."""

    prompt: int
    completion: int


Fault: TypeAlias = Stall | Comments | Cut | BadJson | StreamError
"""What goes wrong in the middle of an answer."""

Step: TypeAlias = (
    Say
    | Tokens
    | Think
    | Tool
    | ToolPart
    | FirstToken
    | SlowHeaders
    | Stall
    | Comments
    | Cut
    | BadJson
    | StreamError
    | Status
    | Usage
)


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of a script that one response performs: what happens before the headers, and what after."""

    opening: tuple[SlowHeaders | Status, ...]
    body: tuple[Step, ...]

    @property
    def calls(self) -> int:
        """How many tool calls the response ends with."""
        return sum(isinstance(step, Tool | ToolPart) for step in self.body)
