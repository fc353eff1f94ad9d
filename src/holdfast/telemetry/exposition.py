"""The text that Prometheus reads, from what this process counted and what the parts said."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from holdfast.telemetry.table import METRICS
from holdfast.telemetry.table import Metric as Row
from holdfast.telemetry.totals import METRICS_FACT, Key, Totals

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
_FACTS_MAX: Final = 64
_LARGEST: Final = ("_ms", "_age_s")

Gauges = dict[Key, float]


@dataclass(eq=False)
class Scrape:
    """What one answer of /metrics is made of."""

    totals: Totals = field(default_factory=Totals)
    gauges: Gauges = field(default_factory=dict)

    def set(self, name: str, value: float, *labels: str) -> None:
        """A gauge."""
        self.gauges[(name, labels)] = float(value)

    def store(self, facts: Mapping[str, Any]) -> None:
        """The store's own facts."""
        for state, count in (facts.get("runs") or {}).items():
            self.set("holdfast_runs", count, state)
        for name, key, scale in (
            ("holdfast_queue_ready", "ready", 1.0),
            ("holdfast_runs_overdue", "overdue", 1.0),
            ("holdfast_queue_age_seconds", "ready_age_ms", 0.001),
            ("holdfast_store_bytes", "database_bytes", 1.0),
            ("holdfast_store_writes_waiting", "writes_waiting", 1.0),
        ):
            if isinstance(facts.get(key), (int, float)):
                self.set(name, max(0.0, facts[key] * scale))

    def build(self, version: Mapping[str, Any], *, started: bool) -> None:
        """What runs here, and whether it could start."""
        self.set("holdfast_build_info", 1, *(str(version.get(name, "")) for name in ("version", "build", "config")))
        self.set("holdfast_started", started)

    def ready(self, found: Mapping[str, Any], *, closing: bool) -> None:
        """What /readyz would say, as far as it is a number."""
        self.set("holdfast_ready", bool(found.get("ready")) and not closing)
        parts: Mapping[str, Mapping[str, Any]] = found.get("parts") or {}
        for name, part in parts.items():
            self.set("holdfast_ready_part", bool(part.get("ok")), name)
        proof = parts.get("run", {})
        for metric, fact, scale in (
            ("holdfast_synthetic_run_age_seconds", "age_s", 1.0),
            ("holdfast_synthetic_run_seconds", "took_ms", 0.001),
        ):
            if isinstance(proof.get(fact), (int, float)):
                self.set(metric, proof[fact] * scale)

    def workers(self, reported: Sequence[Mapping[str, Any]]) -> None:
        """The facts of each worker, taken as they come: numbers and truths become gauges."""
        self.set("holdfast_workers", len(reported))
        for facts in reported:
            for name, value in facts.items():
                if name == METRICS_FACT:
                    continue
                key = ("holdfast_worker_fact", (name,))
                if not isinstance(value, (bool, int, float)) or (key not in self.gauges and self._many()):
                    continue
                before = self.gauges.get(key, 0.0)
                self.gauges[key] = max(before, value) if name.endswith(_LARGEST) else before + value
            self._breakers(facts.get("breakers"))

    def render(self) -> bytes:
        """The text."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        ProcessCollector(registry=registry)
        return generate_latest(registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry: a family for each row of the table that has a value."""
        for row in METRICS:
            if row.kind == "gauge":
                yield _gauge(row, self.gauges)
            elif row.kind == "counter":
                yield _counter(row, self.totals.counters)
            else:
                yield _histogram(row, self.totals.histograms)

    def describe(self) -> list[Metric]:
        """Nothing in advance."""
        return []

    def _many(self) -> bool:
        return sum(name == "holdfast_worker_fact" for name, _ in self.gauges) >= _FACTS_MAX

    def _breakers(self, found: Any) -> None:
        states = [each.get("state") for each in found if isinstance(each, Mapping)] if isinstance(found, list) else []
        for state in states:
            key = ("holdfast_breakers", (str(state)[:32],))
            self.gauges[key] = self.gauges.get(key, 0.0) + 1


def refusing(version: Mapping[str, Any]) -> Scrape:
    """The answer of a server whose start failed."""
    scrape = Scrape()
    scrape.build(version, started=False)
    scrape.ready({}, closing=False)
    return scrape


def _gauge(row: Row, values: Mapping[Key, float]) -> Metric:
    family = GaugeMetricFamily(row.name, row.help, labels=row.labels)
    for (name, labels), value in values.items():
        if name == row.name:
            family.add_metric(labels, value)
    return family


def _counter(row: Row, values: Mapping[Key, float]) -> Metric:
    family = CounterMetricFamily(row.name.removesuffix("_total"), row.help, labels=row.labels)
    found = {labels: value for (name, labels), value in values.items() if name == row.name}
    if not row.labels:
        found.setdefault((), 0.0)  # a counter that is absent until it first counts hides its first step
    for labels, value in found.items():
        family.add_metric(labels, value)
    return family


def _histogram(row: Row, values: Mapping[Key, list[float]]) -> Metric:
    family = HistogramMetricFamily(row.name, row.help, labels=row.labels)
    found = {labels: counts for (name, labels), counts in values.items() if name == row.name}
    if not row.labels:
        found.setdefault((), [0.0] * (len(row.buckets) + 2))
    for labels, counts in found.items():
        total, buckets = 0.0, []
        for bound, count in zip((*row.buckets, float("inf")), counts, strict=False):
            total += count
            buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", total))
        family.add_metric(labels, buckets, counts[-1])
    return family
