"""A model's server may send anything: the run ends with the model's error, soon, and the worker keeps its memory."""

import asyncio
import contextlib
import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from holdfast.app.runtime import Runtime
from holdfast.client.stream import BROKEN, Backoff, Place, Reading
from holdfast.config import Settings
from holdfast.models import transport
from holdfast.telemetry import Log

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

FULL = bool(os.environ.get("HOLDFAST_FULL"))
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3)
)
names = st.sampled_from(["id", "choices", "delta", "content", "role", "tool_calls", "index", "finish_reason", "usage"])
pieces = st.recursive(
    values, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4), max_leaves=12
)
GOOD = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
deltas = st.dictionaries(names, pieces, max_size=3)
chunks = st.builds(
    lambda delta, end: GOOD | {"choices": [{"index": 0, "delta": delta, "finish_reason": end}]},
    deltas,
    st.sampled_from([None, "stop", "tool_calls"]) | values,
)
frames = st.one_of(
    chunks.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n"),
    pieces.map(lambda value: b"data: " + json.dumps(value).encode() + b"\n\n"),
    st.binary(max_size=60),
    st.just(b"data: " + b"[" * 20_000 + b"\n\n"),
    st.sampled_from([b"data: [DONE]\n\n", b": comment\n\n", b"event: error\n", b"data:\n\n", b"\xff\xfe\n\n"]),
)
bodies = st.lists(frames, max_size=5).map(b"".join)
ENDS = {"completed": {"finished"}, "failed": {"model_error", "model_stalled", "tool_error", "budget"}}
EMPTY = "unexpected_model_behavior"  # well formed, and nothing in it, twice: the agent's library has given up


class Upstream:
    """A server that answers each completion with the same bytes, and then closes."""

    def __init__(self) -> None:
        self.body = b""
        self.endless = b""
        self.sent = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + self.body)
            await writer.drain()  # bounded: whoever is asked for too much closes
            while self.endless:
                writer.write(self.endless)
                self.sent += len(self.endless)
                await writer.drain()  # bounded: as above
        writer.close()


@asynccontextmanager
async def asked(directory: Path) -> AsyncIterator[tuple[Upstream, httpx2.AsyncClient, io.StringIO]]:
    """A server in this process, whose default agent asks that upstream."""
    upstream, lines = Upstream(), io.StringIO()
    server = await asyncio.start_server(upstream.serve, "127.0.0.1", 0)
    made = Settings(
        port=0,
        in_process=True,
        store=f"sqlite:///{directory}/h.db",
        model="m",
        model_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1",
        model_retries=0,
        model_restarts=0,
        model_first_content_s=20,
        breaker_failures=1_000_000,
        synthetic_run_s=0,
    )
    try:
        async with Runtime(made, log=Log(stream=lines)) as runtime, httpx2.AsyncClient(base_url=runtime.url) as client:
            yield upstream, client, lines
    finally:
        server.close()


async def end_of(client: httpx2.AsyncClient) -> dict[str, Any]:
    """A run's record, once it has ended."""
    made = (await client.post("/api/runs", json={"input": "x"})).json()
    stopped = await client.get(f"/api/runs/{made['id']}/events", headers={"Accept": "text/event-stream"}, timeout=30)
    assert stopped.status_code == 200
    record = (await client.get(f"/api/runs/{made['id']}")).json()
    assert record["state"] in ENDS, record
    return record


@pytest.mark.filterwarnings("ignore:Failed to extract usage")  # of `usage: {}`: a warning where it is not made an error
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(
    max_examples=300 if FULL else 6,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # each try is a server: the first that fails is shown
)
@given(st.lists(bodies, min_size=5, max_size=5))
@example([b"data: null\n\n", b"data: " + b"[" * 20_000 + b"\n\n", b"data: 7\n\n", b"", b"\xff"])
@example([b"data: " + json.dumps(GOOD | {"choices": found}).encode() + b"\n\n" for found in (None, 7, [7], [{}], {})])
def test_any_answer_of_a_model_ends_the_run_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, tries: list[bytes]
) -> None:
    """P1, P8: completed where it is an answer, failed with a reason where not; nothing that nobody foresaw."""

    async def play() -> None:
        async with asked(tmp_path_factory.mktemp("upstream")) as (upstream, client, lines):
            for upstream.body in tries:
                record = await end_of(client)
                known = record["reason"] in ENDS[record["state"]]
                empty = (record.get("error") or {}).get("code") == EMPTY
                assert known or empty, f"{record['error']} {upstream.body[:500]!r}"
            said = lines.getvalue()
            assert not [
                word for word in ("executor_failed", "loop_failed", "http_error", "task_failed") if word in said
            ]

    asyncio.run(play())


async def test_an_answer_without_an_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that never ends is given up at 16 MiB, long before the limits of time; here at one, to be quick."""
    monkeypatch.setattr(transport, "PIECE_BYTES_MAX", 1_048_576)
    async with asked(tmp_path) as (upstream, client, _):
        upstream.body, upstream.endless = b"data: ", b"x" * 65_536
        before = psutil.Process().memory_info().rss
        record = await end_of(client)
        assert (record["state"], record["reason"]) == ("failed", "model_error"), record
        assert "larger than 1048576 bytes" in json.dumps(record["error"])
        assert upstream.sent < 32 * 1_048_576, "it was closed, and not read to its end"
        assert psutil.Process().memory_info().rss - before < 128 * 1_048_576


@settings(max_examples=5000 if FULL else 300)
@given(
    st.lists(
        st.builds(
            httpx2.ServerSentEvent,
            event=st.sampled_from(["text.delta", "resync", "gone", "unavailable", ""]) | st.text(max_size=8),
            data=st.text(max_size=40)
            | st.dictionaries(st.sampled_from(["seq", "type", "run", "code", "detail"]), values).map(json.dumps)
            | values.map(json.dumps),
            id=st.text("0123456789-x", max_size=8),
            retry=st.none(),
        ),
        max_size=4,
    )
)
def test_any_frame_is_an_event_or_an_interruption_for_our_client(frames: list[httpx2.ServerSentEvent]) -> None:
    """What answers may be no server of ours: the reader hands out events in order, or says that it was interrupted."""
    reading = Reading("http://x", "/", Place(0), Backoff(), 30, None)
    seen = 0
    with contextlib.suppress(*BROKEN):
        for frame in frames:
            event = reading.take(frame)
            if event is not None and event["type"] == "resync":
                seen = 0
            elif event is not None:
                assert event["seq"] == seen + 1
                seen += 1
