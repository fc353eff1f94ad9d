"""/v1/responses through OpenAI's own client: every status, every way to read, and numbers that follow from the log."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from holdfast.domain.events import EventType
from holdfast.domain.runs import Reason, State
from holdfast.testing import build
from holdfast.testing.rig import Holder
from tests.gateway.support import Site, frames

USAGE = {"input_tokens": 7, "output_tokens": 3, "cache_read_tokens": 2, "requests": 1}
LAST = {"response.completed", "response.failed", "response.incomplete"}


@pytest.fixture
async def client(here: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{here.url}/v1", api_key="any", max_retries=0, timeout=5) as made:
        yield made


def done(part: int, text: str) -> build.Draft:
    return EventType.TEXT_DONE, {"part": part, "text": text}


async def tell(here: Site, holder: Holder) -> None:
    """A run of everything: reasoning, a tool of the agent's, text in pieces."""
    await holder.start()
    await holder.append((EventType.REASONING_DELTA, {"part": 0, "text": "hm"}))
    await holder.append((EventType.REASONING_DONE, {"part": 0, "text": "hm"}), build.text(1, "a"), done(1, "a"))
    await holder.append((EventType.TOOL_ARGS, {"call": "c1", "name": "look", "delta": '{"at":'}))
    await holder.append((EventType.TOOL_ARGS, {"call": "c1", "name": "look", "delta": " 1}"}))
    await holder.append(build.tool_called("c1"), build.tool_finished("c1", {"found": True}))
    await holder.append(build.text(2, "b"), build.text(2, "c"))
    await here.complete(holder, "bc", USAGE)


async def test_a_response_that_is_not_streamed(here: Site, client: openai.AsyncOpenAI) -> None:
    """The whole object: items in order, a call with its result, usage, and the run's name in the id."""
    asked = client.responses.create(model="any", input="hi", instructions="be brief", metadata={"k": "v"})
    got, holder = await asyncio.gather(asked, told(here))
    assert got.id == f"resp_{holder.key.run}"
    assert (got.status, got.output_text, got.background) == ("completed", "abc", False)
    assert [item.type for item in got.output] == [
        "reasoning", "message", "function_call", "function_call_output", "message"
    ]  # fmt: skip
    assert got.output[0].content[0].text == "hm"
    assert (got.output[2].call_id, got.output[2].arguments) == ("c1", '{"at": 1}')
    assert json.loads(got.output[3].output) == {"found": True}
    assert (got.usage.input_tokens, got.usage.output_tokens, got.usage.total_tokens) == (7, 3, 10)
    assert got.usage.input_tokens_details.cached_tokens == 2
    assert (got.instructions, got.metadata) == ("be brief", {"k": "v"})
    assert got.completed_at
    assert (await client.responses.retrieve(got.id)).model_dump() == got.model_dump()


async def told(here: Site) -> Holder:
    holder = await here.claim()
    await tell(here, holder)
    return holder


async def events(stream: Any) -> list[dict[str, Any]]:
    return [event.model_dump() async for event in stream]


async def test_every_offset_of_a_stream_resumes_with_the_same_numbers(here: Site, client: openai.AsyncOpenAI) -> None:
    """Contiguous from 0, one end; whoever has N gets exactly what the first reader got after N."""
    stream = await client.responses.create(model="any", input="hi", stream=True, background=True)
    live, holder = await asyncio.gather(events(stream), told(here))
    assert [event["sequence_number"] for event in live] == list(range(len(live)))
    assert [event["type"] for event in live[:3]] == ["response.created", "response.queued", "response.in_progress"]
    assert [event["type"] for event in live if event["type"] in LAST] == ["response.completed"]
    assert "".join(event["delta"] for event in live if event["type"] == "response.output_text.delta") == "abc"
    assert live[-1]["response"]["output"] == [e["item"] for e in live if e["type"] == "response.output_item.done"]
    name = f"resp_{holder.key.run}"
    for after in range(len(live)):
        resumed = await events(await client.responses.retrieve(name, stream=True, starting_after=after))
        assert resumed == live[after + 1 :]
    assert await events(await client.responses.retrieve(name, stream=True)) == live
    (beyond,) = await events(await client.responses.retrieve(name, stream=True, starting_after=len(live)))
    assert (beyond["type"], beyond["code"]) == ("error", "invalid_offset")


async def test_a_stream_is_of_openais_frames_and_ends_with_done(here: Site) -> None:
    """`event` is the type of `data`, no `id` stands beside them, and [DONE] is the last word."""
    run = (await here.http.post("/v1/responses", json={"input": "hi", "background": True})).json()["id"]
    await told(here)
    body = (await here.http.get(f"/v1/responses/{run}?stream=true")).text
    found = frames(body)
    assert found[-1].data == "[DONE]"
    assert body.endswith("data: [DONE]\n\n")
    assert all(frame.id is None and frame.event == frame.json["type"] for frame in found[:-1])


@pytest.mark.parametrize(
    ("state", "reason", "finish", "status", "last"),
    [
        (State.COMPLETED, None, "length", "incomplete", "response.incomplete"),
        (State.FAILED, Reason.MODEL_ERROR, None, "failed", "response.failed"),
        (State.FAILED, Reason.BUDGET, None, "failed", "response.failed"),
        (State.CANCELLED, Reason.STOPPED, None, "cancelled", "response.incomplete"),
    ],
)
async def test_every_end_is_a_status(
    here: Site,
    client: openai.AsyncOpenAI,
    state: State,
    reason: Reason | None,
    finish: str | None,
    status: str,
    last: str,
) -> None:
    """What was open is closed as incomplete, then comes one terminal event with the status that GET shows, too."""
    made = await client.responses.create(model="any", input="hi", background=True)
    assert made.status == "queued"
    holder = await here.claim()
    await holder.start()
    await holder.append((EventType.TOOL_ARGS, {"call": "c0", "name": "look", "delta": "{"}), build.tool_called("c1"))
    await holder.append(build.text(0, "so far"))
    assert (await client.responses.retrieve(made.id)).status == "in_progress"
    if finish:
        await holder.append((EventType.MODEL_RESPONDED, {"step": 1, "model": "m", "finish_reason": finish}))
    await holder.finish(state, reason)
    got = await client.responses.retrieve(made.id)
    assert (got.status, got.output_text) == (status, "so far")
    assert (got.error is not None) == (status == "failed")
    assert (got.incomplete_details is not None) == (status == "incomplete")
    told = await events(await client.responses.retrieve(made.id, stream=True))
    assert [event["type"] for event in told if event["type"] in LAST] == [last]
    assert told[-1]["response"]["status"] == status
    closed = {e["item"]["id"]: e["item"] for e in told if e["type"] == "response.output_item.done"}
    opened = [e["item"]["id"] for e in told if e["type"] == "response.output_item.added"]
    assert len(closed) == (3 if finish else 5)
    assert set(closed) == set(opened)
    # A call that is open when a run completes is its client's to answer.
    for kind in ("function_call", "function_call_output")[: 1 if finish else 2]:
        assert sorted(i["call_id"] for i in closed.values() if i["type"] == kind) == ["c0", "c1"]


async def test_what_was_shown_and_is_taken_back_ends_the_stream_but_not_the_response(
    here: Site, client: openai.AsyncOpenAI
) -> None:
    """A reader of the stream gets an error, at the same number whenever it reads; the object has what counts."""
    made = await client.responses.create(model="any", input="hi", background=True)
    holder = await here.claim()
    await holder.start()
    await holder.append(build.text(0, "no"), (EventType.ATTEMPT_DISCARDED, {"reason": "x", "parts": [0], "calls": []}))
    first = await events(await client.responses.retrieve(made.id, stream=True))
    await holder.append(build.text(1, "yes"))
    await here.complete(holder, "yes")
    again = await events(await client.responses.retrieve(made.id, stream=True))
    assert again == first
    assert (again[-1]["type"], again[-1]["code"]) == ("error", "attempt_discarded")
    assert (await client.responses.retrieve(made.id)).output_text == "yes"


async def test_a_cancelled_response_says_so_and_twice_is_once(here: Site, client: openai.AsyncOpenAI) -> None:
    """cancel waits for the end that it asked for."""
    made = await client.responses.create(model="any", input="hi", background=True)
    holder = await here.claim()
    await holder.start()
    got, _ = await asyncio.gather(client.responses.cancel(made.id), here.obey(holder))
    assert got.status == "cancelled"
    assert (await client.responses.cancel(made.id)).status == "cancelled"


async def test_a_client_that_leaves_stops_its_response_unless_it_is_in_the_background(here: Site) -> None:
    """The default of each, as PROTOCOL says it."""
    for background, stopped in ((False, Reason.CLIENT_DISCONNECT), (True, None)):
        body = {"input": "hi", "stream": True, "background": background}
        async with here.http.stream("POST", "/v1/responses", json=body) as response:
            run = response.headers["x-run-id"]
            holder = await here.claim()
            await holder.start()
        if stopped is None:
            await asyncio.sleep(0.3)
            assert (await here.store.get(here.key(run))).stopping is None
            await here.complete(holder, "done")
        else:
            await here.obey(holder)
            assert (await here.store.get(here.key(run))).reason is stopped


async def test_a_chain_is_a_session_and_a_fork_is_a_copy(here: Site, client: openai.AsyncOpenAI) -> None:
    """The last response is continued in its session; an earlier one in a new session that knows what it knew."""
    chain = []
    for number in (1, 2):
        asked = client.responses.create(
            model="any", input=f"q{number}", previous_response_id=chain[-1].id if chain else openai.omit
        )
        got, _ = await asyncio.gather(asked, said(here, f"a{number}"))
        chain.append(got)
    assert chain[1].previous_response_id == chain[0].id
    session = (await record(here, chain[0])).session
    assert (await record(here, chain[1])).session == session
    fork, holder = await asyncio.gather(
        client.responses.create(model="any", input="q3", previous_response_id=chain[0].id), said(here, "a3")
    )
    other = (await record(here, fork)).session
    assert other != session
    assert [m.text for m in holder.claim.spec.context] == ["q1", "a1"]
    further, _ = await asyncio.gather(
        client.responses.create(model="any", input="q4", previous_response_id=fork.id), said(here, "a4")
    )
    assert (await record(here, further)).session == other
    assert [m["text"] for m in (await here.http.get(f"/api/sessions/{other}")).json()["messages"]] == [
        "q1", "a1", "q3", "a3", "q4", "a4"
    ]  # fmt: skip


async def test_of_two_that_continue_one_response_at_once_one_is_a_fork(here: Site, client: openai.AsyncOpenAI) -> None:
    """Neither is given what the other asked, and neither ends the other."""
    first, _ = await asyncio.gather(client.responses.create(model="any", input="q1"), said(here, "a1"))
    asked = [
        client.responses.create(model="any", input=text, previous_response_id=first.id, background=True)
        for text in ("q2", "q3")
    ]
    both = await asyncio.gather(*asked)
    sessions = {(await record(here, each)).session for each in both}
    assert len(sessions) == 2
    assert (await record(here, first)).session in sessions
    assert [(await record(here, each)).stopping for each in both] == [None, None]


@pytest.mark.parametrize("continued", ["the last", "an earlier one"])
async def test_a_repeat_of_a_continued_response_is_told_of_the_same(
    here: Site, client: openai.AsyncOpenAI, continued: str
) -> None:
    """By then what it continues is not the last any more: its own first try is."""
    first, _ = await asyncio.gather(client.responses.create(model="any", input="q1"), said(here, "a1"))
    if continued == "an earlier one":
        more = client.responses.create(model="any", input="more", previous_response_id=first.id)
        await asyncio.gather(more, said(here, "more"))
    asked = [
        await client.responses.create(
            model="any",
            input="q2",
            previous_response_id=first.id,
            background=True,
            extra_headers={"Idempotency-Key": "k1"},
        )
        for _ in range(2)
    ]
    assert asked[0].id == asked[1].id


async def test_a_deleted_response_is_forgotten(here: Site, client: openai.AsyncOpenAI) -> None:
    """Neither its log, nor its record, nor what it left in the conversation can be read; what works is stopped."""
    first, _ = await asyncio.gather(client.responses.create(model="any", input="secret"), said(here, "a1"))
    session = (await record(here, first)).session
    second, _ = await asyncio.gather(
        client.responses.create(model="any", input="q2", previous_response_id=first.id), said(here, "a2")
    )
    await client.responses.delete(first.id)
    for asked in (client.responses.retrieve(first.id), client.responses.delete(first.id)):
        with pytest.raises(openai.NotFoundError):
            await asked
    run = first.id.removeprefix("resp_")
    assert (await here.http.get(f"/api/runs/{run}/events")).status_code == 410
    assert "secret" not in (await here.http.get(f"/api/sessions/{session}")).text
    assert (await client.responses.retrieve(second.id)).output_text == "a2"
    works = await client.responses.create(model="any", input="hi", background=True)
    holder = await here.claim()
    await holder.start()
    await asyncio.gather(client.responses.delete(works.id), here.obey(holder))
    with pytest.raises(openai.NotFoundError):
        await client.responses.retrieve(works.id)


async def said(here: Site, text: str) -> Holder:
    holder = await here.claim()
    await holder.say(text)
    await here.complete(holder, text)
    return holder


async def record(here: Site, response: Any) -> Any:
    return await here.store.get(here.key(response.id.removeprefix("resp_")))


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x", "store": False}, "store"),
        ({"input": "x", "conversation": "c"}, "conversation"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input"),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
        ({"input": []}, "input"),
        ({"input": "x", "background": True, "on_disconnect": "cancel"}, "on_disconnect"),
    ],
)
async def test_what_cannot_be_honoured_is_refused_by_name(here: Site, body: dict[str, Any], param: str) -> None:
    """422 in OpenAI's shape, with the field in `param`."""
    got = await here.http.post("/v1/responses", json=body)
    assert (got.status_code, got.json()["error"]["param"]) == (422, param), got.text
    assert got.json()["error"]["type"] == "invalid_request_error"


async def test_what_is_not_there_is_404_in_openais_shape(here: Site, client: openai.AsyncOpenAI) -> None:
    """An unknown id, and one that is no response's, wherever a request names it."""
    for name in ("resp_r_none", "r_none", "resp_"):
        for asked in (
            client.responses.retrieve(name),
            client.responses.cancel(name),
            client.responses.create(model="m", input="x", previous_response_id=name),
        ):
            with pytest.raises(openai.NotFoundError) as caught:
                await asked
            assert caught.value.code == "unknown_run"
    for query in ("stream=maybe", "stream=true&starting_after=-1", "stream=true&starting_after=x"):
        assert (await here.http.get(f"/v1/responses/resp_x?{query}")).status_code in (404, 422)
