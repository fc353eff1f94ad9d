"""Wires telemetry: which sinks a process has, how they are made on their own threads, and how they end."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from holdfast import __version__
from holdfast.config import Settings
from holdfast.domain import secrets
from holdfast.telemetry import Log, Pump, Sink, Telemetry, Totals
from holdfast.telemetry.facts import add_losses
from holdfast.telemetry.totals import METRICS_FACT

if TYPE_CHECKING:
    from holdfast.telemetry.spans import Spans

CLOSE_S: Final = 2.0
HURRIED_CLOSE_S: Final = 0.5  # after a second signal
LOOK_S: Final = 2.0  # an exporter of OpenTelemetry takes half a second to import; one that is there is not waited for
_STATES: Final = {"making": "not made yet", "dead": "not to be had, a line telemetry_failed says why"}
_SAY_EVERY_S: Final = 60.0
_TRACE_MAX: Final = 4000
TRACER: Final = "tracer"  # the one sink that only workers have
_INSTALL: Final = "tracing needs more packages; pip install 'holdfast[otel]'"


def observe(settings: Settings, log: Log, *, works: bool = True) -> Telemetry:
    """Give `log` the telemetry of this process. Nothing is imported and nothing sent before this returns.

    Args:
        settings: Say which sinks there are.
        log: Hears of what fails, and carries the telemetry to all parts.
        works: Whether runs are worked on in this process; a user's `tracer` is loaded only there.
    """
    secrets.learn(os.environ)
    content = settings.trace_content
    say = _Sparse(log)
    pumps = []
    if settings.tracer and works:
        pumps.append(Pump(TRACER, lambda: _users(settings.tracer, content=content), say))
    if settings.otel_endpoint or _standard(os.environ):
        pumps.append(Pump("otel", lambda: _otel(settings.otel_endpoint, say, content=content), say))
    if settings.langfuse:
        pumps.append(Pump("langfuse", lambda: _langfuse(say, content=content), say))
    telemetry = Telemetry(Totals(), pumps, content=content)
    log.telemetry = telemetry
    return telemetry


async def look_at_sinks(log: Log, only: str = "") -> str:
    """Which sinks could not be made, or were not within `LOOK_S`; tracing is optional, so that nothing fails for it.

    Args:
        log: Has the telemetry of this process.
        only: Look at this sink alone.
    """
    until = time.monotonic() + LOOK_S
    pumps = [pump for pump in log.telemetry.pumps if only in ("", pump.name)]
    while any(pump.state == "making" for pump in pumps) and time.monotonic() < until:  # noqa: ASYNC110 - threads
        await asyncio.sleep(0.01)
    missing = [f"{pump.name} is {_STATES[pump.state]}" for pump in pumps if pump.state in _STATES]
    return f"{'; '.join(missing)}; traces are lost, runs are not" if missing else ""


async def end(telemetry: Telemetry, limit_s: float = CLOSE_S) -> None:
    """Let the sinks send what they have, for at most `limit_s`; one that hangs is left behind."""
    telemetry.end()
    until = time.monotonic() + limit_s
    while not telemetry.ended and time.monotonic() < until:  # noqa: ASYNC110 - threads end, no event says so
        await asyncio.sleep(0.01)


def worker_facts(pool: Callable[[], dict[str, Any]], log: Log) -> Callable[[], dict[str, Any]]:
    """What a worker process reports with its heartbeat beside its own: its pool's facts, and what was counted in it."""
    return lambda: pool() | {METRICS_FACT: counted(log)}


def counted(log: Log) -> dict[str, Any]:
    """Everything that this process has counted, what was lost on the way included; JSON."""
    totals = Totals()
    if log.telemetry.totals is not None:
        totals.merge(log.telemetry.totals.snapshot())
    add_losses(totals, log, "worker")
    return totals.snapshot()


def own_logging(log: Log) -> None:
    """Warnings of libraries become lines of ours, bounded and masked, unless somebody configured `logging`."""
    logging.lastResort = _LastResort(log)


class _LastResort(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        trace = "".join(traceback.format_exception(record.exc_info[1]))[-_TRACE_MAX:] if record.exc_info else None
        facts = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
        self._log.write("logged", None, **facts, trace_back=trace)


class _Sparse:
    """Says why a sink fails, once a minute for each."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._said: dict[str, float] = {}

    def __call__(self, sink: str, why: str) -> None:
        now = time.monotonic()
        if now - self._said.get(sink, -_SAY_EVERY_S) >= _SAY_EVERY_S:
            self._said[sink] = now
            self._log.write("telemetry_failed", sink=sink, why=why[:500], effect="traces are lost, runs are not")


def _standard(environ: Mapping[str, str]) -> bool:
    """Whether OpenTelemetry's own variables ask for traces over OTLP."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environ.get("OTEL_TRACES_EXPORTER", "otlp").strip() != "otlp":
        return False
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    return any(environ.get(name) for name in names)


def _users(spec: str, *, content: bool) -> Sink | None:
    """The object that the setting `tracer` names; None is no tracer."""
    module, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    found = getattr(importlib.import_module(module), name)
    tracer = found() if isinstance(found, type) else found
    if tracer is None:
        return None
    from holdfast.telemetry.spans import Spans

    return Spans(tracer, content=content)


def _otel(endpoint: str, say: _Sparse, *, content: bool) -> Spans:
    try:
        from holdfast.telemetry.otel import otlp_sink
    except ModuleNotFoundError as error:
        raise RuntimeError(_INSTALL) from error
    return otlp_sink(endpoint, None, lambda why: say("otel", why), __version__, content=content)


def _langfuse(say: _Sparse, *, content: bool) -> Spans:
    try:
        from holdfast.telemetry.otel import langfuse, otlp_sink
    except ModuleNotFoundError as error:
        raise RuntimeError(_INSTALL) from error
    endpoint, headers = langfuse(os.environ)
    return otlp_sink(endpoint, headers, lambda why: say("langfuse", why), __version__, content=content)
