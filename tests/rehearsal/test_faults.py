"""What a client receives from each fault, byte for byte."""

import json

import pytest

from holdfast.rehearsal import RehearsalServer
from tests.rehearsal.support import connected, play, request_bytes


async def test_first_token_delays_after_the_headers(server: RehearsalServer) -> None:
    """A slow model answers the request at once and then thinks; alone it delays ten tokens."""
    response = await play(server, "!first_token delay=0.3")
    assert response.arrivals[0] < 0.28 < response.arrivals[1]
    assert response.tokens[-1] == "t10 "


async def test_slow_headers_delays_everything(server: RehearsalServer) -> None:
    """A loaded proxy holds even the status line back; alone it delays ten tokens."""
    response = await play(server, "!slow_headers for=0.3")
    assert response.arrivals[0] > 0.28
    assert response.tokens[-1] == "t10 "


async def test_stall_is_silent_and_then_ends_normally(server: RehearsalServer) -> None:
    """A stream that pauses longer than a watchdog waits, and one that pauses less, are both needed."""
    response = await play(server, "!stall after=3 for=0.3 rate=1000")
    assert response.tokens == ["t1 ", "t2 ", "t3 "]
    assert response.arrivals[-1] > 0.28
    assert response.finish == "stop"
    assert response.done


async def test_lines_after_a_stall_are_performed(server: RehearsalServer) -> None:
    """Lines run in order, whatever kind they are."""
    response = await play(server, "!stall after=1 for=0.05", "!tokens n=1", "!comments after=1 for=0.05", "!say end")
    assert response.text == "t1 t2 t3 end"


async def test_comments_are_bytes_without_progress(server: RehearsalServer) -> None:
    """Keepalive comments must not keep a dead stream alive."""
    response = await play(server, "!comments after=2 for=0.3 every=0.05 rate=1000")
    assert response.tokens == ["t1 ", "t2 "]
    assert 4 <= response.comments <= 7
    assert response.done


async def test_close_drops_the_connection_after_its_tokens(server: RehearsalServer) -> None:
    """The body's framing is left open, so that no client can take the answer for complete."""
    response = await play(server, "!close after=3 rate=1000")
    assert response.tokens == ["t1 ", "t2 ", "t3 "]
    assert not response.complete
    assert response.finish is None
    assert not response.done


async def test_truncate_ends_cleanly_but_early(server: RehearsalServer) -> None:
    """HTTP says that all is well; only finish_reason and [DONE] are missing."""
    response = await play(server, "!truncate after=3 rate=1000", stream_options={"include_usage": True})
    assert response.tokens == ["t1 ", "t2 ", "t3 "]
    assert response.complete
    assert response.finish is None
    assert not response.done


async def test_bad_json_is_one_chunk_that_does_not_parse(server: RehearsalServer) -> None:
    """The rest of the stream is in order, so that only the bad chunk can be the reason."""
    response = await play(server, "!bad_json after=2 rate=1000", "!tokens n=1")
    bad = [event for event in response.events if event != "[DONE]" and not _is_json(event)]
    assert len(bad) == 1
    assert response.events.index(bad[0]) == 2
    assert response.done


async def test_error_in_stream_is_an_error_chunk_and_the_end(server: RehearsalServer) -> None:
    """A provider that fails after 200 can only say so in the stream."""
    response = await play(server, "!error_in_stream after=2 rate=1000", stream_options={"include_usage": True})
    assert response.tokens == ["t1 ", "t2 "]
    assert response.chunks[-1]["error"].keys() == {"message", "type", "param", "code"}
    assert response.finish is None
    assert response.done


async def test_error_has_the_code_that_the_script_gives_it(server: RehearsalServer) -> None:
    """Clients sort errors by their code, in the headers and in the stream."""
    streamed = await play(server, "!error_in_stream after=0 error=context_length_exceeded")
    refused = await play(server, "!status code=400 error=context_length_exceeded")
    assert streamed.chunks[-1]["error"]["code"] == refused.json["error"]["code"] == "context_length_exceeded"


async def test_status_above_a_size_is_a_context_window(server: RehearsalServer) -> None:
    """A client that sends less is answered: that is how a conversation that was compacted is told from a whole one."""
    script = ("!status code=400 error=context_length_exceeded above=20", "!say fits")
    assert (await play(server, *script)).text == "fits"
    assert (await play(server, "word " * 30, *script)).status == 400


async def test_part_of_a_tool_call_holds_the_fault_that_follows(server: RehearsalServer) -> None:
    """A model that stalls or breaks inside its arguments leaves half a call, which must not be run."""
    response = await play(server, '!tool_part get {"key": "a value"}', "!close after=0")
    args = "".join(delta["tool_calls"][0]["function"]["arguments"] for delta in response.deltas)
    assert args == '{"key": "a value"}'[: len(args)]
    assert 0 < len(args) < 18
    assert (response.complete, response.finish) == (False, None)


async def test_faults_begin_at_once_without_tokens(server: RehearsalServer) -> None:
    """after=0 is the fault alone."""
    closed = await play(server, "!close after=0")
    assert (closed.status, closed.body, closed.complete) == (200, b"", False)
    truncated = await play(server, "!truncate after=0")
    assert (truncated.status, truncated.body, truncated.complete) == (200, b"", True)


async def test_status_counts_identical_messages_only(server: RehearsalServer) -> None:
    """times=2 fails a request and its first retry; other messages have their own count."""
    script = ("!status code=429 retry_after=2 times=2", "!say ok")
    first, second, third = [await play(server, *script) for _ in range(3)]
    other = await play(server, "another run", *script)
    assert [first.status, second.status, third.status, other.status] == [429, 429, 200, 429]
    assert first.headers["retry-after"] == "2"
    assert first.json["error"]["type"] == "rate_limit_error"
    assert third.text == "ok"


async def test_status_lines_are_used_up_one_after_the_other(server: RehearsalServer) -> None:
    """A retry may meet another error than the first try did."""
    script = ("!status code=503 times=1", "!status code=401", "!say never")
    responses = [await play(server, *script) for _ in range(3)]
    assert [response.status for response in responses] == [503, 401, 401]
    assert [response.json["error"]["type"] for response in responses[:2]] == ["server_error", "authentication_error"]
    assert "retry-after" not in responses[0].headers


async def test_status_waits_for_the_headers_before_it(server: RehearsalServer) -> None:
    """An overloaded provider is often slow to say so."""
    response = await play(server, "!slow_headers for=0.2", "!status code=503 retry_after=0.5")
    assert response.arrivals[0] > 0.19
    assert (response.status, response.headers["retry-after"]) == (503, "0.5")


@pytest.mark.parametrize(
    ("script", "status", "complete", "is_json"),
    [
        ("!stall after=2 for=0.1 rate=1000", 200, True, True),
        ("!comments after=2 for=0.1 rate=1000", 200, True, True),
        ("!first_token delay=0.1", 200, True, True),
        ("!slow_headers for=0.1", 200, True, True),
        ("!status code=500", 500, True, True),
        ("!error_in_stream after=2", 500, True, True),
        ("!bad_json after=2", 200, True, False),
        ("!truncate after=2", 200, True, False),
        ("!close after=2", 200, False, False),
    ],
)
async def test_faults_have_their_like_in_a_body(
    server: RehearsalServer, script: str, status: int, complete: bool, is_json: bool
) -> None:
    """A fallback that does not stream meets the same troubles."""
    response = await play(server, script, stream=False)
    assert (response.status, response.complete, _is_json(response.body.decode())) == (status, complete, is_json)
    if "for=" in script or "delay=" in script:
        assert response.arrivals[0] > 0.09


async def test_next_request_after_a_truncated_answer_uses_the_connection(server: RehearsalServer) -> None:
    """A clean end is clean: the connection stays usable, as with a real proxy."""
    body = json.dumps({"messages": [{"role": "user", "content": "!truncate after=1"}], "stream": True}).encode()
    asked = request_bytes("POST", "/v1/chat/completions", body).replace(b"Connection: close\r\n", b"")
    async with connected(server) as (reader, writer):
        for _ in range(2):
            writer.write(asked)
            assert b"t1 " in await reader.readuntil(b"0\r\n\r\n")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


async def test_a_fault_in_the_stream_passes_after_its_times(server: RehearsalServer) -> None:
    """What breaks once and then works is the commonest fault of all, and the one that a fresh start is for."""
    script = ("!close after=2 times=1 rate=1000", "!tokens n=3 rate=1000")
    broken, whole = await play(server, *script), await play(server, *script)
    assert (broken.tokens, broken.complete) == (["t1 ", "t2 "], False)
    assert (whole.text, whole.finish) == ("t1 t2 t3 ", "stop")


async def test_a_fault_that_has_passed_leaves_an_answer(server: RehearsalServer) -> None:
    """Alone, its line leaves the ten tokens of a script that says nothing."""
    await play(server, "!truncate after=1 times=1 rate=1000")
    assert (await play(server, "!truncate after=1 times=1 rate=1000")).tokens[-1] == "t10 "
