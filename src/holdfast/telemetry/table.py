"""Every metric: its name, what it counts, its labels. docs/observability.md lists exactly these (a test compares).

Labels take few values and never an id: what is about one run is in its log, its record and its trace.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

RUN_S: Final = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
SHORT_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
APPEND_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class Metric(NamedTuple):
    """One row."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


METRICS: Final = (
    Metric("holdfast_runs_requested_total", "counter", "Prompts that were accepted or refused by the store"),
    Metric("holdfast_runs_refused_total", "counter", "Prompts that a cap kept out, by its setting", ("cap",)),
    Metric("holdfast_runs_started_total", "counter", "Attempts that began"),
    Metric("holdfast_runs_ended_total", "counter", "Runs that ended", ("state", "reason")),
    Metric("holdfast_runs_abandoned_total", "counter", "Runs that left something running that could not be stopped"),
    Metric("holdfast_run_seconds", "histogram", "From the request to the terminal event", ("state",), RUN_S),
    Metric("holdfast_run_queued_seconds", "histogram", "From the request to the start", (), SHORT_S),
    Metric("holdfast_run_first_content_seconds", "histogram", "From the request to the first text", (), SHORT_S),
    Metric("holdfast_stop_seconds", "histogram", "From the word to stop to the terminal event", (), SHORT_S),
    Metric("holdfast_run_stalls_total", "counter", "run.stalled events"),
    Metric("holdfast_degraded_total", "counter", "degraded events, and optional parts that a start went without"),
    Metric("holdfast_model_requests_total", "counter", "Requests to models"),
    Metric("holdfast_model_responses_total", "counter", "Complete responses of models", ("finish_reason",)),
    Metric("holdfast_model_retries_total", "counter", "Repeated requests"),
    Metric("holdfast_model_discarded_total", "counter", "Attempts whose text was taken back"),
    Metric("holdfast_model_seconds", "histogram", "A whole response of a model", (), RUN_S),
    Metric("holdfast_model_first_content_seconds", "histogram", "To a model's first content", (), SHORT_S),
    Metric("holdfast_model_tokens_total", "counter", "Tokens by the models' own account", ("direction",)),
    Metric("holdfast_tool_calls_total", "counter", "Tool calls that ended", ("outcome",)),
    Metric("holdfast_tool_seconds", "histogram", "A tool call", (), SHORT_S),
    Metric("holdfast_log_append_seconds", "histogram", "From an append to the store's acknowledgement", (), APPEND_S),
    Metric("holdfast_faults_total", "counter", "Log lines that speak of trouble, by their first word", ("fault",)),
    Metric("holdfast_claims_paused_total", "counter", "Times that a worker took no runs because its loop was late"),
    Metric("holdfast_reaped_total", "counter", "Runs that this process requeued, stopped or ended", ("outcome",)),
    Metric("holdfast_worker_replacements_total", "counter", "Worker processes that were killed or died", ("why",)),
    Metric("holdfast_http_requests_total", "counter", "HTTP requests that ended", ("method", "route", "status")),
    Metric("holdfast_runs", "gauge", "Runs in the store, ended ones until their retention", ("state",)),
    Metric("holdfast_runs_overdue", "gauge", "Runs 10 s past their deadline, or past a word to stop"),
    Metric("holdfast_queue_ready", "gauge", "Runs that wait for a worker"),
    Metric("holdfast_queue_age_seconds", "gauge", "How long the first of them has waited"),
    Metric("holdfast_store_bytes", "gauge", "Size of the database"),
    Metric("holdfast_store_writes_waiting", "gauge", "Writes that wait in this process"),
    Metric("holdfast_readers", "gauge", "Streaming responses that are open"),
    Metric("holdfast_connections", "gauge", "Client connections"),
    Metric("holdfast_workers", "gauge", "Workers that reported lately"),
    Metric("holdfast_worker_fact", "gauge", "What they reported: the sum over workers, of *_ms the largest", ("fact",)),
    Metric("holdfast_breakers", "gauge", "Circuit breakers of upstreams", ("state",)),
    Metric("holdfast_process_fact", "gauge", "The answering process's own threads, tasks and descriptors", ("fact",)),
    Metric("holdfast_log_lines_dropped_total", "counter", "Log lines that nobody took", ("process",)),
    Metric("holdfast_telemetry_dropped_total", "counter", "Records that a sink never saw", ("process", "sink")),
    Metric("holdfast_telemetry_failures_total", "counter", "Records at which a sink failed", ("process", "sink")),
    Metric("holdfast_started", "gauge", "0 while the start has failed and is tried again (profile dev)"),
    Metric("holdfast_ready", "gauge", "Whether /readyz is 200"),
    Metric("holdfast_ready_part", "gauge", "Whether a part of /readyz is well", ("part",)),
    Metric("holdfast_synthetic_run_age_seconds", "gauge", "How long ago the last synthetic run that went well began"),
    Metric("holdfast_synthetic_run_seconds", "gauge", "How long that one took"),
    Metric("holdfast_scrape_ok", "gauge", "Whether a part answered this request in time", ("part",)),
    Metric("holdfast_build_info", "gauge", "1", ("version", "build", "config")),
)
BY_NAME: Final = {metric.name: metric for metric in METRICS}
