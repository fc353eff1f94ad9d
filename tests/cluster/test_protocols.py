"""Every protocol on many machines: begun at one server, read and stopped at another, the same text and end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

from tests.cluster.deployment import Cluster
from tests.system.openai_reader import chat_completion
from tests.system.support import Http, frames, until
from tests.ws.support import socket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SESSION = "protocols"
SCRIPT = "!tokens n=100000 rate=40"
AGENT = "diver"
READERS = 3


def read(http: Http, path: str, method: str = "GET", body: Any = None) -> list[dict[str, Any]]:
    """The JSON of each event of a stream, to its end."""
    with http.stream(path, method=method, body=body, limit_s=60) as response:
        assert response.status == 200, response.read()
        return [json.loads(data) for _, _, data in frames(response) if data != "[DONE]"]


def joined(events: list[Any], kind: str, field: str) -> str:
    return "".join(event[field] for event in events if event.get("type") == kind)


async def test_a_run_of_one_server_is_the_same_in_every_protocol_at_another(cluster: Cluster) -> None:
    """No server holds what a reader needs: the log does."""
    first, second = (f"http://127.0.0.1:{server.http.port}" for server in cluster.servers[:2])
    http, ask = cluster.servers[1].http, asyncio.to_thread
    completion = asyncio.create_task(ask(chat_completion, first, AGENT, SCRIPT, SESSION))

    def active() -> Any:
        status, found = http.ask("GET", f"/api/sessions/{SESSION}")
        return status == 200 and found["active"] and found["active"]["id"]

    run = await ask(until, active, "the run is active")
    joins = {"threadId": SESSION, "runId": "later", "messages": []}
    async with socket(second) as client:
        watchers = [
            asyncio.create_task(ask(read, http, *each))
            for each in (
                (f"/api/runs/{run}/events",),
                (f"/api/chat/{SESSION}/stream",),
                (f"/ag-ui/{AGENT}", "POST", joins),
            )
        ]
        await client.ask("subscribe", run=run, after=0)
        await ask(until, lambda: http.get("/health")["readers"] >= READERS, "everybody looks")
        await ask(cluster.until_text, run, "t3 ")
        await ask(http.ask, "POST", f"/api/runs/{run}/stop")
        (said, code), native, ai_sdk, ag_ui = await asyncio.gather(completion, *watchers)
        end = await client.end_of(run)
        over_socket = joined(client.events(run), "text.delta", "text")
    text = joined(native, "text.delta", "text")
    assert text.startswith("t1 t2 t3 ")
    assert (said, code) == (text, "stopped")
    assert (joined(ai_sdk, "text-delta", "delta"), ai_sdk[-1]["type"]) == (text, "abort")
    shown = next(event for event in ag_ui if event["type"] == "MESSAGES_SNAPSHOT")["messages"][1:]
    before = "".join(message["content"] for message in shown)
    assert before + joined(ag_ui, "TEXT_MESSAGE_CONTENT", "delta") == text
    assert (ag_ui[-1]["type"], ag_ui[-1]["outcome"]["type"]) == ("RUN_FINISHED", "cancelled")
    assert http.get(f"/streams/runs/{run}?offset=-1") == native
    assert (over_socket, end["reason"]) == (text, "stopped")


async def test_a_response_of_one_server_is_resumed_cancelled_and_continued_at_another(cluster: Cluster) -> None:
    """By the numbers of its events, which follow from the log."""
    urls = [f"http://127.0.0.1:{server.http.port}/v1" for server in cluster.servers[:2]]
    first, second = (openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) for url in urls)
    async with first, second:
        made = await first.responses.create(model=AGENT, input=SCRIPT, background=True)
        seen: list[Any] = []
        async with await first.responses.retrieve(made.id, stream=True) as stream:
            async for event in stream:
                seen.append(event)
                if len(seen) == 20:
                    break
        cancelled = asyncio.create_task(second.responses.cancel(made.id))
        rest = await second.responses.retrieve(made.id, stream=True, starting_after=seen[-1].sequence_number)
        seen += [event async for event in rest]
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        assert (await cancelled).status == "cancelled"
        again = await first.responses.retrieve(made.id)
        assert again.output_text == "".join(e.delta for e in seen if e.type == "response.output_text.delta")
        more = await second.responses.create(model=AGENT, input="!say on", previous_response_id=made.id)
        assert more.output_text == "on"
        forks = [
            each.responses.create(model=AGENT, input="!say on", previous_response_id=more.id, background=True)
            for each in (first, second)
        ]
        sessions = [cluster.record(each.id.removeprefix("resp_"))["session"] for each in await asyncio.gather(*forks)]
        assert len(set(sessions)) == 2, "two at once are two conversations"
