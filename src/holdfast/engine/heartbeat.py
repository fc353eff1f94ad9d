"""The heartbeat: a thread that renews leases on its own connection, and watches the loop that it speaks for.

It is not the loop's own task because a tool that blocks the loop would then cost every run its lease; and it must
not renew for ever for a loop that is blocked for good: after `loop_stall_s` it says whose stack it is, and stops.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from holdfast.config import Settings
from holdfast.domain.errors import StoreUnavailable
from holdfast.ports.store import Held, Renewal, RunStore
from holdfast.telemetry import Log

_HEALTHY_PART: Final = 0.7
_TICK_S: Final = 0.25
_STACK_CHARACTERS: Final = 4000
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
    ) -> None:
        """Take the callbacks: `held` and `facts` are called on the thread, `deliver` on the loop."""
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
        self.loop_lag_ms = 0
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
        now = time.monotonic()
        self.loop_lag_ms = max(0, int((now - self._beat_at - _TICK_S) * 1000))
        self._beat_at = now
        self._stalled = False

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
        facts = self._facts() | {"loop_lag_ms": self.loop_lag_ms}
        renewals = heart.renew(self._worker, self._held(), int(self._settings.lease_s * 1000), facts)
        self._renewed_at = asked_at
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has closed: nobody holds anything any more
                self._loop.call_soon_threadsafe(self._deliver, renewals)

    def _watch(self) -> None:
        """Say once whose stack blocks the loop, and stop renewing for it."""
        silent_s = time.monotonic() - self._beat_at
        if silent_s < self._settings.loop_stall_s or self._stalled:
            return
        self._stalled = True
        frame = sys._current_frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame)[-12:]) if frame else "unknown"
        self._log.write(
            "loop_stalled", worker=self._worker, silent_ms=int(silent_s * 1000), stack=stack[-_STACK_CHARACTERS:]
        )
