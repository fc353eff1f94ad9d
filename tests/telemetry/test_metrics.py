"""What Prometheus reads: the names of the page, bounded labels, sums over workers, and an answer in time."""

from __future__ import annotations

import asyncio
import re
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from holdfast.telemetry import Telemetry, Totals, WorkersTotals
from holdfast.telemetry.exposition import Scrape
from holdfast.telemetry.table import METRICS
from tests.docs.blocks import ROOT
from tests.gateway.support import site


def test_the_page_lists_exactly_what_is_served():
    """A dashboard is built from the page."""
    page = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (holdfast_\w+) \| (\w+) \| ([^|]*) \|", page, re.MULTILINE)
    assert listed == [(row.name, row.kind, ", ".join(row.labels)) for row in METRICS]


def parsed(scrape: Scrape) -> dict[str, float]:
    families = text_string_to_metric_families(scrape.render().decode())
    return {
        s.name + "".join(f" {k}={v}" for k, v in sorted(s.labels.items())): s.value for f in families for s in f.samples
    }


def test_histograms_are_cumulative_and_counters_begin_at_zero():
    """A counter that appears with its first count hides that count from rate()."""
    scrape = Scrape()
    for value in (0.004, 0.3, 1000.0):
        scrape.totals.observe("holdfast_stop_seconds", value)
    found = parsed(scrape)
    assert found["holdfast_stop_seconds_bucket le=0.01"] == 1
    assert found["holdfast_stop_seconds_bucket le=0.5"] == 2
    assert found["holdfast_stop_seconds_bucket le=+Inf"] == found["holdfast_stop_seconds_count"] == 3
    assert found["holdfast_stop_seconds_sum"] == pytest.approx(1000.304)
    assert found["holdfast_model_retries_total"] == 0
    assert found["holdfast_tool_seconds_count"] == 0


def test_workers_add_up_also_when_they_are_replaced():
    """A counter that falls back looks like a restart, and rate() then counts everything again."""
    seen, old, new = WorkersTotals(), Totals(), Totals()
    old.add("holdfast_tool_calls_total", "success", by=3)
    old.observe("holdfast_tool_seconds", 0.2)
    new.add("holdfast_tool_calls_total", "success")
    seen.heard("w1", old.snapshot())
    seen.heard("w1", old.snapshot())
    for number in range(600):
        seen.heard(f"x{number}", new.snapshot())
    scrape = Scrape()
    seen.into(scrape.totals)
    found = parsed(scrape)
    assert found["holdfast_tool_calls_total outcome=success"] == 603
    assert found["holdfast_tool_seconds_count"] == 1


def test_a_snapshot_of_another_version_is_taken_as_far_as_it_is_understood():
    """Workers and gateways are not restarted in the same moment."""
    totals = Totals()
    totals.merge({"c": [["holdfast_of_tomorrow_total", [], 3]], "h": [["holdfast_stop_seconds", [], [1, 2]]], "x": 1})
    assert (totals.counters, totals.histograms) == ({}, {})


def test_facts_of_workers_are_taken_as_they_come():
    """Numbers and truths become gauges: sums, but the largest lag; breakers by state; nothing else."""
    scrape = Scrape()
    facts = {"runs": 2, "accepting": True, "loop_lag_ms": 30, "agents": ["a"], "metrics": {"c": []}, "new": 1.5}
    breakers = [{"upstream": "u", "state": "open"}, {"upstream": "v", "state": "closed"}]
    scrape.workers([facts, {"runs": 3, "loop_lag_ms": 10, "breakers": breakers}])
    found = parsed(scrape)
    assert found["holdfast_worker_fact fact=runs"] == 5
    assert found["holdfast_worker_fact fact=loop_lag_ms"] == 30
    assert found["holdfast_worker_fact fact=accepting"] == 1
    assert found["holdfast_worker_fact fact=new"] == 1.5
    assert found["holdfast_breakers state=open"] == found["holdfast_breakers state=closed"] == 1
    assert found["holdfast_workers"] == 2
    assert not any("agents" in name or "metrics" in name for name in found)


def test_series_are_bounded():
    """Whatever comes in as a label, memory and the size of the answer have an end."""
    totals = Totals()
    for number in range(5000):
        totals.add("holdfast_http_requests_total", "GET", f"/{number}", "200")
    assert len(totals.counters) == 2000
    scrape = Scrape()
    scrape.workers([{f"fact{number}": 1 for number in range(500)}])
    assert len(scrape.gauges) == 65


@pytest.mark.parametrize("how", ["hangs", "raises"])
async def test_metrics_are_answered_while_the_store_is_not(tmp_path, monkeypatch, how):
    """The moment in which the store stands still is the moment in which somebody looks."""

    async def silent():
        if how == "raises":
            raise RuntimeError("no store")
        await asyncio.sleep(60)

    async with site(tmp_path) as here:
        await here.run()
        assert 'holdfast_scrape_ok{part="store"} 1.0' in (await here.http.get("/metrics")).text
        monkeypatch.setattr(here.store, "health", silent)
        monkeypatch.setattr(here.store, "workers", silent)
        began = time.monotonic()
        got = await here.http.get("/metrics")
        assert time.monotonic() - began < 3.0
    assert got.status_code == 200
    assert got.headers["content-type"].startswith("text/plain")
    assert 'holdfast_scrape_ok{part="store"} 0.0' in got.text
    assert 'holdfast_scrape_ok{part="workers"} 0.0' in got.text


async def test_requests_are_counted_by_route_and_not_by_path(tmp_path):
    """A path holds a run's id: as a label it would be a series for every run."""
    async with site(tmp_path) as here:
        here.log.telemetry = Telemetry(Totals())
        run = await here.run()
        await here.http.get(f"/api/runs/{run['id']}")
        await here.http.get("/no/such/path")
        text = (await here.http.get("/metrics")).text
    assert 'route="/api/runs/{run}",status="200"} 1.0' in text
    assert 'holdfast_http_requests_total{method="GET",route="other",status="404"} 1.0' in text
    assert run["id"] not in text
