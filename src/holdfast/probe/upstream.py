"""What the rehearsal model behind a server says of its open answers: the only witness of a closed connection."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from holdfast.probe.options import ANSWER_S
from holdfast.probe.results import Failed, Skipped
from holdfast.probe.wire import Broke, Silent, Unreachable, Wire

POLL_S: Final = 0.02
_WORKS_S: Final = 1.0


class Upstream:
    """What the rehearsal model behind the server says of its open answers; nothing where nobody can be asked."""

    def __init__(self, wire: Wire | None, before: int) -> None:
        self._wire = wire
        self._before = before
        self._opened = False

    async def works(self, limit_s: float = _WORKS_S) -> None:
        """Wait until it answers somebody who did not ask before; it need not."""
        end = time.monotonic() + limit_s
        while self._wire is not None and not self._opened and time.monotonic() < end:
            self._opened = await open_answers(self._wire) > self._before
            await asyncio.sleep(0 if self._opened else POLL_S)

    async def closes(self, limit_s: float, why: str) -> str:
        """Wait until it answers nobody that it did not answer before; what was seen, in words.

        Raises:
            Failed: It goes on.
        """
        end = time.monotonic() + limit_s
        while (more := await open_answers(self._wire) - self._before) > 0:
            self._opened = True
            if time.monotonic() > end:
                raise Failed(
                    f"{limit_s:.1f} s after {why} the model still has {more} more answer(s) open than before",
                    "the connection to the model is closed",
                )
            await asyncio.sleep(POLL_S)
        if self._wire is None:
            return "whether the model was stopped is not known without --upstream-stats"
        return "the model saw its connection closed" if self._opened else ""


async def open_answers(wire: Wire | None) -> int:
    """How many answers it has open; none where nobody can be asked.

    Raises:
        Skipped: It does not say.
    """
    if wire is None:
        return 0
    try:
        found = (await wire.ask("GET", "/_stats", limit_s=ANSWER_S)).json
    except (Silent, Broke, Unreachable) as error:
        raise Skipped(f"--upstream-stats does not answer: {error}") from error
    if not isinstance(found, dict) or not isinstance(found.get("open"), int):
        raise Skipped(f"--upstream-stats has no number `open`: {str(found)[:80]}")
    return int(found["open"])
