"""Builds the chunks of a streamed chat completion without asking pydantic anew about each of their fields.

The SDK walks the annotations of every class for every chunk, a quarter of what a streamed token costs a worker. Here a
chunk of the usual shape (text, reasoning, tool arguments, and whatever a server adds) is put together after plans that
are made once. Anything else goes the SDK's own way, and so does everything where the SDK's hook or its classes are not
as we know them: the object is the same either way.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar, cast

import httpx2
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import (
    Choice,
    ChoiceDelta,
    ChoiceDeltaToolCall,
    ChoiceDeltaToolCallFunction,
)
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

T = TypeVar("T")

_HOOK: Final = ("self", "data", "cast_to", "response")
_put: Final = object.__setattr__


class _Odd(Exception):
    """Not of the usual shape: the SDK builds it."""


class _Plan:
    """How objects of one class are built: which values stay as they are, and which are built by another plan."""

    def __init__(
        self, cls: type[BaseModel], plain: dict[str, type], built: Mapping[str, Callable[[Any], Any]] | None = None
    ) -> None:
        self._cls = cls
        self._plain = plain
        self._built = built or {}
        self._empty = dict.fromkeys(cls.model_fields)

    @property
    def holds(self) -> bool:
        """Whether the class is still as it was when this was written."""
        fields = self._cls.model_fields
        as_known = all(
            field.alias is None and field.default_factory is None and field.default in (None, PydanticUndefined)
            for field in fields.values()
        )
        named = self._plain.keys() | self._built.keys()
        return as_known and named <= fields.keys() and self._cls.model_config.get("extra") == "allow"

    def one(self, values: Any) -> BaseModel:
        """An object of the values of a JSON object."""
        if type(values) is not dict:
            raise _Odd
        fields = self._empty.copy()
        more = {}
        for name, value in values.items():
            if name not in fields:
                more[name] = value
            elif value is not None:
                if type(value) is self._plain.get(name):
                    fields[name] = value
                elif name in self._built:
                    fields[name] = self._built[name](value)
                else:
                    raise _Odd
        made = self._cls.__new__(self._cls)
        _put(made, "__dict__", fields)
        _put(made, "__pydantic_private__", None)
        _put(made, "__pydantic_extra__", more)
        _put(made, "__pydantic_fields_set__", set(values) - more.keys() if more else set(values))
        return made

    def many(self, values: Any) -> list[BaseModel]:
        """One of each."""
        if type(values) is not list:
            raise _Odd
        return [self.one(each) for each in values]


_function: Final = _Plan(ChoiceDeltaToolCallFunction, {"arguments": str, "name": str})
_call: Final = _Plan(ChoiceDeltaToolCall, {"index": int, "id": str, "type": str}, {"function": _function.one})
_delta: Final = _Plan(ChoiceDelta, {"content": str, "refusal": str, "role": str}, {"tool_calls": _call.many})
_choice: Final = _Plan(Choice, {"index": int, "finish_reason": str}, {"delta": _delta.one})
_NAMES: Final = ("id", "model", "object", "obfuscation", "service_tier", "system_fingerprint")
_chunk: Final = _Plan(ChatCompletionChunk, dict.fromkeys(_NAMES, str) | {"created": int}, {"choices": _choice.many})


def chunk_of(data: object) -> ChatCompletionChunk | None:
    """The chunk that the SDK would build of a decoded piece of a stream; None where that is for the SDK to say."""
    try:
        return cast(ChatCompletionChunk, _chunk.one(data))
    except _Odd:
        return None


class SlimOpenAI(AsyncOpenAI):
    """The SDK's client, with cheaper chunks."""

    def _process_response_data(self, *, data: object, cast_to: type[T], response: httpx2.Response) -> T:
        if cast_to is ChatCompletionChunk:
            made = chunk_of(data)
            if made is not None:
                return cast(T, made)
        return super()._process_response_data(data=data, cast_to=cast_to, response=response)


def openai_client(*, base_url: str, api_key: str, http_client: httpx2.AsyncClient) -> AsyncOpenAI:
    """The slim client, where the SDK and its classes are as we know them, else the SDK's own."""
    hook = getattr(AsyncOpenAI, "_process_response_data", None)
    known = hook is not None and tuple(inspect.signature(hook).parameters) == _HOOK
    holds = known and all(plan.holds for plan in (_function, _call, _delta, _choice, _chunk))
    client = SlimOpenAI if holds else AsyncOpenAI
    return client(base_url=base_url, api_key=api_key, http_client=http_client)
