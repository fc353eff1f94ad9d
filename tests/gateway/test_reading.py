"""Reading a log: from any offset, in any form, the same bytes, to the true end."""

import asyncio
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from holdfast.domain.ids import RunKey
from holdfast.domain.runs import Policy, Reason, State
from holdfast.ports.store import Page, Status
from holdfast.testing import build
from holdfast.testing.rig import Holder
from tests.gateway.support import JSON, NDJSON, SSE, TERMINAL, Raw, Site, frames, site


async def finished(here: Site, words: int = 5) -> tuple[dict, Holder]:
    run = await here.run()
    holder = await here.claim()
    for n in range(words):
        await holder.say(f"w{n} ")
    await here.complete(holder, "done")
    return run, holder


async def test_the_three_forms_carry_the_same_bytes(here: Site) -> None:
    """A client may change its form between two requests and finds what it had."""
    run, _ = await finished(here)
    path = f"/api/runs/{run['id']}/events"
    sse = [f.data for f in frames((await here.http.get(path, headers=SSE)).text)]
    ndjson = (await here.http.get(path, headers=NDJSON)).text.splitlines()
    whole = (await here.http.get(path, headers=JSON)).text
    assert sse == ndjson
    assert whole.startswith('{"events":[' + ",".join(sse) + "],")
    stored = (await here.store.read(here.key(run), 0)).events
    assert [s.encode() for s in sse] == stored


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/json;q=0.5, text/event-stream", "text/event-stream"),
        ("text/event-stream;q=0.1, application/json;q=0.9", "application/json"),
        ("text/event-stream;q=0, */*", "application/x-ndjson"),
        ("text/event-stream;q=0.1, application/json;q=0.8, */*;q=0.5", "application/json"),
        ("*/*;q=0.9, application/json;q=0.5, application/x-ndjson;q=0.5", "text/event-stream"),
        ("text/*;q=0.2, application/*;q=0.7", "application/x-ndjson"),
        ("*/*, application/json", "application/json"),
        ("text/html", "text/event-stream"),
    ],
)
async def test_the_form_is_the_one_that_accept_weighs_most(here: Site, accept: str, form: str) -> None:
    """What a client says that it does not want it is not given because a wildcard would take it."""
    run, _ = await finished(here)
    got = await here.http.get(f"/api/runs/{run['id']}/events", headers={"Accept": accept})
    assert got.headers["content-type"].partition(";")[0] == form


async def test_every_offset_gives_exactly_the_missing_suffix(here: Site) -> None:
    """P3: no gap, no duplicate, whatever the offset, and 204 where nothing is missing."""
    run, _ = await finished(here)
    path = f"/api/runs/{run['id']}/events"
    everything = frames((await here.http.get(path, headers=SSE)).text)
    assert [f.json["seq"] for f in everything] == list(range(1, len(everything) + 1))
    for n in range(len(everything)):
        by_seq = frames((await here.http.get(f"{path}?after={n}", headers=SSE)).text)
        assert by_seq == everything[n:]
        if n:
            last = {**SSE, "Last-Event-ID": everything[n - 1].id}
            assert frames((await here.http.get(f"{path}?after=0", headers=last)).text) == everything[n:]
            by_id = await here.http.get(f"{path}?after={everything[n - 1].id}", headers=NDJSON)
            assert by_id.text.splitlines() == [f.data for f in everything[n:]]
    for headers in ({**SSE, "Last-Event-ID": everything[-1].id}, SSE, NDJSON):
        got = await here.http.get(f"{path}?after={len(everything)}", headers=headers)
        assert (got.status_code, got.content) == (204, b"")
    got = (await here.http.get(f"{path}?after={len(everything)}", headers=JSON)).json()
    assert got == {"events": [], "head": len(everything), "state": "completed"}


async def test_an_event_has_its_id_its_type_and_its_json(here: Site) -> None:
    """EventSource resumes by `id` and dispatches by `event`."""
    run, holder = await finished(here)
    got = await here.http.get(f"/api/runs/{run['id']}/events", headers={"Accept": "*/*"})
    assert got.headers["content-type"].startswith("text/event-stream")
    assert got.headers["x-run-id"] == run["id"]
    assert got.headers["cache-control"] == "no-store, no-transform"
    assert got.headers["x-accel-buffering"] == "no"
    assert got.text.startswith("retry: 1000\n\n")
    for frame in frames(got.text):
        epoch = 0 if frame.event == "run.created" else holder.fence.epoch
        assert frame.id == f"{frame.json['seq']}-{epoch}"
        assert frame.event == frame.json["type"]


async def test_a_live_reader_gets_events_as_they_come_and_is_closed_after_the_last(here: Site) -> None:
    """The stream ends because the run ended, and says so."""
    run = await here.run()
    path = f"/api/runs/{run['id']}/events"
    async with here.http.stream("GET", path, headers=SSE) as response:
        text = response.aiter_text()
        holder = await here.claim()
        await holder.say("one")
        seen = ""
        while "one" not in seen:
            seen += await anext(text)
        await here.complete(holder, "one")
        async for more in text:
            seen += more
    assert [f.event for f in frames(seen)][-1] in TERMINAL


@pytest.mark.parametrize("last", ["999-1", "2-77", "garbage", "9" * 40])
async def test_a_last_event_id_that_the_log_never_had_is_said_then_read_from_the_start(here: Site, last: str) -> None:
    """A store that lost data, or a client that mixed up two runs: never silence, never a gap."""
    run, _ = await finished(here)
    path = f"/api/runs/{run['id']}/events"
    got = frames((await here.http.get(path, headers={**SSE, "Last-Event-ID": last})).text)
    assert got[0].event == "resync"
    assert got[0].id is None
    everything = frames((await here.http.get(path, headers=SSE)).text)
    epoch = int(everything[-1].id.split("-")[1])
    assert got[0].json == {"run": run["id"], "asked": last, "head": len(everything), "epoch": epoch}
    assert got[1:] == everything
    lines = (await here.http.get(path, headers={**NDJSON, "Last-Event-ID": last})).text.splitlines()
    assert msgspec.json.decode(lines[0])["type"] == "resync"
    whole = (await here.http.get(path, headers={**JSON, "Last-Event-ID": last})).json()
    assert whole["resync"]["asked"] == last
    assert len(whole["events"]) == len(everything)


@pytest.mark.parametrize("after", ["x", "", "-1", "1-", "1.5", "1-2-3", "٣"])
async def test_a_malformed_after_is_refused(here: Site, after: str) -> None:
    """422 and not a guess: the client would take a guess for its offset."""
    run, _ = await finished(here)
    got = await here.http.get(f"/api/runs/{run['id']}/events", params={"after": after})
    assert (got.status_code, got.json()["code"]) == (422, "invalid_offset")


async def test_json_pages_through_a_log(here: Site) -> None:
    """`limit` and the last seq walk a log without a stream."""
    run, _ = await finished(here, words=10)
    path, seqs = f"/api/runs/{run['id']}/events", []
    while True:
        after = seqs[-1] if seqs else 0
        page = (await here.http.get(f"{path}?limit=4&after={after}", headers=JSON)).json()
        if not page["events"]:
            break
        assert len(page["events"]) <= 4
        seqs += [e["seq"] for e in page["events"]]
    assert seqs == list(range(1, page["head"] + 1))


async def test_keepalives_come_while_a_run_is_silent(tmp_path: Path) -> None:
    """A proxy that sees no byte for a minute closes; a keepalive is not an event and moves no offset."""
    async with site(tmp_path, keepalive_s=0.5) as here:
        run = await here.run()
        path = f"/api/runs/{run['id']}/events"
        for accept, keepalive in (
            ("text/event-stream", b": keepalive\n\n"),
            ("application/x-ndjson", b"\n1\r\n\n\r\n"),
        ):
            raw = await Raw.open(here.server.port)
            await raw.get(path, f"Accept: {accept}")
            assert await raw.until(keepalive)
            raw.leave()


async def test_a_log_that_is_deleted_under_its_reader_says_gone(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence would look like a run that is still thinking."""
    run = await here.run()
    read = here.store.read

    async def deleted(key: RunKey, after: int, limit: int = 500, epoch: int | None = None) -> Page:
        page = await read(key, after, limit, epoch)
        return page if after == 0 else msgspec.structs.replace(page, status=Status.GONE)

    monkeypatch.setattr(here.store, "read", deleted)
    path = f"/api/runs/{run['id']}/events"
    last = frames((await here.http.get(path, headers=SSE)).text)[-1]
    assert (last.event, last.id, last.json["code"]) == ("gone", None, "gone")
    line = msgspec.json.decode((await here.http.get(path, headers=NDJSON)).text.splitlines()[-1])
    assert (line["type"], line["run"]) == ("gone", run["id"])


async def test_readers_of_a_deleted_session_are_not_left_waiting(here: Site) -> None:
    """Its runs end first, so that their readers see an end."""
    run = await here.run(session="s1")
    holder = await here.claim()
    async with here.http.stream("GET", f"/api/runs/{run['id']}/events", headers=SSE) as response:
        assert (await here.http.delete("/api/sessions/s1")).status_code == 204
        with suppress(AssertionError):
            await here.obey(holder)
        ends = frames((await response.aread()).decode())
    assert ends[-1].event in {"run.cancelled", "gone"}
    got = await here.http.get("/api/sessions/s1")
    assert (got.status_code, got.json()["code"]) == (404, "unknown_session")


async def test_a_reader_that_reads_nothing_costs_one_page_and_hinders_nobody(here: Site) -> None:
    """P10: its own socket holds it; the log is read for it no further than the server's buffer takes."""
    run = await here.run()
    holder = await here.claim()
    big = "x" * 20_000
    slow = await Raw.open(here.server.port, limit=1024)
    slow.writer.transport.pause_reading()
    await slow.get(f"/api/runs/{run['id']}/events", "Accept: text/event-stream")
    for _ in range(40):
        await holder.append(*[build.text(0, big) for _ in range(50)])  # 40 MB in all
    await here.complete(holder, "done")
    others = [here.http.get(f"/api/runs/{run['id']}/events", headers=SSE) for _ in range(2)]
    for response in await asyncio.gather(*others):
        assert frames(response.text)[-1].event == "run.completed"
    await asyncio.sleep(0.2)
    held = [c.transport.get_write_buffer_size() for c in here.server.connections]
    assert max(held) < 1_000_000, held
    slow.writer.transport.resume_reading()
    body = b""
    async with asyncio.timeout(8):
        while b"run.completed" not in body[-4000:]:
            body = body[-4000:] + await slow.reader.read(1 << 20)
    slow.leave()


async def test_a_reader_that_takes_nothing_for_too_long_is_cut_off(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: its socket and its buffer come back; it resumes where it was."""
    monkeypatch.setattr("holdfast.gateway.readers.STUCK_S", 0.3)
    run = await here.run()
    holder = await here.claim()
    slow = await Raw.open(here.server.port, limit=1024)
    slow.writer.transport.pause_reading()
    await slow.get(f"/api/runs/{run['id']}/events", "Accept: text/event-stream")
    while not here.app.readers:
        await asyncio.sleep(0.01)
    for _ in range(20):
        await holder.append(*[build.text(0, "x" * 20_000) for _ in range(50)])
    async with asyncio.timeout(5):
        while here.app.readers:
            await asyncio.sleep(0.02)
    assert (await here.store.get(holder.key)).state is State.RUNNING
    slow.leave()


async def test_a_reader_that_leaves_a_silent_run_is_noticed(here: Site) -> None:
    """Nothing is written to a silent run's reader, so only reading its socket can tell."""
    run = await here.run()
    raw = await Raw.open(here.server.port)
    await raw.get(f"/api/runs/{run['id']}/events", "Accept: text/event-stream")
    await raw.until(b"run.created")
    assert here.app.readers == 1
    raw.leave()
    async with asyncio.timeout(1):
        while here.app.readers:
            await asyncio.sleep(0.01)


async def test_head_of_a_stream_does_not_wait_for_its_end(here: Site) -> None:
    """HEAD of a live run answers at once, with the stream's headers and no body."""
    run = await here.run()
    got = await here.http.head(f"/api/runs/{run['id']}/events", headers=SSE)
    assert (got.status_code, got.content) == (200, b"")


async def test_a_queued_run_and_its_end_by_supersede_are_read_to_the_end(here: Site) -> None:
    """A run that never started has a log that ends, like any other."""
    first = await here.run(session="s")
    holder = await here.claim()
    second = await here.run(session="s", on_busy=Policy.ENQUEUE)
    third = await here.run(session="s")
    assert (await here.http.get(f"/api/runs/{second['id']}")).json()["reason"] == Reason.SUPERSEDED
    got = frames((await here.http.get(f"/api/runs/{second['id']}/events", headers=SSE)).text)
    assert [f.event for f in got] == ["run.created", "run.cancelled"]
    await here.obey(holder)
    assert (await here.http.get(f"/api/runs/{first['id']}")).json()["state"] == "cancelled"
    assert third["session"] == "s"
