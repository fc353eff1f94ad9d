"""The parsers that face clients take anything and raise nothing but what their callers expect (P8, P10)."""

import asyncio
import contextlib
import functools
import itertools
import json
import math
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from starlette.requests import Request

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import bounded, encode_json
from holdfast.domain.ids import EventId, is_id, parse_event_id
from holdfast.gateway import requests
from holdfast.gateway.bodies import check_id, check_metadata, idempotency_key, read_json
from holdfast.gateway.events import read_offset
from holdfast.gateway.openai_messages import ChatBody, conversation, refuse_unsupported, sampling
from holdfast.gateway.runs import InputBody, StartBody
from holdfast.ports.store import RunSpec
from holdfast.rehearsal import DIRECTIVES, ScriptError, parse
from holdfast.rehearsal.answer import Answer
from holdfast.rehearsal.plan import next_segment
from holdfast.rehearsal.steps import Segment
from holdfast.rehearsal.wire import BadRequest, read_request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

FULL = 5000 if os.environ.get("HOLDFAST_FULL") else 150
fuzz = settings(max_examples=FULL)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
header_values = st.binary(max_size=60) | st.text(st.characters(max_codepoint=255), max_size=60).map(
    lambda text: text.encode("latin-1")
)


REFUSED: Any = object()


def attempt(work: Callable[[], Any], code: str = "invalid_request") -> Any:
    """What `work` returns, or REFUSED if it was refused with this code."""
    try:
        return work()
    except HoldfastError as error:
        if error.code != code:
            raise
        json.loads(encode_json(error.detail))
        return REFUSED


def read_now(body: bytes, kind: type[msgspec.Struct], bytes_max: int = 100_000) -> Any:
    """The body of a request as the gateway reads it."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(read_json(request(body=body), kind, bytes_max))
    finally:
        loop.close()


def request(*headers: tuple[str, bytes], query: bytes = b"", body: bytes = b"") -> Request:
    """A request as the server hands it over."""
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/",
        "query_string": query,
        "headers": [(name.encode(), value) for name, value in headers],
        "path_params": {},
    }
    sent = iter([body[: len(body) // 2], body[len(body) // 2 :]])

    async def receive() -> dict[str, Any]:
        piece = next(sent, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    return Request(scope, receive)


@fuzz
@given(st.text(max_size=40) | st.from_regex(r"\d{0,20}-?\d{0,20}"))
@example("1-٢")
@example("7\n")
def test_event_id_is_read_back_or_none(text: str) -> None:
    """An offset is what it says, in its one spelling, or no offset at all."""
    found = parse_event_id(text)
    assert found is None or (text.isascii() and parse_event_id(str(found)) == found)
    assert not is_id(text) or check_id(text, "it") == text


@given(st.integers(0, 10**15 - 1), st.none() | st.integers(0, 10**15 - 1))
def test_event_id_survives_its_text(seq: int, epoch: int | None) -> None:
    """What SSE carries as `id:` names the same event when it comes back."""
    assert parse_event_id(str(EventId(seq, epoch))) == EventId(seq, epoch)


@fuzz
@given(header_values, st.binary(max_size=60))
def test_offset_of_a_request_is_an_offset_or_refused(last: bytes, after: bytes) -> None:
    """No header and no query can make a reader's offset an error of ours."""
    asked = request(("last-event-id", last), query=b"after=" + after)
    offset = attempt(lambda: read_offset(asked), "invalid_offset")
    if offset is not REFUSED:
        assert len(offset.asked) <= 128
        assert offset.id is None or offset.id.seq >= 0


accepts = st.lists(
    st.sampled_from(["text/event-stream", "application/json", "*/*", "text/*", "q", ""]).flatmap(
        lambda name: st.sampled_from(["", ";q=0", ";q=1", ";q=nan", ";q=-1", ";q=inf", ";q=", ";;", ";q=1e999"]).map(
            lambda rest: name + rest
        )
    ),
    max_size=5,
).map(lambda items: ",".join(items).encode())


@fuzz
@given(header_values | accepts)
def test_accept_always_chooses_one_of_the_forms(accept: bytes) -> None:
    """Whatever a client says that it reads, it gets one of the forms that there are."""
    offered = ("text/event-stream", "application/x-ndjson", "application/json")
    asked = request(("accept", accept))
    assert requests.wanted(asked, offered) in offered
    assert requests.asks_for(asked, offered) in (*offered, "")


@fuzz
@given(header_values, st.binary(max_size=40), header_values)
def test_numbers_and_keys_of_a_request_are_bounded_or_refused(key: bytes, query: bytes, trace: bytes) -> None:
    """A limit, a wait, a key and a trace are within their bounds, or the request is refused."""
    asked = request(
        ("idempotency-key", key),
        ("traceparent", trace),
        query=b"limit=" + query + b"&wait_s=" + query + b"&after=" + query,
    )
    for read, fits in (
        (requests.page_limit, lambda value: 1 <= value <= requests.LIST_MAX),
        (requests.wait_limit, lambda value: 0 <= value <= requests.WAIT_S_MAX),
        (requests.last_seen, lambda value: value == "" or is_id(value)),
        (requests.trace_of, lambda value: len(value) in (0, 32)),
        (idempotency_key, lambda value: len(value) <= 255 and value.isprintable()),
    ):
        value = attempt(functools.partial(read, asked))
        assert value is REFUSED or fits(value), (read, value)


run_bodies = st.fixed_dictionaries(
    {"input": st.text(max_size=20)},
    optional={
        "session": st.text(max_size=10),
        "on_busy": st.sampled_from(["supersede", "later", None]),
        "deadline_s": scalars,
        "metadata": st.dictionaries(st.text(max_size=8), json_values, max_size=4),
    },
)


@pytest.mark.parametrize("kind", [StartBody, InputBody, ChatBody])
@fuzz
@given(body=st.binary(max_size=200) | (json_values | run_bodies).map(lambda value: json.dumps(value).encode()))
@example(body=b'{"input": "\\ud800", "metadata": {"\\udfff": 1}}')
@example(body=b'{"input": "x", "metadata": {"a": 1e999, "b": -1e999, "c": 123456789012345678901234567890}}')
def test_body_is_read_or_refused(kind: type[msgspec.Struct], body: bytes) -> None:
    """A body becomes what it is checked against, which can be stored and read back, or is refused."""
    found = attempt(lambda: read_now(body, kind))
    metadata = attempt(lambda: check_metadata(getattr(found, "metadata", None) or {}))
    if found is REFUSED or metadata is REFUSED:
        return
    spec = RunSpec(input=getattr(found, "input", None) or "", agent="a", metadata=metadata)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=RunSpec).input == spec.input


contents = (
    st.none()
    | st.text(max_size=12)
    | st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from(["text", "input_text", "image_url", "refusal", ""])},
            optional={"text": st.none() | st.text(max_size=8), "refusal": st.text(max_size=8)},
        ),
        max_size=3,
    )
)
wide = st.integers(-(10**40), 10**40) | st.floats() | json_values
chat_calls = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.text(max_size=8),
            "function": st.fixed_dictionaries(
                {
                    "name": st.text(max_size=8),
                    "arguments": st.text(max_size=12) | st.dictionaries(st.text(max_size=4), wide).map(json.dumps),
                }
            ),
        }
    ),
    max_size=3,
)
chat_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "tool", "system", "developer", "robot"]), "content": contents},
    optional={"tool_calls": st.none() | chat_calls, "tool_call_id": st.text(max_size=8), "name": st.text(max_size=8)},
)


@fuzz
@given(st.lists(chat_messages, max_size=6), st.booleans())
def test_openai_messages_become_a_conversation_or_are_refused(messages: list[Any], in_session: bool) -> None:
    """What a client believes was said can be stored with the run and read back by its worker."""
    body = json.dumps({"messages": messages}).encode()
    read = attempt(lambda: read_now(body, ChatBody))
    if read is REFUSED:
        return
    refuse_unsupported(read)
    found = attempt(lambda: conversation(read, in_session=in_session))
    if found is REFUSED:
        return
    spec = RunSpec(input=found.prompt, agent="a", settings=sampling(read), context=found.context)
    stored = msgspec.json.decode(msgspec.json.encode(spec), type=RunSpec)
    assert [m.text for m in stored.context] == [m.text for m in found.context]
    asked = [c.call for m in found.context for c in m.calls]
    results = [m.call for m in found.context if m.role == "tool"]
    if in_session:
        assert not asked  # the results are of calls in the history that the server has
    else:
        assert sorted(asked) == sorted(results)


words = st.sampled_from(
    [*(f"!{name}" for name in DIRECTIVES), "n=5", "rate=9", "after=2", "for=0", "delay=0", "times=1", "code=503"]
) | st.text(max_size=12)
lines = st.lists(words, max_size=5).map(" ".join)
options = st.tuples(
    st.sampled_from(DIRECTIVES), st.lists(st.tuples(st.sampled_from(["n", "rate", "after", "for", "code"]), scalars))
).map(lambda parts: f"!{parts[0]} " + " ".join(f"{key}={value}" for key, value in parts[1]))


@fuzz
@given(st.lists(lines | options | st.text(max_size=30), max_size=5).map("\n".join))
@example("!tool x " + "[" * 5000)
@example("!tool x " + '{"a":' * 5000)
@example('!tool x {"a": "\\ud800"}')
@example("!tokens n=" + "9" * 5000)
def test_script_is_read_or_refused_with_its_line(text: str) -> None:
    """A user who tests an agent with a wrong script is told which line is wrong, and never meets a crash."""
    script: tuple[Segment, ...] | None = ()
    line = 1
    try:
        script = parse(text)
    except ScriptError as error:
        line = error.line
    assert 1 <= line <= max(1, len(text.splitlines()))
    for segment in script or ():
        for piece in itertools.islice(Answer(segment.body, 1, "call").pieces(), 50):
            assert math.isfinite(piece[0])


@fuzz
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps({"messages": value}).encode()))
@example(b'{"messages": ' + b"[" * 5000)
@example(b'{"messages": [{"role": "user", "content": "\\ud800"}]}')
def test_request_to_the_rehearsal_model_is_read_or_refused(body: bytes) -> None:
    """The rehearsal model refuses what is no request, as a model server does."""
    with contextlib.suppress(BadRequest, ScriptError):
        next_segment(read_request(body).messages)


@fuzz
@given(json_values | st.binary(max_size=20) | st.integers(10**20, 10**40), st.integers(10, 200))
def test_any_value_of_a_tool_fits_its_event(value: Any, bytes_max: int) -> None:
    """A tool may return anything; its event is within its bounds and can be read."""
    kept = bounded(value, bytes_max)
    assert kept is value or kept["truncated"] is True
    json.loads(encode_json(kept))
