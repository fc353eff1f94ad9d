"""The native API: what it answers, and how it refuses."""

import asyncio
import datetime as dt
import json
from pathlib import Path

import pytest

from holdfast.domain.errors import CATALOGUE, StoreUnavailable
from holdfast.domain.runs import Reason, State
from holdfast.testing import build
from tests.gateway.support import NDJSON, SSE, Raw, Site, frames, site


def refused(response, status: int, code: str) -> dict:
    """A problem of the catalogue, whole."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["code"] == code
    assert body["status"] == CATALOGUE[code].status == status
    assert body["retryable"] is CATALOGUE[code].retryable
    assert body["detail"]
    assert body["remedy"]
    return body


async def test_a_run_is_created_with_its_record_and_its_place(here: Site) -> None:
    """201, Location, and every field of PROTOCOL."""
    got = await here.http.post("/api/runs", json={"input": "hi", "metadata": {"a": [1]}})
    body = got.json()
    assert got.status_code == 201
    assert got.headers["location"] == f"/api/runs/{body['id']}"
    fields = "id session agent model state reason stopping seq epoch attempt worker policy usage timings error receipt"
    assert {*fields.split(), "rehearsal"} <= set(body)
    assert (body["state"], body["policy"], body["agent"]) == ("queued", "supersede", "echo")
    assert body["session"].startswith("s_")
    again = (await here.http.get(got.headers["location"])).json()
    assert {k: v for k, v in again.items() if k != "due_in_ms"} == {k: v for k, v in body.items() if k != "due_in_ms"}
    holder = await here.claim()
    await here.complete(holder, "bye", {"input_tokens": 3})
    done = (await here.http.get(got.headers["location"])).json()
    assert (done["state"], done["reason"], done["output"], done["usage"]) == (
        "completed",
        "finished",
        "bye",
        {"input_tokens": 3},
    )
    assert done["timings"]["total_ms"] >= done["timings"]["running_ms"]
    assert done["timings"].keys() == {"queued_ms", "ttft_ms", "running_ms", "total_ms"}


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ("{}", "input"),
        ('{"input": 1}', "input"),
        ('{"input": ""}', "input"),
        ('{"input": "x", "speed": 9}', "speed"),
        ('{"input": "x", "session": "a b"}', "session"),
        ('{"input": "x", "session": ""}', "session"),
        ('{"input": "x", "on_busy": "later"}', "later"),
        ('{"input": "x", "deadline_s": 0}', "deadline_s"),
        ('{"input": "x", "metadata": ' + '{"a":' * 990 + "1" + "}" * 990 + "}", ""),
        ("[]", "object"),
        ("", "JSON"),
        ("input=x", "JSON"),
        ('{"input": "\xff"}', "JSON"),
        ('{"input": "\\ud800"}', "JSON"),
    ],
)
async def test_a_wrong_body_is_refused_with_what_is_wrong(here: Site, body: str, word: str) -> None:
    """A client's author reads the answer and knows the field."""
    got = await here.http.post("/api/runs", content=body.encode("latin-1"))
    assert word in refused(got, 422, "invalid_request")["detail"]


async def test_null_is_as_good_as_absent(here: Site) -> None:
    """Clients write every field of a form, and null where nothing was chosen."""
    names = ("session", "agent", "on_busy", "on_disconnect", "deadline_s", "metadata")
    got = await here.http.post("/api/runs", json={"input": "hi", **dict.fromkeys(names)})
    assert got.status_code == 201, got.text
    assert (got.json()["policy"], got.json()["on_disconnect"]) == ("supersede", "continue")
    body = {"messages": [{"role": "user", "content": "x"}], "on_busy": None, "on_disconnect": None, "stream": True}
    async with here.http.stream("POST", "/v1/chat/completions", json=body) as chat:
        assert chat.status_code == 200
        record = (await here.http.get(f"/api/runs/{chat.headers['x-run-id']}")).json()
        assert (record["policy"], record["on_disconnect"]) == ("supersede", "cancel")


async def test_a_body_is_json_whatever_its_content_type_says(here: Site) -> None:
    """curl -d sends a form's Content-Type."""
    got = await here.http.post(
        "/api/runs", content=b'{"input": "x"}', headers={"Content-Type": "application/x-www-form-urlencoded"}
    )
    assert got.status_code == 201


async def test_an_input_over_its_limit_is_refused(here: Site) -> None:
    """Counted in bytes, as the store holds it."""
    got = await here.http.post("/api/runs", json={"input": "ä" * 131_073})
    assert "262146" in refused(got, 422, "invalid_request")["detail"]


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused_while_it_is_read(tmp_path: Path, chunked: bool) -> None:
    """The gateway holds no more of it than the limit, whether its length is declared or not."""
    async with site(tmp_path, body_bytes=10_000) as here:
        body = b'{"input": "' + b"x" * 15_000 + b'"}'

        async def pieces():
            for start in range(0, len(body), 1000):
                yield body[start : start + 1000]

        got = await here.http.post("/api/runs", content=pieces() if chunked else body)
        assert "10000" in refused(got, 413, "body_too_large")["detail"]
        endless = await Raw.open(here.server.port)
        await endless.get("/api/runs", "Content-Length: 99999999999", method="POST", body=b"")
        assert b"413" in await endless.until(b"\r\n")
        endless.leave()


async def test_a_declared_body_that_is_too_large_is_refused_before_it_is_asked_for(here: Site) -> None:
    """Expect: 100-continue saves the client its upload."""
    raw = await Raw.open(here.server.port)
    await raw.get("/api/runs", "Content-Length: 99999999999", "Expect: 100-continue", method="POST")
    assert b" 413 " in await raw.until(b"\r\n")
    raw.leave()


async def test_the_creating_request_can_be_the_stream(here: Site) -> None:
    """One request for a client that wants the answer and the offset to resume from."""
    for headers, parse in (
        (SSE, frames),
        (NDJSON, lambda text: [json.loads(line) for line in text.splitlines() if line]),
    ):
        async with here.http.stream("POST", "/api/runs", json={"input": "x"}, headers=headers) as response:
            assert response.status_code == 201
            run = response.headers["x-run-id"]
            assert response.headers["location"] == f"/api/runs/{run}"
            holder = await here.claim()
            await here.complete(holder, "y")
            got = parse((await response.aread()).decode())
        assert len(got) == 3
        assert str(got[0].event if headers is SSE else got[0]["type"]) == "run.created"


@pytest.mark.parametrize(
    "accept",
    [
        "application/json, text/event-stream;q=0.5",
        "text/event-stream;q=0.5, */*",
        "text/event-stream;q=0",
        "text/*",
        "application/json, text/event-stream",
    ],
)
async def test_a_client_that_likes_the_record_better_gets_it(here: Site, accept: str) -> None:
    """A stream is what a client may read; it is answered where it asks for it first of all."""
    got = await here.http.post("/api/runs", json={"input": "x"}, headers={"Accept": accept}, timeout=5)
    assert got.status_code == 201
    assert got.headers["content-type"] == "application/json"
    assert got.json()["state"] == "queued"


async def test_an_idempotency_key_repeats_the_answer_and_not_the_run(here: Site) -> None:
    """A client that got no answer sends it again."""
    key = {"Idempotency-Key": "k1"}
    first = await here.http.post("/api/runs", json={"input": "x", "session": "s"}, headers=key)
    again = await here.http.post("/api/runs", json={"input": "x", "session": "s"}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert again.json()["id"] == first.json()["id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = await here.http.post("/api/runs", json={"input": "y", "session": "s"}, headers=key)
    assert refused(other, 409, "idempotency_conflict")["run"] == first.json()["id"]
    long = await here.http.post("/api/runs", json={"input": "y"}, headers={"Idempotency-Key": "k" * 256})
    refused(long, 422, "invalid_request")


async def test_a_key_without_a_session_repeats_too(here: Site) -> None:
    """The session was made by the first request; the second one cannot know it."""
    key = {"Idempotency-Key": "k2"}
    first = await here.http.post("/api/runs", json={"input": "x"}, headers=key)
    again = await here.http.post("/api/runs", json={"input": "x"}, headers=key)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["session"] == first.json()["session"]


async def test_a_full_queue_is_not_told_to_enqueue(tmp_path: Path) -> None:
    """The client did just that: what helps is to wait, or to stop a run that waits."""
    async with site(tmp_path, queued_behind=1) as here:
        await here.run(session="s")
        await here.run(session="s", on_busy="enqueue")
        answer = await here.http.post("/api/runs", json={"input": "x", "session": "s", "on_busy": "enqueue"})
        problem = refused(answer, 409, "session_busy")
        assert "as many runs wait in session s as may" in problem["detail"]
        assert "on_busy" not in problem["remedy"]


async def test_a_busy_session_rejects_or_queues_or_is_steered(here: Site) -> None:
    """The policies as a client sees them."""
    first = await here.run(session="s")
    holder = await here.claim()
    busy = await here.http.post("/api/runs", json={"input": "x", "session": "s", "on_busy": "reject"})
    assert refused(busy, 409, "session_busy")["active"] == first["id"]
    queued = await here.run(session="s", on_busy="enqueue")
    assert (queued["state"], queued["position"]) == ("queued", 1)
    steered = await here.http.post("/api/runs", json={"input": "more", "session": "s", "on_busy": "steer"})
    assert (steered.status_code, steered.json()["id"]) == (202, first["id"])
    assert [item.input for item in await here.store.inbox(holder.key)] == ["more"]


async def test_a_run_is_stopped_once_and_the_stop_can_wait_for_the_end(here: Site) -> None:
    """202 each time; `wait_s` answers with the end."""
    run = await here.run()
    holder = await here.claim()
    path = f"/api/runs/{run['id']}/stop"
    got = await here.http.post(path)
    assert (got.status_code, got.json()["stopping"], got.json()["state"]) == (202, "stopped", "running")
    waiting, _ = await asyncio.gather(here.http.post(f"{path}?wait_s=99"), here.obey(holder))
    assert (waiting.json()["state"], waiting.json()["reason"]) == ("cancelled", "stopped")
    assert waiting.json()["stopping"] is None
    assert (await here.http.post(path)).json()["state"] == "cancelled"
    refused(await here.http.post(f"{path}?wait_s=x"), 422, "invalid_request")
    refused(await here.http.post(f"{path}?wait_s=-1"), 422, "invalid_request")
    refused(await here.http.post(f"{path}?wait_s=nan"), 422, "invalid_request")


async def test_a_stop_that_waits_in_vain_answers_with_what_is(here: Site) -> None:
    """The wait has a limit; the flag stays."""
    run = await here.run()
    await here.claim()
    got = await here.http.post(f"/api/runs/{run['id']}/stop?wait_s=0.2")
    assert (got.json()["state"], got.json()["stopping"]) == ("running", "stopped")


async def test_a_queued_input_can_be_edited_until_it_is_begun(here: Site) -> None:
    """PATCH while it waits, 409 after."""
    run = await here.run("first")
    path = f"/api/runs/{run['id']}"
    assert (await here.http.patch(path, json={"input": "second"})).json()["input"] == "second"
    await here.claim()
    refused(await here.http.patch(path, json={"input": "third"}), 409, "already_ended")
    refused(await here.http.patch("/api/runs/r_none", json={"input": "x"}), 404, "unknown_run")


async def test_steer_reaches_an_active_run_and_refuses_an_ended_one(here: Site) -> None:
    """The input is durable before the answer."""
    run = await here.run()
    holder = await here.claim()
    path = f"/api/runs/{run['id']}/steer"
    assert (await here.http.post(path, json={"input": "left"})).status_code == 202
    assert [i.input for i in await here.store.inbox(holder.key)] == ["left"]
    await holder.finish(State.FAILED, Reason.AGENT_ERROR, leave_inbox=True)
    refused(await here.http.post(path, json={"input": "right"}), 409, "already_ended")
    refused(await here.http.post("/api/runs/r_none/steer", json={"input": "x"}), 404, "unknown_run")


async def test_inspect_says_what_a_run_waits_on(here: Site) -> None:
    """No worker here holds it, and that is said."""
    run = await here.run()
    got = (await here.http.get(f"/api/runs/{run['id']}/inspect")).json()
    assert (got["state"], got["waiting_on"], got["phase"]) == ("queued", "a worker", "queued")
    assert got["workers"] == {"seen": 0, "free": 0}, "and nobody will come: that is the reason"
    assert 0 <= got["since_ms"] < 10_000
    assert [t["name"] for t in got["timers"]]


async def test_inspect_says_since_when_a_run_waits_for_a_decision(here: Site) -> None:
    """Nobody works on it, so nobody else could say for how long a person has been waited for."""
    run = await here.run()
    holder = await here.claim()
    await holder.park()
    got = (await here.http.get(f"/api/runs/{run['id']}/inspect")).json()
    assert (got["state"], got["waiting_on"]) == ("waiting", "a decision")
    parked = json.loads((await here.store.read(holder.key, holder.head - 1)).events[-1])
    assert parked["type"] == "run.waiting"
    ago_ms = (dt.datetime.now(dt.UTC) - dt.datetime.fromisoformat(parked["ts"])) / dt.timedelta(milliseconds=1)
    assert abs(got["since_ms"] - ago_ms) < 10_000


async def test_inspect_names_what_a_queued_run_is_behind_and_why_an_ended_one_ended(here: Site) -> None:
    """F81: for every state, not for running ones only; of the history its shape, and none of its words."""
    first = await here.run("secret one", session="s")
    holder = await here.claim()
    second = await here.run("two", session="s", on_busy="enqueue")
    got = (await here.http.get(f"/api/runs/{second['id']}/inspect")).json()
    assert (got["waiting_on"], got["behind"]) == ("the 1 before it in its session", first["id"])
    got = (await here.http.get(f"/api/runs/{first['id']}/inspect")).json()
    assert got["waiting_on"] == "its worker, which does not answer here"
    await holder.append(build.tool_called("c1", "look"), build.tool_finished("c1", "secret two", "look"))
    await holder.finish(State.FAILED, Reason.AGENT_ERROR)
    text = (await here.http.get(f"/api/runs/{first['id']}/inspect")).text
    got = json.loads(text)
    assert (got["waiting_on"], got["why"], got["phase"]) == ("nothing: it has ended", "agent_error", "ended")
    assert got["history"] == {
        "runs": 1,
        "kinds": {"neutral": 1},
        "states": {"failed": 1},
        "roles": {"user": 1, "assistant": 1, "tool": 1},
        "parts": {"text": 1, "call": 1, "result": 1},
        "repair": None,
    }
    assert "secret" not in text
    assert (await here.http.get("/api/runs/r_none/inspect")).status_code == 404


async def test_lists_are_newest_first_and_walk_by_their_last_id(here: Site) -> None:
    """`next` is null on the last page and never names an empty one."""
    runs = [(await here.run(f"n{n}", session=f"s{n}"))["id"] for n in range(5)]
    for path, name, ids in (
        ("/api/runs", "runs", runs[::-1]),
        ("/api/sessions", "sessions", [f"s{n}" for n in range(4, -1, -1)]),
    ):
        seen, after = [], ""
        while after is not None:
            page = (await here.http.get(f"{path}?limit=2&after={after}")).json()
            assert page[name]
            seen += [item["id"] for item in page[name]]
            after = page["next"]
        assert seen == ids
    assert [r["id"] for r in (await here.http.get("/api/runs?session=s3")).json()["runs"]] == [runs[3]]
    assert (await here.http.get("/api/runs?state=completed")).json() == {"runs": [], "next": None}
    for query in ("limit=0", "limit=x", "state=dead", "session=a%20b", "after=%00", "limit=-1"):
        refused(await here.http.get(f"/api/runs?{query}"), 422, "invalid_request")


async def test_a_list_that_cannot_go_on_says_so(here: Site) -> None:
    """The last session of a page is deleted before the next page: neither an end too early nor the first page again."""
    runs = [(await here.run(f"n{n}", session=f"s{n}"))["id"] for n in range(3)]
    page = (await here.http.get("/api/sessions?limit=1")).json()
    assert page["next"] == "s2"
    assert (await here.http.delete("/api/sessions/s2")).status_code == 204
    refused(await here.http.get("/api/sessions?limit=1&after=s2"), 404, "unknown_session")
    refused(await here.http.get("/api/sessions?after=none"), 404, "unknown_session")
    refused(await here.http.get("/api/runs?after=none"), 404, "unknown_run")
    assert (await here.http.get(f"/api/runs?after={runs[0]}")).json() == {"runs": [], "next": None}


async def test_a_session_shows_what_was_said_what_runs_and_what_waits(here: Site) -> None:
    """Enough for a page to draw itself after a reload."""
    await here.run("one", session="s")
    holder = await here.claim()
    await holder.say("uno")
    await here.complete(holder, "uno")
    active = await here.run("two", session="s", on_busy="enqueue")
    waits = await here.run("three", session="s", on_busy="enqueue")
    got = (await here.http.get("/api/sessions/s")).json()
    assert [(m["role"], m["text"], m["state"]) for m in got["messages"]] == [
        ("user", "one", "completed"),
        ("assistant", "uno", "completed"),
    ]
    assert got["active"]["id"] == active["id"]
    assert [(r["id"], r["input"]) for r in got["queue"]] == [(waits["id"], "three")]
    stopped = await here.http.post("/api/sessions/s/stop")
    assert (stopped.status_code, stopped.json()["run"]["id"]) == (202, active["id"])
    for method, path in (("GET", ""), ("POST", "/stop"), ("DELETE", "")):
        refused(await here.http.request(method, f"/api/sessions/none{path}"), 404, "unknown_session")
        refused(await here.http.request(method, f"/api/sessions/a%20b{path}"), 422, "invalid_request")


async def test_stop_of_a_session_reaches_the_prompt_that_has_just_superseded_another(here: Site) -> None:
    """Who presses Stop then means what they asked last, not what it ends anyway; what is enqueued behind goes on."""
    old = await here.run("one", session="s")
    holder = await here.claim()
    await holder.start()
    new = await here.run("two", session="s")
    behind = await here.run("three", session="s", on_busy="enqueue")
    for _ in range(2):  # and again: it is idempotent
        stopped = await here.http.post("/api/sessions/s/stop")
        assert stopped.status_code == 202
    records = [(await here.http.get(f"/api/runs/{run['id']}")).json() for run in (old, new, behind)]
    assert [(r["state"], r["reason"], r["stopping"]) for r in records] == [
        ("running", None, "superseded"),
        ("cancelled", "stopped", None),
        ("queued", None, None),
    ]


async def test_a_session_that_is_idle_is_stopped_without_complaint(here: Site) -> None:
    """Stop is idempotent for sessions too."""
    await here.run(session="s")
    await here.complete(await here.claim())
    got = await here.http.post("/api/sessions/s/stop")
    assert (got.status_code, got.json()) == (202, {"session": "s", "run": None})


async def test_workers_and_agents_are_listed(here: Site) -> None:
    """Who works, and what is served."""
    got = (await here.http.get("/api/workers")).json()
    assert got["workers"] == []
    assert [a["name"] for a in got["agents"]] == ["echo"]


async def test_what_is_not_there_is_a_problem(here: Site) -> None:
    """Every refusal has the same shape."""
    refused(await here.http.get("/api/runs/r_none"), 404, "unknown_run")
    refused(await here.http.get("/api/runs/r_none/events"), 404, "unknown_run")
    refused(await here.http.post("/api/runs/r_none/stop"), 404, "unknown_run")
    refused(await here.http.get("/api/runs/r%20x"), 422, "invalid_request")
    refused(await here.http.get("/nowhere"), 404, "not_found")
    refused(await here.http.get("/api/runs/"), 404, "not_found")
    got = await here.http.delete("/api/runs")
    refused(got, 405, "method_not_allowed")
    assert set(got.headers["allow"].split(", ")) == {"GET", "HEAD", "POST"}
    refused(await here.http.post("/api/runs", json={"input": "x", "agent": "nobody"}), 404, "unknown_agent")


async def test_without_an_agent_the_server_is_not_ready(here: Site) -> None:
    """P8: nothing is made up; the client may try again."""
    here.agents.clear()
    got = await here.http.post("/api/runs", json={"input": "x"})
    refused(got, 503, "not_ready")
    assert got.headers["retry-after"] == "1"


async def test_admission_is_refused_with_the_limit_named(tmp_path: Path) -> None:
    """503 and Retry-After, not a queue without an end."""
    async with site(tmp_path, runs_active=1) as here:
        await here.run()
        got = await here.http.post("/api/runs", json={"input": "x"})
        problem = refused(got, 503, "overloaded")
        assert "runs_active = 1 is reached" in problem["detail"]
        assert (problem["cap"], problem["limit"], problem["retry_after_s"]) == ("runs_active", 1, 1)
        assert got.headers["retry-after"] == "1"


async def test_a_cap_of_the_tenant_is_told_in_both_shapes(tmp_path: Path) -> None:
    """429: it is the tenant's own runs that are in the way, and the SDKs of OpenAI know when to come again."""
    async with site(tmp_path, tenant_runs_active=1) as here:
        first = await here.run()
        problem = refused(await here.http.post("/api/runs", json={"input": "x"}), 429, "rate_limited")
        assert (problem["cap"], problem["limit"]) == ("tenant_runs_active", 1)
        body = {"model": "echo", "messages": [{"role": "user", "content": "x"}]}
        got = await here.http.post("/v1/chat/completions", json=body)
        assert (got.status_code, got.json()["error"]["type"]) == (429, "rate_limit_error")
        assert int(got.headers["retry-after"]) >= 1
        assert (await here.http.post(f"/api/runs/{first['id']}/stop")).status_code == 202
        assert (await here.http.post("/api/runs", json={"input": "x"})).status_code == 201


async def test_a_store_that_does_not_answer_is_said(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outcome is unknown; the key makes the repeat safe."""

    async def fails(*args: object) -> None:
        raise StoreUnavailable("get: no answer within 5 s")

    monkeypatch.setattr(here.store, "get", fails)
    refused(await here.http.get("/api/runs/r_1"), 503, "store_unavailable")


async def test_what_nobody_foresaw_is_a_problem_and_a_log_line(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """500 without our insides; the log has the place."""

    async def fails(*args: object) -> None:
        raise ZeroDivisionError("secret")

    monkeypatch.setattr(here.store, "get", fails)
    got = await here.http.get("/api/runs/r_1")
    assert "secret" not in got.text
    refused(got, 500, "internal")
    logged = here.lines.getvalue()
    assert "http_error" in logged
    assert "secret" in logged
    here.lines.truncate(0)


@pytest.mark.parametrize("policy", ["cancel", "continue"])
async def test_a_creating_client_that_leaves_stops_its_run_only_if_it_asked_so(here: Site, policy: str) -> None:
    """F42: native requests go on by default; `cancel` frees the model at once."""
    raw = await Raw.open(here.server.port)
    body = json.dumps({"input": "x", "session": "s", "on_disconnect": policy}).encode()
    await raw.get("/api/runs", "Accept: text/event-stream", method="POST", body=body)
    await raw.until(b"run.created")
    holder = await here.claim()
    raw.leave()
    if policy == "cancel":
        await here.obey(holder)
        record = await here.store.get(holder.key)
        assert (record.state, record.reason) == (State.CANCELLED, Reason.CLIENT_DISCONNECT)
        return
    while here.app.readers:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert (await here.store.get(holder.key)).stopping is None


async def test_a_second_reader_that_leaves_stops_nothing(here: Site) -> None:
    """Only the creating request's client speaks for the run."""
    async with here.http.stream(
        "POST", "/api/runs", json={"input": "x", "on_disconnect": "cancel"}, headers=SSE
    ) as one:
        run = one.headers["x-run-id"]
        raw = await Raw.open(here.server.port)
        await raw.get(f"/api/runs/{run}/events", "Accept: text/event-stream")
        await raw.until(b"run.created")
        holder = await here.claim()
        raw.leave()
        while here.app.readers > 1:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert (await here.store.get(holder.key)).stopping is None
        await here.complete(holder)
        await one.aread()
