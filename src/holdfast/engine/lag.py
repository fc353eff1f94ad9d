"""Whether a worker's loop keeps time well enough to take another run.

A worker whose loop is late serves everybody on it late: first text, Stop, its own lease. It takes no more work until
it keeps time again, so that a worker beside it does. One that holds nothing may be late through no fault of its runs
(a busy machine): it takes one at a time, a moment after the others could: where all are late, work still goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from holdfast.telemetry import Log

BEAT_S: Final = 0.25
_CALM_BEATS: Final = 3  # so many in time, one after the other, and it takes work again


class LagGate:
    """Takes the loop's beats; says when it is late, in the log, too. Used on that loop only."""

    def __init__(self, bound_s: float, log: Log, worker: str, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Take the setting `claim_lag_s`: how late a beat may be; 0 is however late."""
        self._bound_s = bound_s
        self._log = log
        self._worker = worker
        self._monotonic = monotonic
        self._beat_at = monotonic()
        self._calm = _CALM_BEATS
        self._paused_at: float | None = None
        self._worst_s = 0.0

    @property
    def paused(self) -> bool:
        """As of the last look; from any thread."""
        return self._paused_at is not None

    def beat(self) -> None:
        """The loop is here again, BEAT_S after the last time if it is in time."""
        now = self._monotonic()
        late_s = self._late_s(now)
        self._beat_at = now
        if self._is_late(late_s):
            self._pause(late_s, now)
        elif self._paused_at is not None:
            self._calm = self._calm + 1 if late_s <= self._bound_s / 2 else 0
            if self._calm >= _CALM_BEATS:
                self._resume(now)

    def late(self) -> bool:
        """Whether to take no more work now: a beat that is overdue counts before it comes."""
        now = self._monotonic()
        late_s = self._late_s(now)
        if self._is_late(late_s):
            self._pause(late_s, now)
        return self._paused_at is not None

    def _late_s(self, now: float) -> float:
        return now - self._beat_at - BEAT_S

    def _is_late(self, late_s: float) -> bool:
        return bool(self._bound_s) and late_s > self._bound_s

    def _pause(self, late_s: float, now: float) -> None:
        self._calm = 0
        self._worst_s = max(self._worst_s, late_s)
        if self._paused_at is None:
            self._paused_at = now
            self._log.write("claims_paused", worker=self._worker, lag_ms=int(late_s * 1000))

    def _resume(self, now: float) -> None:
        if self._paused_at is None:
            return
        paused_ms, worst_ms = int((now - self._paused_at) * 1000), int(self._worst_s * 1000)
        self._paused_at, self._worst_s = None, 0.0
        self._log.write("claims_resumed", worker=self._worker, paused_ms=paused_ms, lag_ms=worst_ms)
