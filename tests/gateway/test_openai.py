"""/v1 through OpenAI's own client, and where that client does not look."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest

from holdfast.domain.events import EventType
from holdfast.domain.runs import Reason, State
from holdfast.gateway.openai_chat import STATUS_OF
from holdfast.testing import build
from holdfast.testing.rig import Holder
from tests.gateway.support import Raw, Site, site

USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def client(here: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="any", max_retries=0, timeout=5) as made:
        yield made


async def answer(here: Site, *words: str) -> Holder:
    holder = await here.claim()
    for word in words:
        await holder.say(word)
    await here.complete(holder, "".join(words), {"input_tokens": 7, "output_tokens": 3, "requests": 1})
    return holder


async def test_a_completion_that_is_not_streamed(here: Site, client: openai.AsyncOpenAI) -> None:
    """The whole answer, its usage, and the run's name in the headers."""
    asked = client.chat.completions.with_raw_response.create(model="any", messages=USER)
    raw, holder = await asyncio.gather(asked, answer(here, "hello ", "you"))
    got = raw.parse()
    assert got.choices[0].message.content == "hello you"
    assert got.choices[0].finish_reason == "stop"
    assert (got.usage.prompt_tokens, got.usage.completion_tokens, got.usage.total_tokens) == (7, 3, 10)
    assert raw.headers["x-run-id"] == holder.key.run
    assert got.id == f"chatcmpl-{holder.key.run}"


async def test_an_answer_that_was_cut_by_its_limit_says_so(here: Site, client: openai.AsyncOpenAI) -> None:
    """finish_reason length, streamed or not: a client must not take half an answer for a whole one."""
    cut = (EventType.MODEL_RESPONDED, {"step": 1, "model": "m", "finish_reason": "length", "usage": {}})
    whole = asyncio.ensure_future(client.chat.completions.create(model="any", messages=USER))
    holder = await here.claim()
    await holder.append(build.text(0, "a"), cut)
    await here.complete(holder, "a")
    assert (await whole).choices[0].finish_reason == "length"
    stream = await client.chat.completions.create(model="any", messages=USER, stream=True)
    holder = await here.claim()
    await holder.append(build.text(0, "a"), cut)
    await here.complete(holder, "a")
    assert [c.choices[0].finish_reason async for c in stream if c.choices][-1] == "length"


async def test_a_completion_that_is_streamed(here: Site, client: openai.AsyncOpenAI) -> None:
    """Role first, then text and reasoning, a finish, the usage when asked, [DONE]."""
    stream = await client.chat.completions.create(
        model="any", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    first = await anext(stream)  # before the model has said anything
    assert first.choices[0].delta.role == "assistant"
    holder = await here.claim()
    await holder.append((EventType.REASONING_DELTA, {"part": 0, "text": "hm"}), build.text(1, "a"), build.text(1, "b"))
    await holder.append(build.tool_called("c1"), build.tool_finished("c1", 1), build.text(2, "c"))
    await here.complete(holder, "c", {"input_tokens": 7, "output_tokens": 3})
    chunks = [chunk async for chunk in stream]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(d.content or "" for d in deltas) == "abc"
    assert "".join(getattr(d, "reasoning_content", None) or "" for d in deltas) == "hm"
    assert all(d.tool_calls is None for d in deltas)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens == 10
    assert chunks[-1].choices == []


async def test_the_stream_ends_in_done_and_is_proxy_safe(here: Site) -> None:
    """The prompt alias, read raw."""
    async with here.http.stream("POST", "/v1/chat/completions", json={"prompt": "x", "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        await answer(here, "y")
        text = (await response.aread()).decode()
    assert text.endswith("data: [DONE]\n\n")
    assert text.count("[DONE]") == 1
    assert '"usage"' not in text


async def test_a_run_that_does_not_complete_ends_the_stream_with_its_reason(here: Site) -> None:
    """The error chunk, then [DONE]: a client sees an end and knows why."""
    async with here.http.stream("POST", "/v1/chat/completions", json={"prompt": "x", "stream": True}) as response:
        holder = await here.claim()
        await holder.say("half")
        await here.sessions.stop(holder.key, "test")
        await here.obey(holder)
        text = (await response.aread()).decode()
    *_, error, done, _ = text.split("\n\n")
    assert done == "data: [DONE]"
    assert json.loads(error.removeprefix("data: "))["error"] == {
        "message": "the run was stopped", "type": "run_cancelled", "code": "stopped",
    }  # fmt: skip


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.FINISHED])
async def test_each_reason_has_its_status(here: Site, reason: Reason) -> None:
    """PROTOCOL's table, row by row."""
    kinds = {State.CANCELLED: EventType.RUN_CANCELLED, State.FAILED: EventType.RUN_FAILED}
    cancelled = reason in {Reason.STOPPED, Reason.SUPERSEDED, Reason.CLIENT_DISCONNECT, Reason.SHUTDOWN}
    state = State.CANCELLED if cancelled else State.FAILED
    error = (
        None if cancelled else {"code": "c", "message": "it broke", "cause": None, "retryable": False, "remedy": "mend"}
    )

    async def end() -> None:
        holder = await here.claim()
        if cancelled:
            await here.store.request_stop(holder.key, reason, "test")
        drafts = [(kinds[state], {"reason": reason, "error": error})]
        await here.end(holder, drafts, state, reason, error=error)

    got, _ = await asyncio.gather(here.http.post("/v1/chat/completions", json={"prompt": "x"}), end())
    assert got.status_code == STATUS_OF[reason]
    said = got.json()["error"]
    assert said["code"] == reason
    assert said["type"] == ("run_cancelled" if cancelled else "run_failed")
    assert cancelled or said["message"] == "it broke; mend"
    assert "x-run-id" in got.headers


async def test_text_that_is_withdrawn_after_it_was_shown_ends_the_stream(here: Site) -> None:
    """This protocol cannot take text back, so it says that it cannot go on."""
    async with here.http.stream("POST", "/v1/chat/completions", json={"prompt": "x", "stream": True}) as response:
        holder = await here.claim()
        await holder.append(build.discarded(parts=[5]), build.text(0, "wrong"))
        await holder.append(build.discarded(parts=[0]), build.text(1, "right"))
        text = (await response.aread()).decode()
    assert "wrong" in text
    assert "right" not in text
    assert '"code":"attempt_discarded"' in text
    assert text.endswith("data: [DONE]\n\n")
    record = await here.until(holder.key, lambda r: r.stopping is not None)
    assert record.stopping is Reason.CLIENT_DISCONNECT  # nobody reads it any more


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("begun", [True, False])
async def test_a_client_that_leaves_stops_its_run(here: Site, stream: bool, begun: bool) -> None:
    """F42: streamed or not, before the first token or after it."""
    raw = await Raw.open(here.server.port)
    body = json.dumps({"prompt": "x", "stream": stream}).encode()
    await raw.get("/v1/chat/completions", method="POST", body=body)
    holder = await here.claim()
    if begun:
        await holder.say("a")
        if stream:
            await raw.until(b'"content":"a"')
    raw.leave()
    await here.obey(holder)
    assert (await here.store.get(holder.key)).reason is Reason.CLIENT_DISCONNECT


async def test_a_client_that_leaves_may_have_its_run_go_on(here: Site) -> None:
    """The policy is per request."""
    raw = await Raw.open(here.server.port)
    body = json.dumps({"prompt": "x", "on_disconnect": "continue"}).encode()
    await raw.get("/v1/chat/completions", method="POST", body=body)
    holder = await here.claim()
    raw.leave()
    while here.app.readers:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    assert (await here.store.get(holder.key)).stopping is None


async def test_a_session_keeps_the_history_and_takes_the_last_user_message(here: Site) -> None:
    """The server knows what was said; what the client repeats of it is not sent twice."""
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "old"},
        {"role": "assistant", "content": "older"},
        {"role": "user", "content": [{"type": "text", "text": "ne"}, {"type": "text", "text": "w"}]},
    ]
    headers = {"X-Session-Id": "s1"}
    asked = here.http.post("/v1/chat/completions", json={"messages": messages}, headers=headers)
    got, holder = await asyncio.gather(asked, answer(here, "ok"))
    spec = holder.claim.spec
    assert (spec.input, spec.instructions, spec.context) == ("new", "be brief", [])
    assert got.headers["x-session-id"] == holder.claim.session == "s1"


async def test_without_a_session_the_earlier_messages_reach_the_model(here: Site) -> None:
    """The request is its own session, whole: calls with their results, each where it belongs."""
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    lost = {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{"}}
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": [call, lost]},
        {"role": "tool", "tool_call_id": "c1", "content": "seen"},
        {"role": "tool", "tool_call_id": "stray", "content": "?"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
    ]
    fields = {"temperature": 0.5, "max_completion_tokens": 9, "max_tokens": 5, "stop": "x", "user": "u"}
    sent = {"messages": messages, "unknown": 1, **fields}
    _, holder = await asyncio.gather(here.http.post("/v1/chat/completions", json=sent), answer(here, "ok"))
    spec = holder.claim.spec
    assert (spec.input, spec.instructions) == ("three", "be brief")
    assert spec.settings == fields
    assert [(m.role, m.text, m.call, m.outcome) for m in spec.context] == [
        ("user", "one", "", ""),
        ("assistant", "", "", ""),
        ("tool", "", "c1", "success"),
        ("tool", "", "c2", "interrupted"),
        ("assistant", "two", "", ""),
    ]
    assert [c.args for c in spec.context[1].calls] == [{"a": 1}, "{"]
    assert spec.context[2].result == "seen"


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"prompt": "x", "n": 2}, "n=2"),
        ({"prompt": "x", "tools": [{"type": "function"}]}, "tools"),
        ({"prompt": "x", "tools": [{"type": "web_search"}]}, "type function"),
        ({"prompt": "x", "tools": [{"type": "function", "function": {"name": "a b"}}]}, "a name"),
        ({"prompt": "x", "tools": [{"type": "function", "function": {"name": "a"}}]}, "takes none"),
        ({"prompt": "x", "tool_choice": "required"}, "tool_choice"),
        ({"prompt": "x", "response_format": {"type": "yaml"}}, "response_format"),
        ({"prompt": "x", "response_format": {"type": "json_schema"}}, "response_format"),
        ({"messages": [*USER, {"role": "tool", "tool_call_id": "none", "content": "x"}]}, "answers no call"),
        ({"prompt": "x", "messages": USER}, "both"),
        ({"messages": []}, "user"),
        ({}, "user"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "user"),
        ({"messages": [*USER, {"role": "assistant", "content": "x"}]}, "last"),
        ({"messages": [{"role": "wizard", "content": "x"}, *USER]}, "wizard"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "image_url"),
        ({"messages": [{"role": "user", "content": ""}]}, "empty"),
        ({"messages": "hi"}, "messages"),
        ({"prompt": ""}, "empty"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_in_openai_s_shape(here: Site, body: dict, word: str) -> None:
    """An answer that quietly ignored it would be wrong."""
    got = await here.http.post("/v1/chat/completions", json=body)
    assert got.status_code == 422
    error = got.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request")
    assert word in error["message"]


async def test_a_model_names_an_agent_where_several_are_served(tmp_path: Path) -> None:
    """Absent means the first; one that is not there is OpenAI's 404."""
    async with site(tmp_path, agents=("first", "second")) as here:
        models = (await here.http.get("/v1/models")).json()
        assert [m["id"] for m in models["data"]] == ["first", "second"]
        got = await here.http.post("/v1/chat/completions", json={"prompt": "x", "model": "gpt-9"})
        assert (got.status_code, got.json()["error"]["code"]) == (404, "model_not_found")
        for model, agent in (("second", "second"), (None, "first")):
            body = {"prompt": "x", "model": model}
            got, holder = await asyncio.gather(here.http.post("/v1/chat/completions", json=body), answer(here, "ok"))
            assert holder.claim.spec.agent == agent == got.json()["model"]


async def test_errors_under_v1_have_openai_s_shape(here: Site) -> None:
    """OpenAI's client reads `error.message` and nothing else."""
    for method, path, status in (("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)):
        got = await here.http.request(method, path)
        assert got.status_code == status
        assert set(got.json()["error"]) == {"message", "type", "code", "param"}
    got = await here.http.post("/v1/chat/completions", json={"prompt": "x"}, headers={"X-Session-Id": "a b"})
    assert (got.status_code, got.json()["error"]["code"]) == (422, "invalid_request")


async def test_a_server_that_closes_answers_a_waiting_completion(here: Site) -> None:
    """The run goes on; the client is told so and not cut off."""
    asked = asyncio.ensure_future(here.http.post("/v1/chat/completions", json={"prompt": "x"}))
    holder = await here.claim()
    here.app.close_readers()
    got = await asked
    assert (got.status_code, got.json()["error"]["code"]) == (503, "not_ready")
    assert got.headers["x-run-id"] == holder.key.run
    assert (await here.store.get(holder.key)).stopping is None
