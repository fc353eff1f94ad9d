"""Chunks are built cheaper than by the SDK, and are the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI
from openai._models import construct_type
from openai.types.chat import ChatCompletionChunk
from pydantic import BaseModel

from holdfast.models import chunks
from holdfast.models.chunks import SlimOpenAI, chunk_of, openai_client

WORDS = st.text(max_size=8)
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(-9, 9), st.floats(allow_nan=False), WORDS, st.lists(WORDS, max_size=2)
)


def maybe(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what it should be, else what some server sends instead."""
    return st.one_of(usual, usual, st.none(), ODD)


def thing(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Any of the fields, and any that nobody knows."""
    usual = st.fixed_dictionaries({}, optional={name: maybe(kind) for name, kind in fields.items()})
    more = st.dictionaries(st.sampled_from(["reasoning_content", "x_groq", "name_of_ours"]), ODD | WORDS, max_size=2)
    return st.builds(lambda a, b: {**b, **a}, usual, more)


FUNCTION = thing({"name": WORDS, "arguments": WORDS})
CALL = thing({"index": st.integers(0, 3), "id": WORDS, "type": st.just("function"), "function": FUNCTION})
DELTA = thing(
    {
        "role": st.sampled_from(["assistant", "tool", "stranger"]),
        "content": WORDS,
        "refusal": WORDS,
        "tool_calls": st.lists(CALL, max_size=2),
        "function_call": FUNCTION,
        "audio": thing({"id": WORDS}),
    }
)
CHOICE = thing(
    {
        "index": st.integers(0, 3),
        "delta": DELTA,
        "finish_reason": st.sampled_from(["stop", "length", "tool_calls", "made_up"]),
        "logprobs": thing({"content": st.just([])}),
    }
)
USAGE = thing({"prompt_tokens": st.integers(0, 9), "completion_tokens": st.integers(0, 9)})
CHUNK = thing(
    {
        "id": WORDS,
        "object": st.just("chat.completion.chunk"),
        "created": st.integers(0, 2_000_000_000),
        "model": WORDS,
        "service_tier": st.sampled_from(["auto", "made_up"]),
        "system_fingerprint": WORDS,
        "obfuscation": WORDS,
        "choices": st.lists(CHOICE, max_size=2),
        "usage": USAGE,
        "moderation": st.just({}),
    }
)


def by_sdk(data: Any) -> Any:
    return construct_type(type_=ChatCompletionChunk, value=data)


def inside(value: Any) -> Any:
    """All there is of a model, in its order."""
    if isinstance(value, BaseModel):
        own = [(name, inside(each)) for name, each in value.__dict__.items()]
        more = [(name, inside(each)) for name, each in (value.__pydantic_extra__ or {}).items()]
        return type(value), own, more, value.model_fields_set, value.__pydantic_private__
    if isinstance(value, list):
        return [inside(each) for each in value]
    return type(value), value


@given(CHUNK)
def test_a_chunk_is_the_one_that_the_sdk_would_have_built(data: dict[str, Any]) -> None:
    """Whatever a server sends, pydantic-ai must see what it sees with the SDK alone, or a run would differ."""
    made = chunk_of(data)
    if made is not None:
        assert inside(made) == inside(by_sdk(data))


USUAL = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "system_fingerprint": "f"}


@pytest.mark.parametrize(
    "delta",
    [
        {"content": "t1 "},
        {"role": "assistant", "content": ""},
        {"content": None, "reasoning_content": "hm"},
        {"tool_calls": [{"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"a":'}}]},
    ],
    ids=["text", "role", "reasoning", "call", "arguments"],
)
def test_what_streams_most_is_built_here(delta: dict[str, Any]) -> None:
    """If these went the SDK's way all would work, and each token would cost a quarter more: nothing else would tell."""
    data = {**USUAL, "choices": [{"index": 0, "delta": delta, "finish_reason": None}], "usage": None}
    made = chunk_of(data)
    assert made is not None
    assert inside(made) == inside(by_sdk(data))


def test_two_chunks_share_nothing() -> None:
    """pydantic-ai may change what it was given; the next chunk must not know."""
    data = {**USUAL, "choices": [{"index": 0, "delta": {"content": "a"}}]}
    one, other = chunk_of(data), chunk_of({**data})
    assert one is not None
    assert other is not None
    one.choices.clear()
    one.model_fields_set.clear()
    one.model = "changed"
    assert (other.choices[0].delta.content, other.model, "model" in other.model_fields_set) == ("a", "m", True)


@contextmanager
def client() -> Iterator[AsyncOpenAI]:
    yield openai_client(base_url="http://127.0.0.1:1/v1", api_key="none", http_client=httpx2.AsyncClient())


def test_the_installed_sdk_is_one_that_we_know() -> None:
    """Of an SDK with another hook we take the plain client: right, and dearer, so somebody should hear of it here."""
    with client() as found:
        assert type(found) is SlimOpenAI


@pytest.mark.parametrize("change", ["gone", "other"])
def test_an_sdk_with_another_hook_is_used_as_it_is(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook is not the SDK's promise: a release that moves it must cost a few microseconds, not every run."""

    def other(self: Any, *, data: object, what: object) -> object:
        return self, data, what

    class Moved(openai.AsyncOpenAI):
        _process_response_data = None if change == "gone" else other  # type: ignore[assignment]

    monkeypatch.setattr(chunks, "AsyncOpenAI", Moved)
    with client() as found:
        assert type(found) is Moved
