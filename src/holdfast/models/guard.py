"""Gives every model request an end, and repeats it while nobody has seen anything of it.

Around any pydantic-ai model, the user's own and its fallbacks included: four limits (connect is the transport's;
first content, idle, whole request are `watch.Watch`'s), our own retries, and facts for the probe.

Retries happen before the first content only, and only for what a repetition may cure: a status (408, 409, 425, 429,
5xx) or a connection that failed or broke. A first-content timeout is not repeated: the caller has already waited for
as long as was allowed, and a model that is overloaded is not helped by more work. What was shown is never repeated
here; whether to begin again then is not ours to say.

The SDKs' own retries and timeouts are switched off (`max_retries` 0): they are invisible, and three times ten minutes
is no limit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, Final, NamedTuple, cast

from pydantic_ai import RunContext
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelConnectionError,
    ModelHTTPError,
    ModelQuotaExceededError,
    ModelTimeoutError,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIStreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from holdfast.config.settings import Settings
from holdfast.models.errors import ModelTruncated, refine
from holdfast.models.scope import current_scope
from holdfast.models.watch import Watch, is_content
from holdfast.ports.agent import ModelRequested, ModelRetried
from holdfast.ports.probe import current_probe

RETRIED_STATUSES: Final = frozenset({408, 409, 425, 429})
BACKOFF_S: Final = 0.5  # doubled with each retry, and spread by a fifth either way


class ModelLimits(NamedTuple):
    """The limits on one model request, in seconds, and how often it is repeated."""

    first_content_s: float
    idle_s: float
    request_s: float
    retries: int

    @classmethod
    def of(cls, settings: Settings) -> ModelLimits:
        """Those of the deployment."""
        return cls(
            settings.model_first_content_s,
            settings.model_idle_s,
            settings.model_request_s,
            settings.model_retries,
        )


class _Opened(NamedTuple):
    stream: StreamedResponse
    seen: list[ModelResponseStreamEvent]  # up to and with the first content
    rest: AsyncIterator[ModelResponseStreamEvent]


class GuardedModel(WrapperModel):
    """A model whose requests always end; see the module."""

    def __init__(self, wrapped: Model, limits: ModelLimits) -> None:
        """Guard `wrapped` with `limits`."""
        super().__init__(wrapped)
        self.limits = limits

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Always streams, because a request that does not stream cannot be told from one that hangs."""
        async with self.request_stream(messages, model_settings, model_request_parameters) as stream:
            async for _ in stream:
                pass
        return stream.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Open the request, with retries; leave it within the limits."""
        settings = self._without_sdk_retries(model_settings)
        attempt = 1
        while True:
            watch = self._watch()
            async with AsyncExitStack() as stack:
                try:
                    attempted = self._attempt(messages, settings, model_request_parameters, run_context)
                    opened = await self._until_content(stack, watch, attempted)
                except Exception as error:
                    refined = refine(error, self.model_name)
                    wait_s = self._retry_in(refined, attempt)
                    if wait_s is None:
                        if refined is error:
                            raise
                        raise refined from error
                    failure = refined
                else:
                    # The hook that pydantic-ai's own deadlines use: iterating the stream takes its events from here.
                    opened.stream._event_iterator = self._guarded(watch, opened)
                    yield opened.stream
                    return
            await self._before_retry(attempt, failure, wait_s)
            attempt += 1

    @asynccontextmanager
    async def _attempt(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings,
        parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None,
    ) -> AsyncGenerator[StreamedResponse]:
        """One request; the probe hears of its end only when its socket is closed or given back."""
        probe = current_probe()
        probe.upstream_opened()
        try:
            if _cannot_stream(self.wrapped):
                whole = await self.wrapped.request(messages, settings, parameters)
                yield CompletedStreamedResponse(whole, model_request_parameters=parameters, replay_events=True)
                return
            async with self.wrapped.request_stream(messages, settings, parameters, run_context) as stream:
                yield stream
        finally:
            probe.upstream_closed()

    async def _until_content(self, stack: AsyncExitStack, watch: Watch, attempted: Any) -> _Opened:
        stream: StreamedResponse = await watch.wait(stack.enter_async_context(attempted))
        rest = watch.events(aiter(stream))
        seen: list[ModelResponseStreamEvent] = []
        async for event in rest:
            current_probe().upstream_byte()
            seen.append(event)
            if is_content(event):
                break
        return _Opened(stream, seen, rest)

    async def _guarded(self, watch: Watch, opened: _Opened) -> AsyncIterator[ModelResponseStreamEvent]:
        """The whole stream again: what was already seen, then the rest, ended only by a real end."""
        probe = current_probe()
        for event in opened.seen:
            yield event
        try:
            async with aclosing(cast(AsyncGenerator[ModelResponseStreamEvent], opened.rest)) as rest:
                async for event in rest:
                    probe.upstream_byte()
                    yield event
        except Exception as error:
            refined = refine(error, self.model_name)
            if refined is error:
                raise
            raise refined from error
        if _lacks_finish(opened.stream):
            raise ModelTruncated(self.model_name)

    def _watch(self) -> Watch:
        limits = self.limits
        return Watch(self.model_name, current_probe(), limits.first_content_s, limits.idle_s, limits.request_s)

    def _without_sdk_retries(self, settings: ModelSettings | None) -> ModelSettings:
        merged = cast(ModelSettings, dict(settings or {}))
        if "max_retries" not in getattr(self.wrapped, "unsupported_settings", ()):
            merged["max_retries"] = 0
        return merged

    def _retry_in(self, error: Exception, attempt: int) -> float | None:
        """How long to wait before the next attempt; None if there is none."""
        if attempt > self.limits.retries or retry_reason(error) is None:
            return None
        wait_s = error.retry_after if isinstance(error, ModelAPIError) else None
        if wait_s is None:
            wait_s = BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret
        scope = current_scope()
        if scope is not None and asyncio.get_running_loop().time() + wait_s >= scope.deadline:
            return None
        return max(0.0, wait_s)

    async def _before_retry(self, attempt: int, error: Exception, wait_s: float) -> None:
        """Say that the request is repeated, then wait; the reader sees it while the wait goes on."""
        probe = current_probe()
        scope = current_scope()
        if scope is not None:
            reason = retry_reason(error) or "error"
            await scope.tell(ModelRetried(scope.step, attempt, reason, int(wait_s * 1000)))
        probe.waits("retry sleep", fires="retry", fires_in_s=wait_s)
        await asyncio.sleep(wait_s)
        if scope is not None:
            await scope.tell(ModelRequested(scope.step, self.model_name, attempt + 1))


def retry_reason(error: Exception) -> str | None:
    """Why repeating the request may help, as model.retried says it; None if it would not."""
    if isinstance(error, ModelQuotaExceededError):
        return None
    if isinstance(error, ModelHTTPError):
        retried = error.status_code in RETRIED_STATUSES or error.status_code >= 500
        return f"status_{error.status_code}" if retried and error.provider_retry_hint is not False else None
    if isinstance(error, ModelTimeoutError):
        return "connect_timeout" if error.phase in ("connect", "pool") else None
    if isinstance(error, ModelConnectionError):
        return "connect" if error.phase in ("connect", "pool") else "connection_lost"
    return None


def _cannot_stream(model: Model) -> bool:
    while isinstance(model, WrapperModel):
        model = model.wrapped
    if isinstance(model, FunctionModel):
        return model.stream_function is None
    return type(model).request_stream is Model.request_stream


def _lacks_finish(stream: StreamedResponse) -> bool:
    """Whether an OpenAI stream ended without saying why; pydantic-ai then makes a `stop` up."""
    if not isinstance(stream, OpenAIStreamedResponse) or stream.cancelled:
        return False
    details = stream.provider_details or {}
    return "finish_reason" not in details and "refusal" not in details
