"""The heartbeat: a thread that renews leases on its own connection, and watches the loop that it speaks for.

The loop beats four times a second. A beat that is late by more than a second is looked into while it is late: the log
line `loop_lag` has the stack that the loop's thread is in at that moment, and the run whose step it is.

It is not the loop's own task because a tool that blocks the loop would then cost every run its lease; and it must
not renew for ever for a loop that is blocked for good: after `loop_stall_s` it says whose stack it is, and stops.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from holdfast.config import Settings
from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import RunKey
from holdfast.engine.inspection import stack_text
from holdfast.ports.store import Held, Renewal, RunStore
from holdfast.telemetry import Log

_HEALTHY_PART: Final = 0.7
_TICK_S: Final = 0.25
_LAG_S: Final = 1.0  # a beat that is later says who held it up
_LAG_SAID_S: Final = 10.0  # between two such lines about one run; those in between are counted
_JOIN_S: Final = 2.0


class Heartbeat:
    """Renews what `held` names every `renew_s`, and hands the answers to the loop."""

    def __init__(
        self,
        store: RunStore,
        settings: Settings,
        log: Log,
        worker: str,
        held: Callable[[], list[Held]],
        facts: Callable[[], dict[str, Any]],
        deliver: Callable[[list[Renewal]], None],
        blamed: Callable[[], RunKey | None] = lambda: None,
    ) -> None:
        """Take the callbacks: `deliver` is called on the loop, the others on the thread.

        Args:
            store: Whose leases are renewed.
            settings: The bounds.
            log: Where a loop that stands still is said.
            worker: Its name.
            held: What to renew.
            facts: What to report beside that.
            deliver: Takes the answers.
            blamed: The run in whose step the loop is now.
        """
        self._store = store
        self._settings = settings
        self._log = log
        self._worker = worker
        self._held = held
        self._facts = facts
        self._deliver = deliver
        self._ending = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0
        self._beat_at = self._renewed_at = time.monotonic()
        self._stalled = False
        self._blamed = blamed
        self._lag_max_ms = 0  # since the last report
        self._looked_at = 0.0  # the beat after which the loop was late, and was looked at
        self._unseen_ms = 0  # a late beat that nobody could look into
        self._lag_said_at = 0.0
        self._lag_said_of: str | None = None
        self._lags_unsaid = 0
        self._thread = threading.Thread(target=self._work, name="holdfast-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to speak for the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self.beat()
        self._renewed_at = time.monotonic()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; waits at most two seconds."""
        self._ending.set()
        self._thread.join(_JOIN_S)

    def beat(self) -> None:
        """The loop lives. Called by a task of it, four times a second."""
        now, before = time.monotonic(), self._beat_at
        lag_s = now - before - _TICK_S
        self._lag_max_ms = max(self._lag_max_ms, int(lag_s * 1000))
        if lag_s > _LAG_S and self._looked_at != before:
            self._unseen_ms = int(lag_s * 1000)
        self._beat_at = now
        self._stalled = False

    def silent_ms(self) -> int:
        """How long ago the loop last beat; from any thread."""
        return int((time.monotonic() - self._beat_at) * 1000)

    def healthy(self) -> bool:
        """Whether the last renewal is recent enough that nobody can have taken a run from us."""
        return time.monotonic() - self._renewed_at < self._settings.lease_s * _HEALTHY_PART

    def _work(self) -> None:
        heart = None
        due = 0.0
        while not self._ending.wait(_TICK_S):
            try:
                self._watch()
                if not self._stalled and time.monotonic() >= due:
                    heart = heart or self._store.heart()
                    self._renew(heart)
                    due = time.monotonic() + self._settings.renew_s
            except StoreUnavailable as error:
                self._log.write("renew_failed", worker=self._worker, error=error.detail)
                due = time.monotonic() + _TICK_S
            except Exception as error:  # noqa: BLE001 - the thread must not die; what failed is said
                self._log.write("heartbeat_failed", worker=self._worker, error=repr(error))
                due = time.monotonic() + 1.0
        if heart is not None:
            heart.close()

    def _renew(self, heart: Any) -> None:
        asked_at = time.monotonic()
        lag_ms, self._lag_max_ms = self._lag_max_ms, 0
        present_ms = int((asked_at - self._beat_at - _TICK_S) * 1000)
        facts = self._facts() | {"loop_lag_ms": max(0, lag_ms, present_ms)}
        renewals = heart.renew(self._worker, self._held(), int(self._settings.lease_s * 1000), facts)
        self._renewed_at = asked_at
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed: nobody holds anything any more
                self._loop.call_soon_threadsafe(self._deliver, renewals)

    def _watch(self) -> None:
        """Say whose stack holds the loop up; once it is blocked for good, say so and stop renewing for it."""
        beat_at = self._beat_at
        silent_s = time.monotonic() - beat_at
        if silent_s - _TICK_S > _LAG_S and self._looked_at != beat_at:
            self._looked_at = beat_at
            self._say_lag(int((silent_s - _TICK_S) * 1000), stack_text(self._loop_thread), self._blamed())
        elif self._unseen_ms:
            lag_ms, self._unseen_ms = self._unseen_ms, 0
            self._say_lag(lag_ms, "unknown: no thread of this process could run meanwhile", None)
        if silent_s < self._settings.loop_stall_s or self._stalled:
            return
        self._stalled = True
        blamed = self._blamed()
        self._log.write(
            "loop_stalled",
            worker=self._worker,
            run=blamed.run if blamed else None,
            silent_ms=int(silent_s * 1000),
            stack=stack_text(self._loop_thread),
        )

    def _say_lag(self, lag_ms: int, stack: str, blamed: RunKey | None) -> None:
        now, run = time.monotonic(), blamed.run if blamed else None
        if self._lag_said_at and now - self._lag_said_at < _LAG_SAID_S and run == self._lag_said_of:
            self._lags_unsaid += 1
            return
        unsaid, self._lags_unsaid, self._lag_said_at, self._lag_said_of = self._lags_unsaid, 0, now, run
        self._log.write("loop_lag", worker=self._worker, run=run, lag_ms=lag_ms, more=unsaid or None, stack=stack)
