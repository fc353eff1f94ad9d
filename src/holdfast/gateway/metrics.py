"""GET /metrics: what this process counted, what the workers reported, how the store is. Asks no worker.

What the store cannot say in time is missing from the answer, and said to be missing: an outage of the store is the
moment at which a scrape must not fail.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from holdfast.gateway.checks import ask_all
from holdfast.gateway.gate import Gate
from holdfast.gateway.routes import Answer, Operation
from holdfast.telemetry import Totals
from holdfast.telemetry.exposition import CONTENT_TYPE, Scrape
from holdfast.telemetry.facts import add_losses
from holdfast.telemetry.totals import METRICS_FACT


async def metrics(gate: Gate, request: Request) -> Response:
    """GET /metrics."""
    (store, _), (workers, _), (ready, _) = await ask_all(gate.owner, gate.store, gate.workers, gate.ready)
    scrape = Scrape(gate_totals(gate))
    scrape.build(gate.version, started=True)
    scrape.set("holdfast_scrape_ok", store is not None and "error" not in store, "store")
    scrape.set("holdfast_scrape_ok", workers is not None, "workers")
    scrape.ready(ready or {}, closing=gate.closing)
    scrape.set("holdfast_readers", gate.readers)
    scrape.set("holdfast_connections", gate.connections())
    for fact, value in {"threads": threading.active_count(), "tasks": len(asyncio.all_tasks())}.items():
        scrape.set("holdfast_process_fact", value, fact)
    if store is not None:
        scrape.store(store)
    if workers is not None:
        take_workers(gate, scrape, workers)
    gate.worker_totals.into(scrape.totals)
    return Response(scrape.render(), media_type=CONTENT_TYPE, headers={"Cache-Control": "no-store"})


def gate_totals(gate: Gate) -> Totals:
    """A copy of what this process has counted, its losses included."""
    totals, own = Totals(), gate.log.telemetry.totals
    if own is not None:
        totals.merge(own.snapshot())
    add_losses(totals, gate.log, "gateway")
    return totals


def take_workers(gate: Gate, scrape: Scrape, found: dict[str, Any]) -> None:
    """The facts of each worker by its name, and what each has counted."""
    scrape.workers(list(found.values()))
    for name, facts in found.items():
        if METRICS_FACT in facts:
            gate.worker_totals.heard(name, facts[METRICS_FACT])


OPERATIONS = (
    Operation(
        "GET", "/metrics", metrics, "Metrics for Prometheus", (Answer(200, "Prometheus's text", text=("text/plain",)),)
    ),
)
