"""Counters and histograms of one process, kept as plain numbers, so that a worker's can travel in its facts.

A worker that dies takes nothing with it but what it counted since its last heartbeat: the gateway adds up the last
words of all workers it has seen.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

from holdfast.domain.events import EventType
from holdfast.telemetry.table import BY_NAME

_SERIES_MAX: Final = 2000
_WORKERS_MAX: Final = 256
# First words of log lines that speak of trouble.
FAULTS: Final = frozenset(
    {
        "agent_failed", "agent_unknown", "broken", "bury_failed", "executor_failed", "finish_failed", "gateway_late",
        "heartbeat_failed", "listener_lost", "loop_failed", "loop_stalled", "renew_failed", "run_lost",
        "run_requeued", "spare_lost", "stop_not_stored", "store_unavailable", "task_failed", "telemetry_failed",
        "worker_abandoned", "worker_not_ready",
    }
)  # fmt: skip
_REPLACED: Final = {"worker_killed": "killed", "worker_lost": "exited"}
_FINISH_REASONS: Final = frozenset({"stop", "length", "content_filter", "tool_call", "tool_calls", "error"})

METRICS_FACT: Final = "metrics"  # of a worker's facts: what it has counted

Key = tuple[str, tuple[str, ...]]


class Totals:
    """What was counted since the start of the process."""

    def __init__(self) -> None:
        """Begin at nothing."""
        self._lock = threading.Lock()
        self.counters: dict[Key, float] = {}
        self.histograms: dict[Key, list[float]] = {}  # a count for each bucket, the rest, and the sum

    def add(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Count."""
        with self._lock:
            key = (name, labels)
            if key in self.counters or len(self.counters) < _SERIES_MAX:
                self.counters[key] = self.counters.get(key, 0.0) + by

    def observe(self, name: str, value: float, *labels: str) -> None:
        """One value of a distribution."""
        buckets = BY_NAME[name].buckets
        with self._lock:
            counts = self.histograms.setdefault((name, labels), [0.0] * (len(buckets) + 2))
            counts[bisect_left(buckets, value)] += 1
            counts[-1] += max(0.0, value)

    def snapshot(self) -> dict[str, Any]:
        """As JSON."""
        with self._lock:
            return {
                "c": [[name, list(labels), value] for (name, labels), value in self.counters.items()],
                "h": [[name, list(labels), list(counts)] for (name, labels), counts in self.histograms.items()],
            }

    def merge(self, snapshot: Mapping[str, Any]) -> None:
        """Add what another process counted; what this version does not know is passed over."""
        for name, labels, value in snapshot.get("c", ()):
            if name in BY_NAME:
                self.add(name, *labels, by=value)
        for name, labels, counts in snapshot.get("h", ()):
            metric = BY_NAME.get(name)
            if metric is None or len(counts) != len(metric.buckets) + 2:
                continue
            with self._lock:
                mine = self.histograms.setdefault((name, tuple(labels)), [0.0] * len(counts))
                mine[:] = [a + b for a, b in zip(mine, counts, strict=True)]

    def fact(self, word: str, facts: Mapping[str, Any]) -> None:
        """A line of the log."""
        if word in FAULTS:
            self.add("holdfast_faults_total", word)
        elif word == "stream_requested":
            self.add("holdfast_runs_requested_total")
        elif word == "run_refused":
            self.add("holdfast_runs_refused_total", str(facts["cap"]))
        elif word == "degraded":  # a part that a start went without; a run's is an event
            self.add("holdfast_degraded_total")
        elif word == "claims_paused":
            self.add("holdfast_claims_paused_total")
        elif word == "stream_start":
            self.add("holdfast_runs_started_total")
        elif word == "stream_end":
            self.add("holdfast_runs_ended_total", str(facts["state"]), str(facts["reason"]))
            self.observe("holdfast_run_seconds", facts["duration_ms"] / 1000, str(facts["state"]))
        elif word in _REPLACED:
            self.add("holdfast_worker_replacements_total", _REPLACED[word])

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        """An event of a run's log."""
        match kind:
            case EventType.MODEL_REQUESTED:
                self.add("holdfast_model_requests_total")
            case EventType.MODEL_RESPONDED:
                self._responded(fields)
            case EventType.TOOL_RESPONDED:
                self.add("holdfast_model_requests_total")
                self._responded(fields)
            case EventType.MODEL_RETRIED:
                self.add("holdfast_model_retries_total")
            case EventType.ATTEMPT_DISCARDED:
                self.add("holdfast_model_discarded_total")
            case EventType.TOOL_FINISHED:
                self.add("holdfast_tool_calls_total", str(fields.get("outcome")))
                self._ms("holdfast_tool_seconds", fields.get("duration_ms"))
            case EventType.RUN_STALLED:
                self.add("holdfast_run_stalls_total")
            case EventType.DEGRADED:
                self.add("holdfast_degraded_total")
            case EventType.RUN_COMPLETED | EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                self._ended(kind, fields)
            case _:
                pass

    def _responded(self, fields: Mapping[str, Any]) -> None:
        reason = str(fields.get("finish_reason"))
        self.add("holdfast_model_responses_total", reason if reason in _FINISH_REASONS else "other")
        self._ms("holdfast_model_seconds", fields.get("duration_ms"))
        self._ms("holdfast_model_first_content_seconds", fields.get("ttft_ms"))
        usage = fields.get("usage") or {}
        for direction in ("input", "output"):
            tokens = usage.get(f"{direction}_tokens")
            if isinstance(tokens, (int, float)) and tokens > 0:
                self.add("holdfast_model_tokens_total", direction, by=tokens)

    def _ended(self, kind: str, fields: Mapping[str, Any]) -> None:
        timings, receipt = fields.get("timings") or {}, fields.get("receipt") or {}
        self._ms("holdfast_run_queued_seconds", timings.get("queued_ms"))
        self._ms("holdfast_run_first_content_seconds", timings.get("ttft_ms"))
        if kind == EventType.RUN_CANCELLED:
            self._ms("holdfast_stop_seconds", receipt.get("elapsed_ms"))
        if receipt.get("abandoned"):
            self.add("holdfast_runs_abandoned_total")

    def _ms(self, name: str, value: Any) -> None:
        if isinstance(value, (int, float)):
            self.observe(name, value / 1000)


class WorkersTotals:
    """The last words of every worker that a gateway has seen, living and dead."""

    def __init__(self) -> None:
        """None was seen."""
        self._last: OrderedDict[str, Mapping[str, Any]] = OrderedDict()
        self._forgotten = Totals()

    def heard(self, worker: str, snapshot: Mapping[str, Any]) -> None:
        """What `worker` has counted up to now."""
        self._last[worker] = snapshot
        self._last.move_to_end(worker)
        if len(self._last) > _WORKERS_MAX:
            _, oldest = self._last.popitem(last=False)
            self._forgotten.merge(oldest)

    def into(self, totals: Totals) -> None:
        """Add them all up."""
        totals.merge(self._forgotten.snapshot())
        for snapshot in self._last.values():
            totals.merge(snapshot)


def without_metrics(facts: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's facts as people want them."""
    return {name: fact for name, fact in facts.items() if name != METRICS_FACT}
