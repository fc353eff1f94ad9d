"""Says what a run waits on that makes no progress: `run.stalled`, a notice and not a failure.

Progress is what the agent does: every event of its own. A keepalive of the upstream is none, nor is a notice. The
first notice comes after `stalled_notice_s` without progress, the next after 10 s, then after 20, 40 and 60, sooner only
if the run waits on something else meanwhile; a run says at most a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from holdfast.domain.digest import OpenCall
from holdfast.ports.probe import Probe

APART_S: Final = 10.0  # between two notices, at least
_APART_MAX_S: Final = 60.0
_NOTICES_MAX: Final = 100
_NAMED: Final = 3  # tools by name
_PAST_S: Final = 1.0  # a timer that should have fired so long ago is not the one that will
STORE: Final = "store"


@dataclass(frozen=True)
class Waiting:
    """What a run waits on, for how long it has made no progress, and which timer ends the wait at the latest."""

    on: str
    since_ms: int
    fires: str
    fires_in_ms: int

    def fields(self) -> dict[str, Any]:
        """Of the event."""
        return {
            "waiting_on": self.on,
            "since_ms": self.since_ms,
            "fires": self.fires,
            "fires_in_ms": self.fires_in_ms,
        }


@dataclass(frozen=True)
class Facts:
    """What an executor knows of its run; times are `time.monotonic()` seconds."""

    now: float
    progress_at: float  # of the last event of the agent
    deadline_at: float
    open_calls: list[OpenCall]
    model_open: bool = False  # the log has a model.requested without its end
    model_content: bool = False  # and something of its answer
    store_since: float | None = None  # a batch waits for the store's word
    store_outage_s: float = 0.0
    lease_since: float | None = None  # new work is held back, because the lease may be lost


def waiting(probe: Probe, facts: Facts) -> Waiting:
    """What the run waits on: our own store and lease first, then what its model or tool says, then its log."""
    timers = [("run_deadline", facts.deadline_at)]
    on, fires, fires_at = probe.waiting()
    if facts.store_since is not None:
        on = STORE
        timers.append(("store_outage", facts.store_since + facts.store_outage_s))
    elif facts.lease_since is not None:
        on = "lease"
    elif on == "agent":
        on = _by_the_log(facts)
    else:
        if on == "tool":
            names = list(probe.tools_running().values()) or [call.name for call in facts.open_calls]
            on = _tools(names)
        if fires_at is not None and fires_at > facts.now - _PAST_S:
            timers.append((fires, fires_at))
    name, at = min(timers, key=lambda timer: timer[1])
    return Waiting(on, _ms(facts.now - facts.progress_at), name, _ms(at - facts.now))


class Notices:
    """When the next notice of one attempt is due."""

    def __init__(self, after_s: float) -> None:
        """Say nothing before `after_s` without progress; 0 says never anything."""
        self._after_s = after_s
        self._said = 0
        self._progress_at = 0.0  # as it was when the last notice was said
        self._last_at = 0.0
        self._last_on = ""
        self._apart_s = APART_S

    def due(self, wait: Waiting, progress_at: float, now: float) -> bool:
        """Whether to say `wait` now; the answer True counts as said."""
        if not self._after_s or self._said >= _NOTICES_MAX or now - progress_at < self._after_s:
            return False
        same_stall = self._said > 0 and progress_at == self._progress_at
        if same_stall and wait.on == self._last_on:
            if wait.on == STORE or now - self._last_at < self._apart_s:
                return False  # to a store that does not answer, one notice can be said, when it answers again
            self._apart_s = min(_APART_MAX_S, self._apart_s * 2)
        elif self._said and now - self._last_at < APART_S:
            return False
        else:
            self._apart_s = APART_S
        self._said += 1
        self._progress_at, self._last_at, self._last_on = progress_at, now, wait.on
        return True


def _by_the_log(facts: Facts) -> str:
    """For agents that have no probe: what they last said they would do."""
    if facts.open_calls:
        return _tools([call.name for call in facts.open_calls])
    if facts.model_open:
        return "model" if facts.model_content else "model first content"
    return "agent"


def _tools(names: list[str]) -> str:
    known = list(dict.fromkeys(names))
    more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
    return f"tool {', '.join(known[:_NAMED])}{more}".strip()


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
