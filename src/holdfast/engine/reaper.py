"""The reaper: in every process, it ends or requeues what nobody else does, and forgets what is past its retention."""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Callable
from typing import Final

from holdfast.config import Settings
from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import SYNTHETIC_TENANT
from holdfast.domain.runs import State
from holdfast.engine.telling import tell_ends
from holdfast.ports.store import Reaped, RunStore
from holdfast.telemetry import Log

_EVERY_S: Final = 1.0
_LEAST_S: Final = 0.02
_LIMIT: Final = 100
_GRACE_EXTRA_S: Final = 0.5
_SWEEP_EVERY_S: Final = 60.0
_SWEEP_MORE_S: Final = 1.0  # after a sweep that did all it may at once: more runs may end in a minute than that
_SWEEP_LIMIT: Final = 100


class Reaper:
    """Reaps each second, and at the next due time."""

    def __init__(
        self, store: RunStore, settings: Settings, log: Log, on_unanswered: Callable[[], None] | None = None
    ) -> None:
        """Take the store; `run` is the task. `on_unanswered` hears of a stop that no worker took up in time."""
        self._on_unanswered = on_unanswered
        self._store = store
        self._settings = settings
        self._log = log
        self._grace_ms = int((settings.stop_grace_s + _GRACE_EXTRA_S) * 1000)

    async def run(self) -> None:
        """Until it is cancelled."""
        loop = asyncio.get_running_loop()
        sweep_at = loop.time() + _SWEEP_EVERY_S
        while True:
            pause = _EVERY_S
            try:
                pause = await self._reap()
                if loop.time() >= sweep_at:
                    sweep_at = loop.time() + _SWEEP_EVERY_S
                    if await self._sweep() >= _SWEEP_LIMIT:
                        sweep_at = loop.time() + _SWEEP_MORE_S
            except StoreUnavailable as error:
                self._log.write("store_unavailable", part="reaper", error=error.detail)
            except Exception as error:  # noqa: BLE001 - said, and done again in a second
                trace = traceback.format_exc(limit=8)
                self._log.write("loop_failed", part="reaper", error=repr(error), trace_back=trace)
            await asyncio.sleep(pause)

    async def _reap(self) -> float:
        for reaped in await self._store.reap(_LIMIT, self._grace_ms):
            say_reaped(self._log, reaped)
            synthetic = reaped.key.tenant == SYNTHETIC_TENANT
            if reaped.outcome == State.CANCELLED and not synthetic and self._on_unanswered is not None:
                self._on_unanswered()
        due_ms = await self._store.next_due_ms()
        return _EVERY_S if due_ms is None else min(_EVERY_S, max(_LEAST_S, due_ms / 1000))

    async def _sweep(self) -> int:
        settings = self._settings
        swept = await self._store.sweep(
            older_than_ms=int(settings.retention_s * 1000), bytes_max=settings.retention_bytes, limit=_SWEEP_LIMIT
        )
        if swept:
            self._log.write("swept", runs=swept)
        return swept


def say_reaped(log: Log, reaped: Reaped) -> None:
    """The log lines of a run that was requeued, stopped or ended from outside."""
    log.telemetry.count("holdfast_reaped_total", reaped.outcome)
    if reaped.outcome == "requeued":
        log.write("run_requeued", run=reaped.key.run, session=reaped.session)
    elif reaped.outcome == "stopping":
        log.write("listener_lost", run=reaped.key.run, session=reaped.session)
    tell_ends(log, reaped.ends)
