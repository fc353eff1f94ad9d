"""Operations on one socket: ready, start, subscribe, unsubscribe, stop, steer, ping."""

import asyncio
import json
from contextlib import AsyncExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from holdfast.aio import wait_event
from holdfast.domain.events import EventType
from holdfast.domain.runs import State
from holdfast.testing import build
from tests.gateway.support import Site, site
from tests.ws.support import LIMIT_S, RawSocket, frame, socket

pytestmark = pytest.mark.timeout(60)


async def test_ready_comes_first_and_says_whether_runs_are_taken(here: Site) -> None:
    """Document 1: a client connected, was greeted and then met silence. It is told at once what it has here."""
    async with socket(here.url) as client:
        assert client.ready["takes_runs"] is True
        assert client.ready["why"] is None
        assert client.ready["agents"] == ["echo"]
        assert client.ready["limits"]["subscriptions"] == here.settings.ws_subscriptions


async def test_nothing_is_said_that_was_not_asked_for(here: Site) -> None:
    """Ready, then an answer for each frame, and no more."""
    async with socket(here.url) as client:
        for n in range(3):
            await client.send("ping", id=n)
        assert [await client.read() for _ in range(3)] == [{"op": "pong", "id": n} for n in range(3)]


async def test_a_run_is_started_and_followed_to_its_end_on_one_socket(here: Site) -> None:
    """The ack has the record, and the events are those of the log, each once, to the terminal one."""
    async with socket(here.url) as client:
        ack = await client.ask("start", input="hello", session="s1")
        assert (ack["op"], ack["of"], ack["session"], ack["replayed"]) == ("ack", "start", "s1", False)
        assert ack["record"]["input"] == "hello"
        holder = await here.claim()
        await holder.say("hi")
        await here.complete(holder, "hi")
        end = await client.end_of(ack["run"])
        assert end["output"] == "hi"
        log = (await here.http.get(f"/api/runs/{ack['run']}/events", headers={"Accept": "application/json"})).json()
        assert client.events(ack["run"]) == log["events"]
        assert (await client.ask("ping"))["op"] == "pong"


async def test_a_socket_steers_and_stops(here: Site) -> None:
    """What a client can do over HTTP it can do here, and sees what comes of it."""
    async with socket(here.url) as client:
        run = (await client.ask("start", input="hello"))["run"]
        holder = await here.claim()
        steered = await client.ask("steer", run=run, input="and more", idempotency_key="k")
        assert (steered["of"], steered["run"]) == ("steer", run)
        assert [item.input for item in await here.store.inbox(holder.key)] == ["and more"]
        stopped = await client.ask("stop", run=run)
        assert stopped["record"]["stopping"] == "stopped"
        await here.obey(holder)
        assert (await client.end_of(run))["reason"] == "stopped"
        assert (await client.ask("stop", run=run))["record"]["state"] == "cancelled"
        assert (await client.ask("steer", run=run, input="late"))["code"] == "already_ended"


async def test_errors_name_their_frame_and_what_to_do(here: Site) -> None:
    """Each has a code of the catalogue, a remedy, the id of its frame, and the operation it answers."""
    async with socket(here.url) as client:
        for fields, code in (
            ({"op": "stop", "run": "r_none"}, "unknown_run"),
            ({"op": "subscribe", "run": "r_none"}, "unknown_run"),
            ({"op": "subscribe", "run": "r_none", "after": "x"}, "invalid_offset"),
            ({"op": "start", "input": "x", "agent": "nobody"}, "unknown_agent"),
            ({"op": "start", "input": "x" * 300_000}, "invalid_request"),
            ({"op": "start", "input": "x", "session": "a\n"}, "invalid_request"),
            ({"op": "start", "input": "x", "on_disconnect": "cancel", "subscribe": False}, "invalid_request"),
            ({"op": "steer", "run": "r_none", "input": "x"}, "unknown_run"),
            ({"op": "stop", "run": "r\n"}, "invalid_request"),
            ({"op": "subscribe"}, "invalid_request"),
            ({"op": "start", "input": 5}, "invalid_request"),
            ({"op": "nope"}, "invalid_request"),
        ):
            got = await client.ask(**fields)
            assert (got["op"], got["code"]) == ("error", code), got
            assert got["remedy"]
            assert got["of"] == (fields["op"] if fields["op"] != "nope" else None)
        assert (await client.ask("ping"))["op"] == "pong"


async def test_a_start_is_idempotent_across_protocols(here: Site) -> None:
    """A client that did not see its ack asks again, here or over HTTP, and has one run."""
    async with socket(here.url) as client:
        first = await client.ask("start", input="hello", session="s", idempotency_key="k", subscribe=False)
        again = await client.ask("start", input="hello", session="s", idempotency_key="k", subscribe=False)
        assert (again["run"], again["replayed"]) == (first["run"], True)
        other = await client.ask("start", input="other", session="s", idempotency_key="k")
        assert other["code"] == "idempotency_conflict"
        posted = await here.http.post(
            "/api/runs", json={"input": "hello", "session": "s"}, headers={"Idempotency-Key": "k"}
        )
        assert posted.json()["id"] == first["run"]


async def test_two_runs_on_one_socket_are_told_apart(here: Site) -> None:
    """Their events come interleaved, each run's in order and whole."""
    async with socket(here.url) as client:
        one = (await client.ask("start", input="one"))["run"]
        first = await here.claim()
        two = (await client.ask("start", input="two"))["run"]
        second = await here.claim()
        for n in range(10):
            await first.say(f"a{n} ")
            await second.say(f"b{n} ")
        await here.complete(second, "b")
        await here.complete(first, "a")
        await client.end_of(one)
        await client.end_of(two)
        for run, letter in ((one, "a"), (two, "b")):
            events = client.events(run)
            assert [e["seq"] for e in events] == list(range(1, 14))
            said = "".join(e["text"] for e in events if e["type"] == "text.delta")
            assert said == "".join(f"{letter}{n} " for n in range(10))
        order = [e.get("run") for e in client.seen if e.get("type") == "text.delta"]
        assert sum(a != b for a, b in pairwise(order)) > 2


async def test_an_operation_that_waits_delays_no_other(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is slow with one thing is no reason for a client to wait with everything."""
    go = asyncio.Event()
    real = here.sessions.stop

    async def slow(*args: Any, **more: Any) -> Any:
        await wait_event(go, LIMIT_S)
        return await real(*args, **more)

    async with socket(here.url) as client, socket(here.url) as other:
        run = (await client.ask("start", input="hello"))["run"]
        monkeypatch.setattr(here.sessions, "stop", slow)
        await client.send("stop", run=run, id="slow")
        assert (await client.ask("ping"))["op"] == "pong"
        assert (await client.ask("subscribe", run=run))["op"] == "ack"
        assert (await other.ask("start", input="x"))["op"] == "ack"
        assert not [f for f in client.seen if f.get("id") == "slow"]
        go.set()
        assert (await client.until(lambda f: f.get("id") == "slow"))["op"] == "ack"


async def test_operations_past_the_limit_are_refused_and_say_so(tmp_path: Path) -> None:
    """P7: nobody makes the server hold any number of things under way; what is refused can be sent again."""
    async with site(tmp_path, ws_operations=2) as here, socket(here.url) as client:
        go = asyncio.Event()
        real = here.sessions.stop
        run = (await client.ask("start", input="hello"))["run"]

        async def slow(*args: Any, **more: Any) -> Any:
            await wait_event(go, LIMIT_S)
            return await real(*args, **more)

        here.sessions.stop = slow  # type: ignore[method-assign]
        for n in range(5):
            await client.send("stop", run=run, id=n)
        refused = [await client.until(lambda f: f["op"] == "error") for _ in range(3)]
        assert {(f["code"], f["retryable"], f["of"]) for f in refused} == {("overloaded", True, "stop")}
        assert [f["id"] for f in refused] == [2, 3, 4]
        assert (await client.ask("ping"))["op"] == "pong"
        go.set()
        await client.until(lambda f: f["op"] == "ack")
        await client.until(lambda f: f["op"] == "ack")
        assert (await client.ask("stop", run=run))["op"] == "ack"


async def test_an_operation_that_the_store_does_not_answer_ends_in_its_limit(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every ack comes, or an error does."""

    async def never(*args: Any, **more: Any) -> Any:
        await asyncio.sleep(60)

    async with socket(here.url) as client:
        run = (await client.ask("start", input="hello"))["run"]
        monkeypatch.setattr("holdfast.gateway.ws_follow.OPERATION_S", 0.2)
        monkeypatch.setattr(here.sessions, "stop", never)
        monkeypatch.setattr(here.sessions, "start", never)
        for got in (await client.ask("stop", run=run), await client.ask("start", input="x")):
            assert (got["op"], got["code"]) == ("error", "store_unavailable")
            assert "0 s" in got["detail"]


async def test_what_nobody_foresaw_is_told_and_logged_and_the_socket_goes_on(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P8: an exception in one operation is an error frame, a line in the log, and nothing more."""

    async def breaks(*args: Any, **more: Any) -> Any:
        raise ZeroDivisionError("secret")

    async with socket(here.url) as client:
        run = (await client.ask("start", input="hello"))["run"]
        monkeypatch.setattr(here.sessions, "stop", breaks)
        got = await client.ask("stop", run=run)
        assert (got["code"], got["of"], got["run"]) == ("internal", "stop", run)
        assert "secret" not in json.dumps(got)
        assert (await client.ask("ping"))["op"] == "pong"
    assert "ZeroDivisionError: secret" in here.lines.getvalue()
    here.lines.truncate(0)


async def test_a_reading_that_breaks_closes_the_socket_as_our_failure(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1011 and a line in the log: its client comes back, and does not wait for events that will not come."""

    def breaks(*args: Any) -> Any:
        raise ZeroDivisionError("secret")

    async with socket(here.url) as client:
        await client.ask("start", input="hello")
        holder = await here.claim()
        await client.until(lambda f: f.get("seq") == 2)
        monkeypatch.setattr("holdfast.gateway.ws_views.LogReading.page", breaks)
        await holder.say("hi")
        assert await client.closed() == (1011, "unexpected ZeroDivisionError")
    assert "ZeroDivisionError: secret" in here.lines.getvalue()
    here.lines.truncate(0)


async def test_more_runs_than_the_limit_are_not_followed_until_one_is_left(tmp_path: Path) -> None:
    """The run of a refused start is not made: refused means that nothing happened."""
    async with site(tmp_path, ws_subscriptions=2) as here, socket(here.url) as client:
        one = (await client.ask("start", input="1"))["run"]
        two = (await client.ask("start", input="2"))["run"]
        full = await client.ask("start", input="3")
        assert (full["code"], "ws_subscriptions" in full["detail"]) == ("overloaded", True)
        assert len((await here.http.get("/api/runs")).json()["runs"]) == 2
        assert (await client.ask("subscribe", run=two, after=1))["op"] == "ack"  # it takes the place of the first
        left = await client.ask("unsubscribe", run=one)
        assert left["was"] is True
        assert (await client.ask("unsubscribe", run=one))["was"] is False
        three = (await client.ask("start", input="3"))["run"]
        holder = await here.claim()
        await here.complete(holder)
        assert holder.key.run == one
        two_holder = await here.claim()
        await here.complete(two_holder)
        await client.end_of(two)
        assert len([f for f in client.seen if f.get("run") == one and f["op"] == "event"]) == 1
        assert (await client.ask("start", input="4"))["op"] == "ack"  # the end of two made room
        assert three


async def test_a_second_subscribe_begins_anew_at_its_offset(here: Site) -> None:
    """After its ack there is one stream of the run, from where it was asked for, and no other."""
    async with socket(here.url) as client:
        run = (await client.ask("start", input="hello"))["run"]
        holder = await here.claim()
        for n in range(20):
            await holder.say(f"t{n} ")
        await client.until(lambda f: f.get("seq") == 10)
        await client.ask("subscribe", run=run, after=5)
        client.seen.clear()
        await here.complete(holder)
        await client.end_of(run)
        assert [e["seq"] for e in client.events(run)] == list(range(6, 24))


async def test_the_subscribe_that_came_last_wins_whatever_is_opened_first(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations run side by side: a start's own reading may open after a subscribe that came later. Both are acked."""
    go = asyncio.Event()
    real = here.sessions.read

    async def first_is_slow(key: Any, after: int, *more: Any) -> Any:
        if not go.is_set() and after == 0:
            await wait_event(go, LIMIT_S)
        return await real(key, after, *more)

    monkeypatch.setattr(here.sessions, "read", first_is_slow)
    async with socket(here.url) as client:
        run = (await client.ask("start", input="hello"))["run"]
        holder = await here.claim()
        await holder.say("hi")
        assert (await client.ask("subscribe", run=run, after=2))["op"] == "ack"
        go.set()
        await here.complete(holder)
        await client.end_of(run)
        assert [e["seq"] for e in client.events(run)] == [3, 4]


async def test_an_unsubscribe_ends_what_is_still_opening(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The frame that was sent last is what counts, here too."""
    go = asyncio.Event()
    real = here.sessions.read

    async def slow(*args: Any) -> Any:
        await wait_event(go, LIMIT_S)
        return await real(*args)

    run = (await here.run())["id"]
    async with socket(here.url) as client:
        monkeypatch.setattr(here.sessions, "read", slow)
        await client.send("subscribe", run=run, id="late")
        assert (await client.ask("unsubscribe", run=run))["op"] == "ack"
        go.set()
        assert (await client.until(lambda f: f.get("id") == "late"))["op"] == "ack"
        assert (await client.ask("ping"))["op"] == "pong"
        assert client.events(run) == []


async def test_a_run_of_a_socket_that_leaves_is_cancelled_where_it_was_asked_for(here: Site) -> None:
    """on_disconnect cancel: the client is gone, and so is its run; a run without it goes on."""
    async with socket(here.url) as client:
        ends = await client.ask("start", input="ends", session="a", on_disconnect="cancel")
        stays = await client.ask("start", input="stays", session="b")
        refused = await client.ask("unsubscribe", run=ends["run"])
        assert refused["code"] == "invalid_request"
        assert (await client.ask("subscribe", run=ends["run"]))["op"] == "ack"
        holders = [await here.claim(), await here.claim()]
    mine = next(h for h in holders if h.key.run == ends["run"])
    await here.obey(mine)
    record = await here.store.get(mine.key)
    assert (record.state, record.reason) == ("cancelled", "client_disconnect")
    assert (await here.store.get(here.key(stays["run"]))).stopping is None


async def test_a_client_that_left_before_its_run_was_made_leaves_no_run_behind(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is stored after its client has gone: it is stopped, as if the client had gone a moment later."""
    go, asked = asyncio.Event(), asyncio.Event()
    real = here.sessions.start

    async def slow(*args: Any, **more: Any) -> Any:
        asked.set()
        await wait_event(go, LIMIT_S)
        return await real(*args, **more)

    monkeypatch.setattr(here.sessions, "start", slow)
    async with socket(here.url) as client:
        await client.send("start", input="x", session="s", on_disconnect="cancel")
        assert await wait_event(asked, LIMIT_S)
    async with asyncio.timeout(LIMIT_S):
        while here.app.readers:
            await asyncio.sleep(0.01)
    go.set()
    async with asyncio.timeout(LIMIT_S):
        while not (runs := (await here.http.get("/api/runs")).json()["runs"]) or runs[0]["state"] != "cancelled":
            await asyncio.sleep(0.02)
    assert runs[0]["reason"] == "client_disconnect"


async def test_many_starts_at_once_for_one_session_supersede_in_the_order_they_were_sent(here: Site) -> None:
    """Operations run side by side, and still the last prompt that was typed is the one that is answered."""
    async with socket(here.url) as client:
        for n in range(16):
            await client.send("start", input=f"p{n}", session="s", subscribe=False, id=n)
        acks = [await client.until(lambda f: f["op"] == "ack") for _ in range(16)]
        runs = {ack["id"]: ack["run"] for ack in acks}
        left = [r for r in (await here.http.get("/api/runs")).json()["runs"] if r["state"] == "queued"]
        assert [r["id"] for r in left] == [runs[15]]


async def test_five_sockets_see_the_same_run(here: Site) -> None:
    """A late viewer has the whole of it; each reads at its own offset."""
    run = await here.run()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(socket(here.url)) for _ in range(5)]
        holder = await here.claim()
        for n, client in enumerate(clients):
            await holder.say(f"t{n} ")
            await client.ask("subscribe", run=run["id"])
        await here.complete(holder, "x")
        for client in clients:
            await client.end_of(run["id"])
        seen = [client.events(run["id"]) for client in clients]
        assert all(events == seen[0] for events in seen)
        assert [e["seq"] for e in seen[0]] == list(range(1, 9))


async def test_a_log_that_is_deleted_under_its_reader_is_said(here: Site) -> None:
    """Never silence: the subscription ends with an error that names its run."""
    async with socket(here.url) as client:
        ack = await client.ask("start", input="hello", session="s")
        assert (await here.http.delete("/api/sessions/s")).status_code == 204
        got = await client.until(lambda f: f["op"] == "error" or f.get("type") == "run.cancelled")
        assert got.get("code", "gone") == "gone"
        again = await client.ask("subscribe", run=ack["run"])
        assert again["code"] in ("gone", "unknown_run")


async def test_twenty_sockets_at_once_each_see_their_own_agent(here: Site) -> None:
    """Document 1's users: each has its five events, in order, of its own run only."""

    async def user(n: int) -> list[str]:
        async with socket(here.url, "?view=agent") as client:
            run = (await client.ask("start", input=f"u{n}", session=f"u{n}"))["run"]
            end = await client.end_of(run)
            assert {f["run_id"] for f in client.seen if f["op"] == "event"} == {run}
            assert [f["seq"] for f in client.events(run)] == list(range(1, end["seq"] + 1))
            assert (end["thread_id"], end["output"]) == (f"u{n}", f"u{n}")
            return [f["type"] for f in client.events(run)]

    async def worker() -> None:
        for _ in range(20):
            holder = await here.claim()
            await holder.append((EventType.MODEL_REQUESTED, {"step": 1, "model": "m", "attempt": 1}))
            await holder.append(build.tool_called("c1"))
            await holder.append(build.tool_finished("c1", "r"))
            await here.complete(holder, holder.claim.spec.input)

    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as group:
        users = [group.create_task(user(n)) for n in range(20)]
        group.create_task(worker())
    for task in users:
        assert task.result() == [
            "agent_started",
            "agent_thinking",
            "tool_executing",
            "tool_completed",
            "agent_completed",
        ]


@pytest.mark.parametrize(("state", "last"), [(State.FAILED, "agent_failed"), (State.CANCELLED, "agent_cancelled")])
async def test_the_agent_view_of_a_run_that_does_not_complete_is_whole_too(here: Site, state: State, last: str) -> None:
    """Document 1's client never waits for a tool or an agent that has ended, however it ended."""
    async with socket(here.url, "?view=agent") as client:
        run = (await client.ask("start", input="x"))["run"]
        holder = await here.claim()
        await holder.append(build.tool_called("c1"), build.tool_called("c2"), build.tool_finished("c1", "r"))
        await holder.finish(state)
        end = await client.end_of(run)
        frames = client.events(run)
        assert [f["type"] for f in frames] == [
            "agent_started",
            *["tool_executing"] * 2,
            *["tool_completed"] * 2,
            last,
        ]
        assert (frames[4]["call"], frames[4]["outcome"], end["seq"]) == ("c2", "interrupted", 6)


async def test_nothing_is_left_after_many_sockets_came_and_went(here: Site) -> None:
    """P7: tasks, readers and connections return to where they were."""
    run = await here.run()
    await asyncio.sleep(0.05)
    before = len(asyncio.all_tasks())
    for _ in range(10):
        raws = [await RawSocket.open(here.server.port) for _ in range(5)]
        for raw in raws:
            await raw.json()
            await raw.send(frame(json.dumps({"op": "subscribe", "run": run["id"]})))
            while (await raw.json())["op"] != "event":
                pass
            raw.raw.leave()
    async with asyncio.timeout(LIMIT_S):
        while here.app.readers or len(here.server.connections) > 1 or len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)
