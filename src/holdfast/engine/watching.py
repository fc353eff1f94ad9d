"""One run as a watcher sees it: what it waits on, for how long; said in its log by notices, and to whoever inspects it.

It decides nothing, waits for nothing, and a run goes on in the same way whether it is watched or not.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from holdfast.config import Settings
from holdfast.domain.digest import OpenCall
from holdfast.domain.events import EventType
from holdfast.engine.appender import Appender
from holdfast.engine.inspection import stacks_of, threads_of, timers_of
from holdfast.engine.stalls import Facts, Notices, Waiting, waiting
from holdfast.engine.translate import Translator
from holdfast.ports.clock import Clock
from holdfast.ports.probe import Probe
from holdfast.ports.store import Claim

_STORE_SLOW_S: Final = 1.0  # a batch that waits for so long is what the run waits on


class RunWatch:
    """Of one claim; the executor fills in what there is as it comes to be."""

    def __init__(self, claim: Claim, settings: Settings, clock: Clock, probe: Probe, deadline: float) -> None:
        """Begin with a claim that nothing was done for yet; `deadline` is on the loop's clock."""
        self._claim = claim
        self._settings = settings
        self._clock = clock
        self._probe = probe
        self._deadline = deadline
        self._began = time.monotonic()
        self._notices = Notices(settings.stalled_notice_s)
        self.appender: Appender | None = None
        self.translator: Translator | None = None
        self.work: asyncio.Task[Any] | None = None  # the agent's
        self.slot: int | None = None  # on the blame board
        self.lease_since: float | None = None  # new work is held back
        self.told = False  # to end, for whatever reason

    def waiting(self) -> Waiting:
        """What the run waits on, for how long it has made no progress, and which timer ends that."""
        now, translator = time.monotonic(), self.translator
        facts = Facts(
            now=now,
            progress_at=self._progress_at(),
            deadline_at=now + self._deadline - asyncio.get_running_loop().time(),
            open_calls=self._open_calls(),
            model_open=translator is not None and translator.model_open,
            model_content=translator is not None and translator.model_content,
            store_since=self._store_since(now),
            store_outage_s=self._settings.store_outage_s,
            lease_since=self.lease_since,
        )
        return waiting(self._probe, facts)

    def notice(self) -> None:
        """Say in the log that the run makes no progress, if that is due."""
        if self.appender is None or self.translator is None or self.told or self.work is None or self.work.done():
            return
        now, progress_at = time.monotonic(), self._progress_at()
        after_s = self._settings.stalled_notice_s
        if not after_s or now - progress_at < after_s:
            return  # cheap, because it is asked of every run each second
        wait = self.waiting()
        if self._notices.due(wait, progress_at, now):
            self.appender.put(EventType.RUN_STALLED, wait.fields())

    def inspect(self) -> dict[str, Any]:
        """Everything about this attempt that helps to see why it is not finished; bounded."""
        wait, probe = self.waiting(), self._probe
        tools = list(probe.tools_running().values()) or [call.name for call in self._open_calls()]
        return {
            **probe.snapshot(),
            **wait.fields(),  # which knows more: our store and lease, tools by name, the run's deadline
            "phase": self._phase(wait),
            "tool": tools[0] if tools else None,
            "elapsed_ms": max(0, self._clock.wall_ms() - self._claim.created_at),
            "progress_ms": wait.since_ms,
            "timers": timers_of(wait, probe),
            "threads": threads_of(probe),
            "stacks": stacks_of(self.work, self.slot),
            "repair": probe.history,
        }

    def _phase(self, wait: Waiting) -> str:
        if self.told:
            return "stopping"
        return "starting" if self.translator is None else wait.on.partition(" ")[0]

    def _progress_at(self) -> float:
        return self._began if self.translator is None else self.translator.progress_at

    def _open_calls(self) -> list[OpenCall]:
        return [] if self.appender is None else self.appender.fold.open_calls()

    def _store_since(self, now: float) -> float | None:
        if self.translator is None:  # it reads the run's log and history, and writes run.started
            since: float | None = self._began
        else:
            since = None if self.appender is None else self.appender.writing_since
        return since if since is not None and now - since > _STORE_SLOW_S else None
