"""What a client receives from a script that goes well."""

import json
import time
from typing import Any

import pytest

from holdfast.rehearsal import RehearsalServer
from tests.rehearsal.support import ask, play, post, request


def conversation(script: str, *turns: tuple[list[str], list[str]], **fields: Any) -> dict[str, Any]:
    """A request after some turns: the calls of each, and the results that came back."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": script}]
    for calls, results in turns:
        named = [{"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}} for name in calls]
        messages.append({"role": "assistant", "content": None, "tool_calls": named})
        messages += [{"role": "tool", "tool_call_id": "x", "content": result} for result in results]
    return {"messages": messages, "stream": True, **fields}


async def test_tokens_are_numbered_and_one_chunk_each(server: RehearsalServer) -> None:
    """A reader can prove from the text alone that nothing is missing, doubled or merged."""
    response = await play(server, "!tokens n=5 rate=1000", "!tokens n=2 rate=1000")
    assert response.tokens == ["t1 ", "t2 ", "t3 ", "t4 ", "t5 ", "t6 ", "t7 "]
    assert response.deltas[0]["role"] == "assistant"
    assert response.finish == "stop"
    assert response.done
    assert response.complete


async def test_chunks_have_openai_shape(server: RehearsalServer) -> None:
    """A strict client needs the same id, model and object in each chunk."""
    response = await play(server, "!tokens n=2 rate=1000", model="kelp-1")
    assert {chunk["object"] for chunk in response.chunks} == {"chat.completion.chunk"}
    assert {chunk["model"] for chunk in response.chunks} == {"kelp-1"}
    assert len({chunk["id"] for chunk in response.chunks}) == 1
    assert response.headers["content-type"].startswith("text/event-stream")


async def test_tokens_arrive_at_their_rate_without_drift(server: RehearsalServer) -> None:
    """Tests of watchdogs need to know when a token comes."""
    response = await play(server, "!tokens n=31 rate=100")
    assert 0.29 < response.arrivals[-1] < 1
    assert len(response.arrivals) > 10, "tokens came in bursts"


async def test_high_rate_is_reached(server: RehearsalServer) -> None:
    """A load test is not slowed by its model: ten thousand chunks in far less than two seconds."""
    started = time.monotonic()
    response = await play(server, "!tokens n=10000 rate=100000")
    assert time.monotonic() - started < 2
    assert len(response.tokens) == 10_000
    assert response.tokens[-1] == "t10000 "


async def test_say_speaks_word_by_word(server: RehearsalServer) -> None:
    """A test can ask for the very text that it asserts."""
    response = await play(server, "!say to be, or rate=1000")
    assert response.tokens == ["to", " be,", " or"]


async def test_think_is_reasoning_before_the_text(server: RehearsalServer) -> None:
    """Reasoning tokens are not text."""
    response = await play(server, "!think n=2 rate=1000", "!tokens n=1")
    assert [delta.get("reasoning_content") for delta in response.deltas[:2]] == ["r1 ", "r2 "]
    assert response.text == "t1 "


async def test_without_directives_it_says_what_it_is_and_echoes(server: RehearsalServer) -> None:
    """Nobody may take a rehearsal for a model."""
    text = (await play(server, "hello there")).text
    assert "rehearsal model, not a language model" in text
    assert text.endswith("You said: hello there")


async def test_long_echo_is_cut_and_says_so(server: RehearsalServer) -> None:
    """An echo of a large prompt does not take minutes."""
    response = await play(server, "kelp" * 10_000)
    assert response.text.endswith("... (40000 characters)")
    assert len(response.text) < 1500


async def test_request_without_a_user_message_is_answered_plainly(server: RehearsalServer) -> None:
    """A history may begin with a system message alone."""
    response = await post(server, {"messages": [{"role": "system", "content": "!say no"}], "stream": True})
    assert response.text.endswith("There was no user message.")


async def test_content_may_be_a_list_of_parts(server: RehearsalServer) -> None:
    """Clients send text both ways, and images beside it."""
    parts = [
        {"type": "image_url", "image_url": {"url": "data:,"}},
        {"type": "text", "text": "!say one rate=1000"},
        {"type": "text", "text": "!say two"},
    ]
    response = await post(server, {"messages": [{"role": "user", "content": parts}], "stream": True})
    assert response.text == "one\ntwo"


async def test_only_the_last_user_message_is_the_script(server: RehearsalServer) -> None:
    """A session's earlier scripts are not performed again."""
    body = ask("!say old")
    body["messages"] += [{"role": "assistant", "content": "old"}, {"role": "user", "content": "!say new"}]
    assert (await post(server, body)).text == "new"


async def test_tool_call_is_streamed_in_pieces(server: RehearsalServer) -> None:
    """Clients must join the arguments of a call from several deltas; the tool need not have been offered."""
    response = await play(server, '!tool search {"q": "kelp forest"}')
    calls = [delta["tool_calls"][0] for delta in response.deltas if "tool_calls" in delta]
    assert calls[0]["function"] == {"name": "search", "arguments": ""}
    assert calls[0]["id"].startswith("call_")
    assert len(calls) > 3
    assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"q": "kelp forest"}
    assert response.finish == "tool_calls"


async def test_raw_arguments_reach_the_client_as_they_are(server: RehearsalServer) -> None:
    """A model can write arguments that are not JSON, and an agent must survive it."""
    response = await play(server, "!tool_raw search {not json", stream=False)
    (call,) = response.json["choices"][0]["message"]["tool_calls"]
    assert call["function"]["arguments"] == "{not json"


async def test_call_ids_are_unique_in_a_conversation_and_stable_for_a_repeat(server: RehearsalServer) -> None:
    """A retry of the same request names the same calls, the next step others."""
    script = "!tool a\n!tool b\n!say between\n!tool c"

    async def ids(body: dict[str, Any]) -> list[str]:
        deltas = (await post(server, body)).deltas
        return [call["id"] for delta in deltas for call in delta.get("tool_calls", []) if "id" in call]

    first, again = await ids(conversation(script)), await ids(conversation(script))
    later = await ids(conversation(script, (["a", "b"], ["1", "2"])))
    assert first == again
    assert len({*first, *later}) == 3


@pytest.mark.parametrize(
    ("turns", "text", "calls"),
    [
        ([], "", ["a", "b"]),
        ([(["a", "b"], ["1", "2"])], "then", ["c"]),
        ([(["a", "b"], ["1"])], "then", ["c"]),  # one result is missing: it was asked to go on all the same
        ([(["a", "b"], ["1", "2"]), (["c"], ["3"])], "end", []),
    ],
)
async def test_tool_results_continue_the_script(
    server: RehearsalServer, turns: list[tuple[list[str], list[str]]], text: str, calls: list[str]
) -> None:
    """Each request of an agent's loop gets the next part: parallel calls, then a call, then the end."""
    response = await post(server, conversation("!tool a\n!tool b\n!say then\n!tool c\n!say end", *turns))
    names = [c["function"]["name"] for d in response.deltas for c in d.get("tool_calls", []) if "id" in c]
    assert response.text == text
    assert names == calls


async def test_script_that_ended_with_a_call_says_so_and_shows_the_result(server: RehearsalServer) -> None:
    """A script of one call lets a user see what the model got back."""
    response = await post(server, conversation("!tool a", (["a"], ["22 degrees"])))
    assert response.text.endswith("The last tool result was: 22 degrees")


async def test_usage_is_counted_and_only_sent_when_asked(server: RehearsalServer) -> None:
    """A usage chunk comes last and has no choices, as OpenAI's does."""
    options = {"include_usage": True}
    response = await play(server, "!think n=1 rate=1000", "!tokens n=3 rate=1000", stream_options=options)
    assert response.chunks[-1]["choices"] == []
    usage = response.chunks[-1]["usage"]
    assert (usage["completion_tokens"], usage["completion_tokens_details"]) == (4, {"reasoning_tokens": 1})
    assert usage["total_tokens"] == usage["prompt_tokens"] + 4
    without = await play(server, "!tokens n=1")
    assert not any("usage" in chunk for chunk in without.chunks)


async def test_usage_directive_sets_what_is_reported(server: RehearsalServer) -> None:
    """Budgets are tested with large numbers and short answers."""
    script = ("!tokens n=1", "!usage prompt=1000 completion=2000")
    streamed = await play(server, *script, stream_options={"include_usage": True})
    whole = await play(server, *script, stream=False)
    for usage in (streamed.chunks[-1]["usage"], whole.json["usage"]):
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (1000, 2000, 3000)


async def test_answer_that_is_not_streamed_comes_whole(server: RehearsalServer) -> None:
    """The same script, in one body, after the time that it takes."""
    response = await play(server, "!think n=1 rate=20", "!say hi rate=20", "!tool a {}", stream=False, model="m")
    (choice,) = response.json["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "hi"
    assert choice["message"]["reasoning_content"] == "r1 "
    assert choice["message"]["tool_calls"][0]["function"] == {"name": "a", "arguments": "{}"}
    assert (response.json["object"], response.json["model"]) == ("chat.completion", "m")
    assert response.arrivals[0] > 0.1


async def test_every_response_says_that_it_is_a_rehearsal(server: RehearsalServer) -> None:
    """`serve` knows by this header to mark its runs, on errors too."""
    responses = [
        await play(server, "!say hi"),
        await play(server, "!say hi", stream=False),
        await play(server, "!status code=500"),
        await play(server, "!nonsense"),
        await request(server, "GET", "/v1/models"),
        await request(server, "GET", "/_stats"),
        await request(server, "GET", "/nowhere"),
        await request(server, "PUT", "/_stats"),
    ]
    assert [response.headers.get("x-holdfast-rehearsal") for response in responses] == ["1"] * len(responses)
    assert [response.status for response in responses] == [200, 200, 500, 400, 200, 200, 404, 405]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        (b"{", 400, "not a chat completions request"),
        (b"[]", 400, "not a chat completions request"),
        (b"{}", 400, "messages"),
        (b'{"messages": [{"content": "x"}]}', 400, "role"),
        (b'{"messages": [{"role": "user", "content": 5}]}', 400, "content"),
        (b'{"messages": "\xff"}', 400, "not a chat completions request"),
        (b"[" * 100_000, 400, "not a chat completions request"),
        (json.dumps(ask("hi\n!wat")).encode(), 400, "line 2: unknown directive !wat; known are !say"),
        (b" " * (8 * 1024 * 1024 + 1), 413, "more than 8388608 bytes"),
    ],
)
async def test_bad_request_is_refused_in_openai_shape(
    server: RehearsalServer, body: bytes, status: int, says: str
) -> None:
    """A client's error handling sees what it would see from OpenAI, and the user what to change."""
    response = await request(server, "POST", "/v1/chat/completions", body)
    assert response.status == status
    assert response.json["error"].keys() == {"message", "type", "param", "code"}
    assert response.json["error"]["type"] == "invalid_request_error"
    assert says in response.json["error"]["message"]
