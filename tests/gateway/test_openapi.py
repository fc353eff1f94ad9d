"""/openapi.json tells the truth: whatever is sent, what comes back is in it."""

import asyncio
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.gateway.app import OPERATIONS
from tests.gateway.support import Site


async def work(here: Site) -> None:
    """Complete every run, so that nobody waits for one."""
    while True:
        with suppress(AssertionError):
            holder = await here.claim()
            await here.complete(holder, "ok")


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_nothing_is_answered_that_is_not_described(here: Site, tmp_path: Path) -> None:
    """schemathesis sends what the description allows, and what it forbids, and compares; tests/fuzz adds the random."""
    worker = asyncio.ensure_future(work(here))
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("schemathesis"),
        *("run", f"{here.url}/openapi.json", "--max-examples", "10", "--seed", "1", "--phases", "coverage"),
        *("--request-timeout", "5", "--no-color"),
        *("--exclude-path", "/api/events"),  # which has no end; tests/fuzz asks for it once
        # A conversation that fits its schema may still lack a user message; no schema says that well.
        *("--exclude-checks", "positive_data_acceptance"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    worker.cancel()
    assert process.returncode == 0, said.decode()[-8000:]


async def test_every_route_is_described_with_its_refusals(here: Site) -> None:
    """A generated client knows every status."""
    described = (await here.http.get("/openapi.json")).json()
    assert described["openapi"] == "3.1.0"
    for operation in OPERATIONS:
        responses = described["paths"][operation.path][operation.method.lower()]["responses"]
        assert {"403", "500", "503"} <= set(responses), operation.path
        assert ("413" in responses) == (operation.body is not None), operation.path
        assert ("404" in responses) >= ("{" in operation.path), operation.path
    start = described["paths"]["/api/runs"]["post"]["responses"]
    assert set(start["201"]["content"]) == {"application/json", "text/event-stream", "application/x-ndjson"}


async def test_reference_has_every_route_and_runs_nothing(here: Site) -> None:
    """People see what programs see, on a page that its own policy lets load nothing."""
    answered = await here.http.get("/docs")
    assert answered.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answered.headers["content-security-policy"]
    for row in OPERATIONS:
        assert f"<code>{row.method} {row.path}</code>" in answered.text
    assert "<script" not in answered.text
    for name in (await here.http.get("/openapi.json")).json()["components"]["schemas"]:
        assert f"id='{name}'" in answered.text
