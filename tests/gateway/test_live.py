"""GET /api/events: a list that follows the runs, for as long as somebody looks at it."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.domain.errors import StoreUnavailable
from holdfast.domain.ids import SYNTHETIC_TENANT
from holdfast.domain.runs import Policy, Reason, State
from holdfast.gateway import feeds
from holdfast.stores.sqlite import SqliteStore
from holdfast.testing.build import new_run
from tests.gateway.support import JSON, NDJSON, SSE, Frame, Raw, Site, frames, site

pytestmark = pytest.mark.timeout(60)

PATH = "/api/events"


class List:
    """A list as a client keeps it: `runs` replaces it, `run` puts one in its place, `forgotten` takes one away."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self.frames: list[Frame] = []
        self.runs: dict[str, dict[str, Any]] = {}
        self._lines = lines
        self._block = ""

    async def until(self, fits: Callable[["List"], Any], limit_s: float = 5.0) -> None:
        """Read on until the list is as it should be."""
        async with asyncio.timeout(limit_s):
            while not fits(self):
                self.take(await anext(self._lines))

    def take(self, line: str) -> None:
        self._block += line + "\n"
        if line:
            return
        for frame in frames(self._block):
            self.frames.append(frame)
            if frame.event == "runs":
                self.runs = {run["id"]: run for run in frame.json["runs"]}
            elif frame.event == "run":
                before = self.runs.get(frame.json["id"])
                assert before is None or not before["ended_at"], "something was said of a run after its end"
                self.runs[frame.json["id"]] = frame.json
            elif frame.event == "forgotten":
                del self.runs[frame.json["id"]]
        self._block = ""

    def state(self, run: dict[str, Any]) -> str | None:
        """How the list shows a run."""
        return self.runs.get(run["id"], {}).get("state")

    def said(self, run: dict[str, Any]) -> list[str]:
        """What was said of a run, one word a frame."""
        found = [f.json for f in self.frames if f.event == "run" and f.json["id"] == run["id"]]
        return [f"stopping: {r['stopping']}" if r["stopping"] else r["state"] for r in found]


def ended(runs: "List", made: list[dict[str, Any]]) -> bool:
    """Whether the list shows each of these as completed."""
    return all(runs.state(run) == "completed" for run in made)


@asynccontextmanager
async def listed(here: Site, path: str = PATH) -> AsyncIterator[List]:
    """A reader that has the list."""
    async with here.http.stream("GET", path, headers=SSE, timeout=20) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["cache-control"] == "no-store, no-transform"
        found = List(response.aiter_lines())
        await found.until(lambda x: x.frames)
        yield found


async def test_a_run_is_followed_from_its_creation_to_its_end(here: Site) -> None:
    """A list shows each state as it comes, and never has to ask."""
    async with listed(here) as runs:
        assert runs.frames[0].event == "runs"
        assert runs.runs == {}
        run = await here.run(session="s")
        await runs.until(lambda x: x.state(run) == "queued")
        holder = await here.claim()
        await runs.until(lambda x: x.state(run) == "running")
        await here.store.request_stop(holder.key, Reason.STOPPED, "user")
        await runs.until(lambda x: x.runs[run["id"]]["stopping"] == "stopped")
        await holder.finish(State.CANCELLED, Reason.STOPPED)
        await runs.until(lambda x: x.state(run) == "cancelled")
        shown = (await here.http.get("/api/runs")).json()["runs"][0]
        assert runs.runs[run["id"]] == shown
        assert all(frame.id is None for frame in runs.frames)


async def test_the_list_begins_with_what_is_there(here: Site) -> None:
    """What has not ended, however old, and the newest of what has; newest first, as GET /api/runs has it."""
    first = await here.run(session="a")
    running = await here.claim()
    ended = [await here.run(session="b") for _ in range(3)]
    async with listed(here) as runs:
        assert list(runs.runs) == [run["id"] for run in (*reversed(ended), first)]
        page = (await here.http.get("/api/runs")).json()["runs"]
        assert [run["id"] for run in page] == list(runs.runs)
        assert runs.state(first) == running.claim.spec.agent.replace("echo", "running")


async def test_what_is_queued_behind_moves_up(here: Site) -> None:
    """A place in a queue that is not true any more is worse than none."""
    runs_of = {"session": "s", "on_busy": Policy.ENQUEUE}
    first, second, third = [await here.run(**runs_of) for _ in range(3)]
    holder = await here.claim()
    async with listed(here) as runs:
        assert [runs.runs[run["id"]]["position"] for run in (second, third)] == [1, 2]
        await here.complete(holder)
        await runs.until(lambda x: x.state(first) == "completed" and x.runs[third["id"]]["position"] == 1)
        assert runs.runs[second["id"]]["position"] == 0


async def test_a_deleted_session_leaves_the_list(here: Site) -> None:
    """Else a list would go on to show what answers 404."""
    run, other = await here.run(session="s"), await here.run(session="t")
    for _ in range(2):
        await here.complete(await here.claim())
    async with listed(here) as runs:
        assert set(runs.runs) == {run["id"], other["id"]}
        assert (await here.http.delete("/api/sessions/s")).status_code == 204
        await runs.until(lambda x: set(x.runs) == {other["id"]})
        assert runs.frames[-1].json == {"id": run["id"], "session": "s"}


async def test_one_session_can_be_asked_for(here: Site) -> None:
    """A page that shows one conversation hears of no other."""
    await here.run(session="other")
    mine = await here.run(session="mine")
    async with listed(here, f"{PATH}?session=mine") as runs:
        assert set(runs.runs) == {mine["id"]}
        for _ in range(2):
            await here.complete(await here.claim())
        await here.run(session="other")
        await runs.until(lambda x: x.state(mine) == "completed")
        assert {frame.json["session"] for frame in runs.frames[1:]} == {"mine"}
    refused = await here.http.get(f"{PATH}?session=a%20b", headers=SSE)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")


async def test_every_form_says_the_same(here: Site) -> None:
    """Lines for programs, one object for who asks once, and HEAD does not wait for an end that never comes."""
    run = await here.run()
    async with here.http.stream("GET", PATH, headers=NDJSON) as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        lines = response.aiter_lines()
        first = msgspec.json.decode(await anext(lines))
        assert (first["type"], [each["id"] for each in first["runs"]]) == ("runs", [run["id"]])
        await here.complete(await here.claim())
        async with asyncio.timeout(5):
            while (line := msgspec.json.decode(await anext(lines)))["state"] != "completed":
                assert line["type"] == "run"
    once = await here.http.get(PATH, headers=JSON)
    assert once.json() == {"runs": (await here.http.get("/api/runs")).json()["runs"]}
    got = await here.http.head(PATH, headers=SSE)
    assert (got.status_code, got.content) == (200, b"")
    async with here.http.stream("GET", PATH, headers={"Accept": "*/*"}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")


async def test_a_change_through_another_gateway_is_seen_though_its_wake_is_lost(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wake is a hint: a list looks by itself each second."""

    class Deaf:
        async def wait(self, timeout_s: float) -> bool:
            await asyncio.sleep(timeout_s)
            return False

    @contextmanager
    def subscribe(topic: str) -> Iterator[Deaf]:
        yield Deaf()

    monkeypatch.setattr(here.store, "subscribe", subscribe)
    elsewhere = await SqliteStore.open(f"sqlite:///{here.store.path}")
    try:
        async with listed(here) as runs:
            for n in range(3):
                new = new_run(f"s{n}")
                await elsewhere.create(new)
                await runs.until(lambda x, new=new: new.key.run in x.runs, 3.0)
    finally:
        await elsewhere.close()


async def test_a_burst_loses_no_end_and_is_coalesced(here: Site) -> None:
    """Hundreds of runs in a moment: each is named with how it ended, and not with every step on the way."""
    async with listed(here) as runs:
        made = [await here.run(session=f"s{n}") for n in range(120)]
        for _ in made:
            await here.complete(await here.claim())
        await runs.until(lambda x: ended(x, made), 8.0)
        assert len(runs.frames) < 3 * len(made)


async def test_a_reader_that_reads_nothing_hinders_nobody_and_finds_the_newest(here: Site) -> None:
    """P10: its own socket holds it, and nothing is kept for it but its place."""
    big = {"metadata": {"x": "y" * 15_000}}
    slow = await Raw.open(here.server.port, limit=1024)
    slow.writer.transport.pause_reading()
    await slow.get(PATH, "Accept: text/event-stream")
    while not here.app.readers:
        await asyncio.sleep(0.01)
    for connection in here.server.connections:
        connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    made: list[dict[str, Any]] = []
    async with listed(here) as runs:
        for n in range(10):
            made += [await here.run(session=f"s{n}-{i}", **big) for i in range(5)]
            for _ in range(5):
                await here.complete(await here.claim())
            await runs.until(partial(ended, made=made))
        said = len(runs.frames)
    held = [c.transport.get_write_buffer_size() for c in here.server.connections]
    assert 0 < max(held) < 1_000_000, held
    last = await here.run(session="last")
    slow.writer.transport.resume_reading()
    async with asyncio.timeout(8):
        await slow.reader.readuntil(b"\r\n\r\n")
        behind = List(_lines(slow))
        await behind.until(lambda x: last["id"] in x.runs, 8)
    assert ended(behind, made)
    assert len(behind.frames) <= said + 1
    slow.leave()


async def _lines(raw: Raw) -> AsyncIterator[str]:
    """The lines of a body in chunks."""
    rest = b""
    while size := int(await raw.reader.readline(), 16):
        rest += await raw.reader.readexactly(size)
        await raw.reader.readexactly(2)
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line.decode()


async def test_a_reader_that_is_too_far_behind_is_given_the_list_anew(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was dropped meanwhile cannot be told one by one: `runs` says what there is."""
    monkeypatch.setattr(feeds, "KEPT_S", 0.0)
    monkeypatch.setattr(feeds, "ENDED_MAX", 5)
    with here.app._gate.feeds.join("local") as feed:
        await feed.opened()
        before = feed.read(feeds.BEFORE)
        for n in range(20):
            await here.run(session=f"s{n}")
            await here.complete(await here.claim())
            await feed.changed(before.place, 5)
        running = await here.run(session="new")
        async with asyncio.timeout(5):
            while running["id"] not in str(feed.read(before.place).frames[0]):
                await asyncio.sleep(0.05)
        kind, data = feed.read(before.place).frames[0]
        assert kind == "runs"
        assert len(msgspec.json.decode(data)["runs"]) <= 6
        assert len(feed._entries) <= 7


async def test_a_large_list_comes_in_frames_of_bounded_size(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client need not take a frame of any size: what does not fit into the first follows run by run."""
    monkeypatch.setattr(feeds, "SNAPSHOT_BYTES", 3000)
    made = [await here.run(session=f"s{n}") for n in range(10)]
    async with listed(here) as runs:
        await runs.until(lambda x: len(x.runs) == len(made))
        assert len(runs.frames[0].data) < 3100
        assert [frame.event for frame in runs.frames[1:]] == ["run"] * (len(made) - len(runs.frames[0].json["runs"]))


async def test_however_many_read_a_list_the_store_is_asked_once(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look each second for a tenant, not for a reader; and none once nobody reads."""
    asked = 0
    roster = here.store.roster

    async def counted(*arguments: Any) -> Any:
        nonlocal asked
        asked += 1
        return await roster(*arguments)

    monkeypatch.setattr(here.store, "roster", counted)
    monkeypatch.setattr(feeds, "_LINGER_S", 0.1)
    readers = [await Raw.open(here.server.port) for _ in range(20)]
    for raw in readers:
        await raw.get(PATH, "Accept: text/event-stream")
        await raw.until(b"event: runs")
    asked = 0
    await asyncio.sleep(2.5)
    assert 1 <= asked <= 4
    for raw in readers:
        raw.leave()
    async with asyncio.timeout(5):
        while len(here.app._gate.feeds):
            await asyncio.sleep(0.02)


async def test_nothing_is_left_after_many_lists_were_read(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """P7: tasks, readers and feeds return to where they were."""
    monkeypatch.setattr(feeds, "_LINGER_S", 0.1)
    await here.run()
    await asyncio.sleep(0.05)
    before = len(asyncio.all_tasks())
    for _ in range(10):
        raws = [await Raw.open(here.server.port) for _ in range(5)]
        for raw in raws:
            await raw.get(PATH, "Accept: text/event-stream")
            await raw.until(b"event: runs")
            raw.leave()
    async with asyncio.timeout(5):
        while here.app.readers or here.app._gate.owner or len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)
    assert not len(here.app._gate.feeds)


async def test_stop_closes_lists_at_once(tmp_path: Path) -> None:
    """A deploy costs a list a reconnect, and it holds up no shutdown."""
    async with site(tmp_path) as here, listed(here) as runs:
        began = asyncio.get_running_loop().time()
        stopping = asyncio.ensure_future(here.server.stop(3.0))
        with pytest.raises(StopAsyncIteration):
            await runs.until(lambda _: False)
        assert asyncio.get_running_loop().time() - began < 1.0
        await stopping


async def test_a_silent_list_is_kept_alive(tmp_path: Path) -> None:
    """Proxies and clients take silence for death."""
    async with site(tmp_path, keepalive_s=0.1) as here:
        raw = await Raw.open(here.server.port)
        await raw.get(PATH, "Accept: text/event-stream")
        await raw.until(b": keepalive\n\n")
        raw.leave()


class Outage:
    """A store that cannot be asked how runs stand, while `on`."""

    def __init__(self, here: Site, patch: pytest.MonkeyPatch) -> None:
        self.on = False
        self.asked = 0
        self._roster = here.store.roster
        patch.setattr(here.store, "roster", self._ask)

    async def _ask(self, *arguments: Any) -> Any:
        self.asked += 1
        if self.on:
            raise StoreUnavailable("no disk")
        return await self._roster(*arguments)

    async def failed(self, times: int) -> None:
        """Wait until it was asked in vain."""
        until = self.asked + times
        async with asyncio.timeout(10):
            while self.asked < until:
                await asyncio.sleep(0.02)


async def test_a_brief_outage_of_the_store_is_not_said(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list goes on where it was; what changed meanwhile is in it."""
    outage = Outage(here, monkeypatch)
    run = await here.run()
    async with listed(here) as runs:
        outage.on = True
        await outage.failed(2)
        await here.complete(await here.claim())
        refused = await here.http.get(PATH, headers=SSE)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        outage.on = False
        await runs.until(lambda x: x.state(run) == "completed")
        assert [frame.event for frame in runs.frames] == ["runs", "run"]


async def test_a_long_outage_of_the_store_ends_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A list that cannot know whether it is true does not go on as if it were."""
    async with site(tmp_path, store_outage_s=0.5) as here:
        outage = Outage(here, monkeypatch)
        async with listed(here) as runs:
            outage.on = True
            with pytest.raises(StopAsyncIteration):
                await runs.until(lambda _: False)
            assert (runs.frames[-1].event, runs.frames[-1].json["detail"]) == ("unavailable", "no disk")
        outage.on = False
        async with asyncio.timeout(5):
            while (await here.http.head(PATH, headers=SSE)).status_code != 200:
                await asyncio.sleep(0.1)


async def test_runs_of_the_server_itself_are_in_no_list(here: Site) -> None:
    """What proves that runs are taken is nobody's run."""
    async with listed(here) as runs:
        await here.store.create(new_run("p", tenant=SYNTHETIC_TENANT))
        mine = await here.run()
        await runs.until(lambda x: x.runs)
        assert set(runs.runs) == {mine["id"]}
