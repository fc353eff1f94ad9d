"""To import Holdfast is to run no network, and no tracing library that nobody asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

BODY = """
import sys
def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"):
        raise SystemExit(f"network at import: {event} {arguments}")
sys.addaudithook(refuse)
import holdfast.app.child, holdfast.app.served
if "holdfast.gateway" in sys.modules:
    raise SystemExit("a worker imported the gateway")
import holdfast.app.runtime
heavy = [name for name in ("opentelemetry.sdk", "opentelemetry.exporter", "langfuse") if name in sys.modules]
if heavy:
    raise SystemExit(f"imported: {heavy}")
import holdfast.cli, holdfast.telemetry.otel, holdfast.telemetry.spans
"""


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_import_asks_nobody():
    """Document 0: the tracing module fetched a page of a stranger's server when it was imported."""
    done = subprocess.run([sys.executable, "-c", BODY], capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("module", "needless"),
    [
        ("holdfast.app.serving", "pydantic_ai openai holdfast.rehearsal holdfast.agents holdfast.models jwt"),
        ("holdfast.app.child", "pydantic_ai openai holdfast.gateway jwt starlette"),
        ("holdfast.cli", "pydantic httpx2 asyncio holdfast.app holdfast.client rich"),
    ],
)
def test_a_process_imports_what_it_has_a_use_for(module: str, needless: str):
    """A second of imports is a second that a killed gateway is away, and `holdfast --help` is a key's answer."""
    body = f"import sys, {module}; sys.exit(' '.join(sorted(sys.modules.keys() & set({needless.split()!r}))) or 0)"
    done = subprocess.run([sys.executable, "-c", body], capture_output=True, text=True, timeout=50, check=False)
    assert done.stderr.strip() == ""
    assert done.returncode == 0
