"""OpenTelemetry's SDK as a sink: its own provider, batches only, over OTLP/HTTP. Never global, never at exit.

Imported on the sink's thread only, and only where tracing is configured: `pip install 'holdfast[otel]'`.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator

from holdfast.telemetry.spans import Spans

_EXPORT_S: Final = 5
_QUEUE: Final = 2048
_BATCH: Final = 256
_EVERY_MS: Final = 1000
_TRACES: Final = "/v1/traces"
LANGFUSE_URL: Final = "https://cloud.langfuse.com"


def otlp_sink(
    endpoint: str, headers: Mapping[str, str] | None, say: Callable[[str], None], version: str, *, content: bool
) -> Spans:
    """A sink that sends spans to `endpoint`, or where OTEL_EXPORTER_OTLP_* say if it is "".

    Args:
        endpoint: A base URL, or a whole one that ends in /v1/traces.
        headers: Sent beside those of OTEL_EXPORTER_OTLP_HEADERS.
        say: Told why an export failed.
        version: Of the service.
        content: Whether prompts, texts, arguments and results are sent.
    """
    _tame(say)
    url = endpoint.rstrip("/")
    if url and not url.lower().startswith(("http://", "https://")):
        raise ValueError(f"{endpoint!r} is no http(s) URL; write it like http://127.0.0.1:4318")
    if url and not url.endswith(_TRACES):
        url += _TRACES
    exporter = _Guarded(OTLPSpanExporter(url or None, headers=dict(headers or {}), timeout=_EXPORT_S), say)
    ids = _Ids()
    named = str(Resource.create().attributes.get(SERVICE_NAME, ""))  # as OTEL_SERVICE_NAME and its like say
    name = "holdfast" if named.startswith("unknown_service") else named
    resource = Resource.create({SERVICE_NAME: name, SERVICE_VERSION: version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False, id_generator=ids)
    batches = BatchSpanProcessor(
        exporter, max_queue_size=_QUEUE, max_export_batch_size=_BATCH, schedule_delay_millis=_EVERY_MS
    )
    provider.add_span_processor(batches)
    return Spans(provider.get_tracer("holdfast", version), provider.shutdown, ids, content=content)


def langfuse(environ: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """Where Langfuse takes OTLP, and the headers by which it knows its project. Its SDK is not needed."""
    public, secret = environ.get("LANGFUSE_PUBLIC_KEY", ""), environ.get("LANGFUSE_SECRET_KEY", "")
    if not (public and secret):
        raise ValueError("langfuse = true needs LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY in the environment")
    url = environ.get("LANGFUSE_BASE_URL") or environ.get("LANGFUSE_HOST") or LANGFUSE_URL
    token = base64.b64encode(f"{public}:{secret}".encode()).decode()
    headers = {"Authorization": f"Basic {token}", "x-langfuse-ingestion-version": "4"}
    return f"{url.rstrip('/')}/api/public/otel", headers


class _Ids(IdGenerator):
    """Random ids, unless those of the next span are known in advance."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self._span: int | None = None
        self._trace: int | None = None

    def next(self, *, span: int, trace: int | None = None) -> None:
        self._span, self._trace = span, trace

    def generate_span_id(self) -> int:
        span, self._span, self._trace = self._span, None, None
        return self._random.generate_span_id() if span is None else span

    def generate_trace_id(self) -> int:
        trace, self._trace = self._trace, None
        return self._random.generate_trace_id() if trace is None else trace

    def is_trace_id_random(self) -> bool:
        return True


class _Guarded(SpanExporter):
    """Whatever the exporter does, the processor's thread goes on."""

    def __init__(self, exporter: SpanExporter, say: Callable[[str], None]) -> None:
        self._exporter = exporter
        self._say = say

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            return self._exporter.export(spans)
        except Exception as error:  # noqa: BLE001 - said; the batch is lost
            self._say(f"{type(error).__name__}: {error}")
            return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _tame(say: Callable[[str], None]) -> None:
    """What OpenTelemetry logs becomes a line of ours, and not one of its own between them."""
    logger = logging.getLogger("opentelemetry")
    logger.propagate = False
    logger.handlers = [_Said(say)]


class _Said(logging.Handler):
    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        self._say(record.getMessage())
