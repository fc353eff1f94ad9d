"""GET /metrics: what this process counted, what the workers reported, how the store is. Asks no worker.

What the store cannot say in time is missing from the answer, and said to be missing: an outage of the store is the
moment at which a scrape must not fail.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response

from holdfast.aio import Owner
from holdfast.gateway.checks import Check, Facts, ask_all
from holdfast.gateway.gate import Gate
from holdfast.gateway.routes import Answer, Operation
from holdfast.telemetry import Log, Totals, WorkersTotals
from holdfast.telemetry.exposition import CONTENT_TYPE, Scrape
from holdfast.telemetry.facts import add_losses
from holdfast.telemetry.totals import METRICS_FACT


class Measured(Protocol):
    """What is asked, of a gateway or of a process that has workers only."""

    log: Log
    owner: Owner
    ready: Check
    store: Check
    workers: Check
    version: dict[str, Any]
    worker_totals: WorkersTotals
    closing: bool


async def metrics(gate: Gate, request: Request) -> Response:
    """GET /metrics."""
    scrape, store = await measure(gate, "gateway")
    scrape.set("holdfast_readers", gate.readers)
    scrape.set("holdfast_connections", gate.connections())
    if store is not None:
        scrape.store(store)
    return exposed(scrape)


async def measure(of: Measured, process: str) -> tuple[Scrape, Facts | None]:
    """What is told of every process that is scraped; and the store's facts, if it gave them in time.

    Args:
        of: What is asked.
        process: What it is, for what is lost in it.
    """
    (store, _), (workers, _), (ready, _) = await ask_all(of.owner, of.store, of.workers, of.ready)
    scrape = Scrape(_own_totals(of.log, process))
    scrape.build(of.version, started=True)
    scrape.set("holdfast_scrape_ok", store is not None and "error" not in store, "store")
    scrape.set("holdfast_scrape_ok", workers is not None, "workers")
    scrape.ready(ready or {}, closing=of.closing)
    for fact, value in {"threads": threading.active_count(), "tasks": len(asyncio.all_tasks())}.items():
        scrape.set("holdfast_process_fact", value, fact)
    if workers is not None:
        _take_workers(of.worker_totals, scrape, workers)
    of.worker_totals.into(scrape.totals)
    return scrape, store


def exposed(scrape: Scrape) -> Response:
    """The answer that Prometheus reads."""
    return Response(scrape.render(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})


def _own_totals(log: Log, process: str) -> Totals:
    """A copy of what this process has counted, its losses included."""
    totals, own = Totals(), log.telemetry.totals
    if own is not None:
        totals.merge(own.snapshot())
    add_losses(totals, log, process)
    return totals


def _take_workers(totals: WorkersTotals, scrape: Scrape, found: dict[str, Any]) -> None:
    """The facts of each worker by its name, and what each has counted."""
    scrape.workers(list(found.values()))
    for name, facts in found.items():
        if METRICS_FACT in facts:
            totals.heard(name, facts[METRICS_FACT])


OPERATIONS = (
    Operation(
        "GET", "/metrics", metrics, "Metrics for Prometheus", (Answer(200, "Prometheus's text", text=("text/plain",)),)
    ),
)
