"""What a run does when its model's context window is exceeded: send less, once, and say so.

Only what is sent is made smaller; the session's history stays whole in the store. To two fifths of what was refused,
because the last request fitted and what is new must fit by itself: half would do, if every character were worth the
same, and only one repetition is allowed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, cast

from pydantic_ai import RunContext
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelContextWindowExceededError,
    ModelHTTPError,
)
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from holdfast.agents.compaction import SHRINK_MIN, Compacted, compact, size_of
from holdfast.models import GuardedModel, ModelBadResponse
from holdfast.models.scope import current_scope
from holdfast.ports.agent import Degraded, ModelRequested, ModelRetried

KEEP: Final = 0.4  # of the size that was refused
_QUESTIONS: Final = 2
NO_CHUNK: Final = "ended without content"  # pydantic-ai's words for a stream that had no chunk at all
# Servers that say it in words which pydantic-ai does not know: llama.cpp's, LM Studio's, and others behind gateways.
_TYPES: Final = frozenset({"exceed_context_size_error"})
_PHRASES: Final = ("exceeds the available context size", "context length exceeded", "context window exceeded")


class Compactor:
    """What one run knows of its model's context window.

    Attributes:
        since: Where the run's own messages begin, behind those of the session.
    """

    def __init__(self) -> None:
        """Nothing was refused yet."""
        self.since = 0
        self._refused: int | None = None

    def ahead(self, messages: Sequence[ModelMessage]) -> Compacted | None:
        """`messages` made smaller, if the model has refused as much before; None to send them as they are."""
        if self._refused is None or size_of(messages) < self._refused:
            return None
        return compact(messages, self.since, int(self._refused * KEEP))

    def refused(self, messages: Sequence[ModelMessage], sent: Sequence[ModelMessage]) -> Compacted | None:
        """`messages` made smaller than what was `sent` and refused; None if that cannot be."""
        size = size_of(sent)
        self._refused = size if self._refused is None else min(size, self._refused)
        compacted = compact(messages, self.since, int(size * KEEP))
        return compacted if compacted is not None and size_of(compacted.messages) <= size * SHRINK_MIN else None


class CompactingModel(WrapperModel):
    """A model that is asked once more, with less, when its context window is exceeded."""

    def __init__(self, wrapped: Any, compactor: Compactor) -> None:
        """Wrap a guarded model; `compactor` is the run's."""
        super().__init__(wrapped)
        self._compactor = compactor

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Open the request; the guard below returns with the first content, so a refusal is met here."""
        sent = await self._sent(messages)
        async with AsyncExitStack() as stack:

            async def opened(what: list[ModelMessage]) -> StreamedResponse:
                opening = self.wrapped.request_stream(what, model_settings, model_request_parameters, run_context)
                return await stack.enter_async_context(opening)

            try:
                stream = await opened(sent)
            except ModelAPIError as error:
                why = await self._why(error, sent, model_settings, model_request_parameters)
                sent = await self._smaller(why, messages, sent)
                try:
                    stream = await opened(sent)
                except ModelAPIError as again:
                    if not is_overflow(again):
                        raise
                    raise _named(again) from again
            yield stream

    async def _sent(self, messages: list[ModelMessage]) -> list[ModelMessage]:
        compacted = self._compactor.ahead(messages)
        if compacted is None:
            return messages
        await _tell(compacted)
        return compacted.messages

    async def _why(
        self,
        error: ModelAPIError,
        sent: list[ModelMessage],
        settings: ModelSettings | None,
        given: ModelRequestParameters,
    ) -> ModelAPIError:
        """The failure itself, or of a stream without a single chunk what the server says of one that is whole.

        llama.cpp's Python server checks the size of a streamed request after it has sent its headers, and can then only
        hang up. One token is asked for, so that a request that is dropped does not run on for long.
        """
        guard = self.wrapped
        if (
            not isinstance(error, ModelBadResponse)
            or NO_CHUNK not in error.message
            or not isinstance(guard, GuardedModel)
        ):
            return error
        await _tell_retry("empty_stream", self.model_name)
        one = cast(ModelSettings, {**(settings or {}), "max_tokens": 1, "max_retries": 0})
        # Twice: such a server drops the connection behind its refusal, which may be in the pool again by then.
        for _ in range(_QUESTIONS):
            try:
                async with asyncio.timeout(guard.limits.first_content_s):
                    await guard.wrapped.request(sent, one, given)
            except ModelConnectionError:
                continue
            except Exception as said:  # noqa: BLE001 - what else goes wrong here, the first failure is the run's
                return said if isinstance(said, ModelAPIError) and is_overflow(said) else error
            return error
        return error

    async def _smaller(
        self, error: ModelAPIError, messages: list[ModelMessage], sent: list[ModelMessage]
    ) -> list[ModelMessage]:
        """What to send after a refusal; raises `error` if it is another one, or if nothing can be saved."""
        if not is_overflow(error):
            raise error
        compacted = self._compactor.refused(messages, sent)
        if compacted is None:
            raise _named(error)
        await _tell(compacted)
        await _tell_retry("context_window", self.model_name)
        return compacted.messages


def is_overflow(error: ModelAPIError) -> bool:
    """Whether the request was refused because it is larger than the model's context window."""
    if isinstance(error, ModelContextWindowExceededError):
        return True
    if not isinstance(error, ModelHTTPError) or error.status_code not in (400, 413, 422):
        return False
    said = str(error.body).lower()
    return error.provider_error_type in _TYPES or any(phrase in said for phrase in _PHRASES)


async def _tell(compacted: Compacted) -> None:
    scope = current_scope()
    if scope is not None:
        why = f"the model's context window was exceeded: {compacted.touched} messages of {compacted.of} were compacted"
        await scope.tell(Degraded("context", why))


async def _tell_retry(reason: str, model_name: str) -> None:
    scope = current_scope()
    if scope is not None:
        await scope.tell(ModelRetried(scope.step, scope.attempt, reason, 0))
        scope.attempt += 1
        await scope.tell(ModelRequested(scope.step, model_name, scope.attempt))


def _named(error: ModelAPIError) -> ModelAPIError:
    """The same refusal by its name, if it came under another."""
    if isinstance(error, ModelContextWindowExceededError) or not isinstance(error, ModelHTTPError):
        return error
    return ModelHTTPError.for_category(
        ModelContextWindowExceededError,
        status_code=error.status_code,
        model_name=error.model_name,
        body=error.body,
        provider_error_type=error.provider_error_type,
    )
