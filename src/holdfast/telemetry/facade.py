"""The facade: what the product tells of itself, to sinks that may be slow, broken or hostile.

Nothing here raises, and nothing waits: a call adds up a few numbers and puts one small record on a bounded queue for
each sink. Each sink has a thread of its own, so that one that hangs costs its own records and nobody else's. A sink
is made on that thread, too: to import a tracing library is already to run somebody's code.

No tracer is ever touched between a run's work and its terminal event: spans are built from the records, later.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple, Protocol

from holdfast.domain.events import EventType, encode_json
from holdfast.telemetry.totals import Totals

QUEUE_MAX: Final = 2048
_TICK_S: Final = 0.05  # a span may be so late
_HANGS_S: Final = 1.0
_SAY_EVERY_S: Final = 60.0
_TEXT_MAX: Final = 4096
# What a record keeps of an event; the rest is the run's log's business. Pieces of text are not told at all.
_KEPT: Final[dict[str, tuple[str, ...]]] = {
    EventType.RUN_STARTED: ("worker", "attempt", "epoch"),
    EventType.MODEL_REQUESTED: ("step", "model", "attempt"),
    EventType.MODEL_RESPONDED: ("step", "model", "finish_reason", "usage", "ttft_ms", "duration_ms"),
    EventType.MODEL_RETRIED: ("step", "attempt", "reason", "wait_ms"),
    EventType.ATTEMPT_DISCARDED: ("step", "reason"),
    EventType.TOOL_CALLED: ("call", "name"),
    EventType.TOOL_FINISHED: ("call", "name", "outcome", "duration_ms"),
    EventType.TOOL_RESPONDED: ("call", "model", "finish_reason", "usage", "duration_ms"),
    EventType.RUN_STALLED: ("waiting_on", "since_ms"),
    EventType.DEGRADED: ("what",),
    EventType.RUN_STOPPING: ("reason", "by"),
    EventType.RUN_WAITING: (),
    EventType.RUN_DECIDED: (),
    EventType.RUN_RESUMED: (),
    EventType.STEERED: (),
    EventType.RUN_COMPLETED: ("usage", "timings"),
    EventType.RUN_FAILED: ("reason", "error", "usage", "timings", "receipt"),
    EventType.RUN_CANCELLED: ("reason", "by", "usage", "timings", "receipt"),
}
_CONTENT: Final[dict[str, tuple[str, ...]]] = {
    EventType.TEXT_DONE: ("text",),
    EventType.REASONING_DONE: ("text",),
    EventType.TOOL_CALLED: ("args",),
    EventType.TOOL_FINISHED: ("result",),
    EventType.RUN_COMPLETED: ("output",),
}
# Log lines that sinks hear of, because no event of an attempt says so.
_FACTS: Final = frozenset({"stream_end", "run_lost", "run_released"})


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose events these are: one attempt of one run."""

    run: str
    session: str = ""
    trace: str = ""
    agent: str = ""
    model: str = ""
    attempt: int = 0
    input: str = ""


class Record(NamedTuple):
    """One thing that happened; small, and never changed."""

    kind: str
    at_ns: int  # wall
    scope: Scope
    fields: Mapping[str, Any]


class Sink(Protocol):
    """Where records go; called on its own thread only."""

    def take(self, record: Record) -> None:
        """One record."""
        ...

    def close(self) -> None:
        """Send what is held back; may take as long as it likes, and is left behind then."""
        ...


@dataclass
class Pump:
    """One sink, its queue and its thread.

    Attributes:
        dropped: Records that the sink never saw: its queue was full, or it could not be made.
        failures: Records at which it raised.
    """

    name: str
    make: Callable[[], Sink | None]
    say: Callable[[str, str], None] = lambda name, why: None
    size: int = QUEUE_MAX
    dropped: int = 0
    failures: int = 0
    _queue: deque[Record | None] = field(default_factory=deque)  # no lock that the thread could hold; `offer` bounds it
    _busy_since: float | None = None
    _dead: bool = False
    _made: bool = False
    _closing: bool = False
    _said_at: float = 0.0
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to make the sink, and to feed it."""
        self._thread = threading.Thread(target=self._work, name=f"holdfast-{self.name}", daemon=True)
        self._thread.start()

    def offer(self, record: Record) -> None:
        """Put it on the queue, or count it as dropped; at once in either case."""
        if self._dead or len(self._queue) >= self.size:
            self.dropped += 1
        else:
            self._queue.append(record)

    def end(self) -> None:
        """No more records: the sink closes when it has taken those that wait."""
        self._queue.append(None)

    @property
    def ended(self) -> bool:
        """Whether there is nothing to wait for: it has closed, or stands still."""
        since = self._busy_since
        hangs = since is not None and time.monotonic() - since > _HANGS_S and not self._closing
        return hangs or self._thread is None or not self._thread.is_alive()

    @property
    def state(self) -> str:
        """`making` its sink, `fed`, `none` where there is to be none, or `dead` where it could not be made."""
        if self._dead:
            return "dead" if self.failures else "none"
        return "fed" if self._made else "making"

    def _work(self) -> None:
        sink = self._guard(self.make)
        self._made = sink is not None
        if sink is None:
            self._dead = True
            self.dropped += len(self._queue)
            return
        while True:
            if not self._queue:
                time.sleep(_TICK_S)
                continue
            record = self._queue.popleft()
            if record is None:
                break
            self._guard(lambda record=record: sink.take(record))  # type: ignore[misc]
        self._closing = True  # to send what is held back takes time; whoever waits has a limit of its own
        self._guard(sink.close)

    def _guard(self, call: Callable[[], Any]) -> Any:
        """Whatever it raises is counted, and said now and then."""
        self._busy_since = time.monotonic()
        try:
            return call()
        except BaseException as error:  # noqa: BLE001 - P6: SystemExit of a sink must not end its thread either
            self.failures += 1
            if time.monotonic() - self._said_at > _SAY_EVERY_S or not self._said_at:
                self._said_at = time.monotonic()
                self.say(self.name, f"{type(error).__name__}: {error}"[:500])
            return None
        finally:
            self._busy_since = None


class Follower:
    """Hears the events of one attempt, in order."""

    __slots__ = ("_scope", "_telemetry")

    def __init__(self, telemetry: Telemetry, scope: Scope) -> None:
        """Made by `Telemetry.follow`."""
        self._telemetry = telemetry
        self._scope = scope

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """An event of the run's log."""
        self._telemetry.event(self._scope, kind, fields)

    def appended(self, seconds: float) -> None:
        """How long the store took to acknowledge a batch."""
        self._telemetry.observe("holdfast_log_append_seconds", seconds)


class Telemetry:
    """The one object that everything is told to."""

    def __init__(self, totals: Totals | None = None, pumps: Sequence[Pump] = (), *, content: bool = False) -> None:
        """Start the pumps; with neither totals nor pumps this is the null object.

        Args:
            totals: Counts and times, for /metrics.
            pumps: Sinks of records.
            content: Whether records carry prompts, texts, arguments and results.
        """
        self.totals = totals
        self.pumps = tuple(pumps)
        self.failed = 0
        self._content = content
        for pump in self.pumps:
            pump.start()

    def follow(self, scope: Scope) -> Follower:
        """Somebody to tell the events of an attempt to."""
        shown = scope.input[:_TEXT_MAX] if self._content else ""
        return Follower(self, replace(scope, input=shown))

    def event(self, scope: Scope, kind: str, fields: Mapping[str, Any]) -> None:
        """An event of a run's log."""
        try:
            if self.totals is not None:
                self.totals.event(kind, fields)
            if self.pumps:
                self._tell_event(scope, kind, fields)
        except Exception:  # noqa: BLE001 - P6: a fault of ours here is counted
            self.failed += 1

    def fact(self, word: str, at_ms: int, facts: Mapping[str, Any]) -> None:
        """A line of the log."""
        try:
            if self.totals is not None:
                self.totals.fact(word, facts)
            if self.pumps and word in _FACTS:
                scope = Scope(str(facts.get("run", "")), str(facts.get("session", "")), str(facts.get("trace", "")))
                self._offer(Record(word, at_ms * 1_000_000, scope, dict(facts)))
        except Exception:  # noqa: BLE001 - P6: a fault of ours here is counted
            self.failed += 1

    def request(self, method: str, route: str, status: int, began_ns: int, run: str, traceparent: str) -> None:
        """An HTTP request that has ended; `run` is the one it made, or ""."""
        try:
            if self.totals is not None:
                self.totals.add("holdfast_http_requests_total", method, route, str(status))
            if self.pumps and run:
                fields = {"method": method, "route": route, "status": status, "began_ns": began_ns}
                self._offer(Record("request", time.time_ns(), Scope(run), fields | {"traceparent": traceparent}))
        except Exception:  # noqa: BLE001 - P6: a fault of ours here is counted
            self.failed += 1

    def count(self, name: str, *labels: str) -> None:
        """One more of what the table has by this name."""
        if self.totals is not None:
            self.totals.add(name, *labels)

    def observe(self, name: str, value: float) -> None:
        """A time, or another quantity with a distribution."""
        if self.totals is not None:
            self.totals.observe(name, value)

    def end(self) -> None:
        """No more records; `ended` says when there is nothing to wait for."""
        for pump in self.pumps:
            pump.end()

    @property
    def ended(self) -> bool:
        """Whether every sink has closed or stands still."""
        return all(pump.ended for pump in self.pumps)

    def _tell_event(self, scope: Scope, kind: str, fields: Mapping[str, Any]) -> None:
        names = _KEPT.get(kind)
        more = _CONTENT.get(kind, ()) if self._content else ()
        if names is None and not more:
            return
        kept = {name: fields.get(name) for name in names or ()}
        for name in more:
            kept[name] = _cut(fields.get(name))
        self._offer(Record(kind, time.time_ns(), scope, kept))

    def _offer(self, record: Record) -> None:
        for pump in self.pumps:
            pump.offer(record)


def _cut(value: Any) -> str:
    return (value if isinstance(value, str) else encode_json(value).decode())[:_TEXT_MAX]


NULL: Final = Telemetry()
