"""Every setting, its unit and its default. Precedence: arguments > HOLDFAST_<UPPER> > holdfast.toml > default.

An unknown key is an error, so that a typing mistake cannot silently leave a default in force; what a Kubernetes
Service named holdfast injects (HOLDFAST_SERVICE_*, HOLDFAST_PORT=tcp://..., HOLDFAST_PORT_*) is passed over.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

CONFIG_FILE = "holdfast.toml"
_ENV_PREFIX = "HOLDFAST_"
# Read by the client commands and the model layer under their own names; not settings of the server.
_ENV_OTHERS = frozenset(
    {"HOLDFAST_URL", "HOLDFAST_API_KEY", "HOLDFAST_MODEL_KEY", "HOLDFAST_MODEL_FALLBACK_KEY", "HOLDFAST_FULL"}
)


class SettingsError(Exception):
    """A setting is unknown or out of its range; the text names each, where it came from, and the remedy."""


class Price(BaseModel):
    """What a model costs, for a million tokens each way; in whatever unit `budget_cost` is meant in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Settings(BaseModel):
    """The settings of one deployment. Names that end in `_s` are seconds, in `_bytes` bytes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = "127.0.0.1"
    port: int = Field(8484, ge=0, le=65535)
    store: str = "sqlite:///holdfast.db"
    profile: Literal["dev", "staging", "production"] = "dev"
    model: str = ""
    model_url: str = ""
    log_format: Literal["logfmt", "json"] = "logfmt"

    api_keys: SecretStr = SecretStr("")
    api_keys_file: str = ""
    jwt_secret: SecretStr = SecretStr("")
    jwks_url: str = ""
    jwt_audience: str = ""
    jwt_issuer: str = ""
    jwt_leeway_s: float = Field(30, ge=0, le=600)
    cors_origins: str = ""
    tenant_requests: int = Field(0, ge=0)
    tenant_rate_per_s: float = Field(0, ge=0)
    tenant_burst: int = Field(20, ge=1)

    run_deadline_s: float = Field(600, gt=0, le=604_800)
    queue_timeout_s: float = Field(30, gt=0)
    session_wait_s: float = Field(3600, gt=0)
    approval_deadline_s: float = Field(86_400, gt=0)
    queued_behind: int = Field(16, ge=1, le=1000)

    model_connect_s: float = Field(10, gt=0)
    model_first_content_s: float = Field(120, gt=0)
    model_idle_s: float = Field(60, gt=0)
    model_request_s: float = Field(300, gt=0)
    model_retries: int = Field(2, ge=0, le=10)
    model_restarts: int = Field(1, ge=0, le=10)
    model_fallback: str = ""
    model_fallback_url: str = ""
    model_fallback_nonstreaming: bool = False
    breaker_failures: int = Field(5, ge=1)
    breaker_open_s: float = Field(30, gt=0)

    budget_steps: int = Field(200, ge=0)
    budget_tool_calls: int = Field(0, ge=0)
    budget_tokens: int = Field(0, ge=0)
    budget_cost: float = Field(0, ge=0)
    prices: dict[str, Price] = {}

    tool_timeout_s: float = Field(120, gt=0)
    tool_queue_s: float = Field(10, gt=0)
    tool_parallel: int = Field(3, ge=1, le=256)
    tool_result_bytes: int = Field(262_144, ge=4096)
    tool_progress_bytes: int = Field(65_536, ge=1024)
    tool_repeats_warn: int = Field(3, ge=0)
    tool_repeats: int = Field(10, ge=0)
    mcp_start_s: float = Field(30, gt=0)
    mcp_message_bytes: int = Field(4_194_304, ge=65_536)
    tool_threads: int = Field(16, ge=1, le=256)
    tool_processes: int = Field(16, ge=1, le=256)
    tool_kill_s: float = Field(2, gt=0, le=60)
    tool_output_bytes: int = Field(65_536, ge=1024, le=8_388_608)
    quarantine: int = Field(4, ge=1)

    stalled_notice_s: float = Field(10, ge=0)
    stop_grace_s: float = Field(2, gt=0)
    lease_s: float = Field(10, gt=0)
    renew_s: float = Field(2.5, gt=0)
    listener_lease_s: float = Field(10, ge=3)
    disconnect_grace_s: float = Field(10, ge=3)
    loop_stall_s: float = Field(5, gt=0)
    claim_lag_s: float = Field(1, ge=0)
    drain_s: float = Field(25, ge=0)
    keepalive_s: float = Field(15, gt=0, le=30)
    store_outage_s: float = Field(60, gt=0)
    synthetic_run_s: float = Field(30, ge=0)

    concurrency: int = Field(64, ge=1, le=4096)
    runs_active: int = Field(1000, ge=1)
    runs_queued: int = Field(0, ge=0)
    runs_running: int = Field(0, ge=0)
    tenant_runs_active: int = Field(0, ge=0)
    tenant_runs_queued: int = Field(0, ge=0)
    tenant_runs_running: int = Field(0, ge=0)
    retry_after_s: float = Field(60, ge=1, le=3600)
    connections: int = Field(4096, ge=1)
    ws_subscriptions: int = Field(16, ge=1, le=1000)
    ws_operations: int = Field(16, ge=1, le=1000)
    attempts: int = Field(3, ge=1, le=10)

    flush_ms: int = Field(25, ge=1, le=75)
    flush_bytes: int = Field(1024, ge=1)
    buffer_bytes: int = Field(1_048_576, ge=65_536)
    log_bytes: int = Field(268_435_456, ge=1_048_576)
    input_bytes: int = Field(262_144, ge=1)
    body_bytes: int = Field(8_388_608, ge=1)

    retention_s: float = Field(86_400, gt=0)
    retention_bytes: int = Field(1_073_741_824, ge=1)
    worker: bool = True
    processes: int = Field(1, ge=1, le=64)
    health_host: str = "127.0.0.1"
    health_port: int = Field(0, ge=0, le=65535)
    in_process: bool = False
    spare: bool = True

    otel_endpoint: str = ""
    langfuse: bool = False
    tracer: str = ""
    trace_content: bool = False

    @field_validator("prices", mode="before")
    @classmethod
    def _from_json(cls, value: Any) -> Any:
        """The environment has one string for the whole table."""
        return json.loads(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _leases_outlive_renewals(self) -> Self:
        """A worker that renews more rarely than its leases last loses every run, and is called dead."""
        if self.renew_s > self.lease_s / 2:
            raise ValueError(
                f"lease_s is {self.lease_s:g} and renew_s {self.renew_s:g}: a lease must outlive two renewals; "
                f"set renew_s to {self.lease_s / 4:g}, or raise lease_s"
            )
        return self


# For the gateway alone: never shown, never given to a worker.
SECRETS = frozenset(name for name, field in Settings.model_fields.items() if field.annotation is SecretStr)


def load(
    arguments: Mapping[str, Any],
    *,
    directory: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge the four sources.

    Args:
        arguments: From the command line; None values are not given.
        directory: Where holdfast.toml is looked for; the current directory by default.
        environ: The environment; `os.environ` by default.

    Raises:
        SettingsError: A key is unknown, a value out of range, or holdfast.toml cannot be read.
    """
    merged: dict[str, Any] = {}
    source: dict[str, str] = {}
    env = os.environ if environ is None else environ
    layers = (
        (CONFIG_FILE, _from_file((directory or Path.cwd()) / CONFIG_FILE)),
        ("environment", _from_environment(env)),
        ("command line", {k: v for k, v in arguments.items() if v is not None}),
    )
    for name, values in layers:
        for key, value in values.items():
            merged[key] = value
            source[key] = name
    try:
        return Settings.model_validate(merged)
    except pydantic.ValidationError as error:
        raise SettingsError(_explain(error, source)) from error


def _from_file(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}; correct the file or move it away") from error


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in env.items():
        if name.startswith(_ENV_PREFIX) and name not in _ENV_OTHERS and not _injected(name, value):
            found[name.removeprefix(_ENV_PREFIX).lower()] = value
    return found


def _injected(name: str, value: str) -> bool:
    """Whether Kubernetes set this for a Service named holdfast."""
    if name.startswith(("HOLDFAST_SERVICE_", "HOLDFAST_PORT_")):
        return True
    return name == "HOLDFAST_PORT" and value.startswith("tcp://")


def _explain(error: pydantic.ValidationError, source: Mapping[str, str]) -> str:
    lines = []
    for item in error.errors():
        if not item["loc"]:  # of several settings together
            lines.append(item["msg"].removeprefix("Value error, "))
            continue
        key = str(item["loc"][0])
        origin = source.get(key, "?")
        shown = _written(key, origin)
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, Settings.model_fields, n=1)
            meant = f"write {_written(near[0], origin)} if you meant that, else remove it" if near else "remove it"
            lines.append(f"unknown setting {shown} ({origin}); {meant}, or see docs/settings.md for the names")
        else:
            value = "of the wrong kind" if key in SECRETS else repr(item["input"])
            lines.append(f"setting {shown} ({origin}) is {value}: {item['msg'].lower()}")
    return "; ".join(lines)


def _written(key: str, origin: str) -> str:
    """A setting's name as one writes it where it comes from."""
    return f"{_ENV_PREFIX}{key.upper()}" if origin == "environment" else key
