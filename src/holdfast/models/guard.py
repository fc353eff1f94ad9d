"""Gives every model request an end, and repeats it while nobody has seen anything of it.

Around any pydantic-ai model, the user's own and its fallbacks included: four limits (connect is the transport's;
first content, idle, whole request are `watch.Watch`'s), our own retries, a breaker per upstream, the fallbacks that
the deployment has set, and facts for the probe.

Retries happen before the first content only, and only for what a repetition may cure: a status (408, 409, 425, 429,
5xx) or a connection that failed or broke. A first-content timeout is not repeated: the caller has already waited for
as long as was allowed, and a model that is overloaded is not helped by more work. What was shown is never repeated
here; whether to begin again then is the adapter's to say, who knows what was shown (`verdicts.restart_reason`).

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
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent
from pydantic_ai.models import CompletedStreamedResponse, Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.openai import OpenAIStreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings

from holdfast.models.breaker import Pass
from holdfast.models.errors import ModelBreakerOpen, ModelTruncated, refine
from holdfast.models.routes import ModelGuard, ModelLimits, Route
from holdfast.models.scope import current_scope
from holdfast.models.verdicts import fallback_reason, retry_reason
from holdfast.models.watch import Watch, is_content
from holdfast.ports.agent import Degraded, ModelRequested, ModelRetried
from holdfast.ports.probe import current_probe

BACKOFF_S: Final = 0.5  # doubled with each retry, and spread by a fifth either way


class _Asked(NamedTuple):
    messages: list[ModelMessage]
    settings: ModelSettings | None
    parameters: ModelRequestParameters
    run_context: RunContext[Any] | None


class _Opened(NamedTuple):
    stream: StreamedResponse
    seen: list[ModelResponseStreamEvent]  # up to and with the first content
    rest: AsyncIterator[ModelResponseStreamEvent]
    passed: Pass
    model_name: str


class GuardedModel(WrapperModel):
    """A model whose requests always end; see the module."""

    def __init__(self, wrapped: Model, limits: ModelLimits, guard: ModelGuard | None = None) -> None:
        """Guard `wrapped` with `limits`, and with what it shares with the others of its process."""
        super().__init__(wrapped)
        self.limits = limits
        self.guard = guard if guard is not None else ModelGuard(limits)

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
        """Open the request, with retries and fallbacks; leave it within the limits."""
        asked = _Asked(messages, model_settings, model_request_parameters, run_context)
        async with AsyncExitStack() as stack:
            opened = await self._first_to_answer(stack, asked)
            # The hook that pydantic-ai's own deadlines use: iterating the stream takes its events from here.
            opened.stream._event_iterator = self._guarded(opened)
            yield opened.stream

    async def _first_to_answer(self, stack: AsyncExitStack, asked: _Asked) -> _Opened:
        """The first route that gives any content; `stack` then holds what it stands on."""
        route, *others = self.guard.routes(self.wrapped, self.limits)
        while True:
            try:
                return await self._with_retries(stack, route, asked)
            except Exception as error:
                taken = _next_route(error, route, others)
                if taken is None:
                    raise
                failed, (route, others, why) = route, taken
            await _announce(failed, route, why)
            asked = _for_route(asked, route)

    async def _with_retries(self, stack: AsyncExitStack, route: Route, asked: _Asked) -> _Opened:
        """One route's first content, or the failure that no repetition may cure."""
        attempt = 1
        failure: Exception | None = None
        while True:
            try:
                return await self._attempt(stack, route, asked)
            except ModelBreakerOpen:
                if failure is not None:  # what opened it says more
                    raise failure from failure.__cause__
                raise
            except Exception as error:
                failure = refined = refine(error, route.model.model_name)
                wait_s = _retry_in(route, refined, attempt)
                if wait_s is None:
                    if refined is error:
                        raise
                    raise refined from error
            await _before_retry(route, failure, wait_s)
            attempt += 1

    async def _attempt(self, stack: AsyncExitStack, route: Route, asked: _Asked) -> _Opened:
        """One request up to its first content; what it opened is closed again, or handed to `stack`."""
        name = route.model.model_name
        probe = current_probe()
        limits = route.limits
        watch = Watch(name, probe, limits.first_content_s, limits.idle_s, limits.request_s)
        async with AsyncExitStack() as held:
            passed = held.enter_context(route.breaker.admit(name))
            try:
                stream: StreamedResponse = await watch.wait(held.enter_async_context(_request(route, asked)))
                rest = watch.events(aiter(stream))
                seen: list[ModelResponseStreamEvent] = []
                async for event in rest:
                    probe.upstream_byte()
                    seen.append(event)
                    if is_content(event):
                        passed.content()
                        break
                else:
                    if _lacks_finish(stream):
                        raise ModelTruncated(name)  # noqa: TRY301 - as if the stream had raised it
            except Exception as error:
                passed.failed(refine(error, name))
                raise
            stack.push_async_exit(held.pop_all())
        return _Opened(stream, seen, rest, passed, name)

    async def _guarded(self, opened: _Opened) -> AsyncIterator[ModelResponseStreamEvent]:
        """The whole stream again: what was already seen, then the rest, ended only by a real end."""
        probe = current_probe()
        for event in opened.seen:
            yield event
        try:
            async with aclosing(cast(AsyncGenerator[ModelResponseStreamEvent], opened.rest)) as rest:
                async for event in rest:
                    probe.upstream_byte()
                    yield event
            if _lacks_finish(opened.stream):
                raise ModelTruncated(opened.model_name)  # noqa: TRY301 - as if the stream had raised it
        except Exception as error:
            refined = refine(error, opened.model_name)
            opened.passed.failed(refined)
            if refined is error:
                raise
            raise refined from error
        opened.passed.succeeded()


@asynccontextmanager
async def _request(route: Route, asked: _Asked) -> AsyncGenerator[StreamedResponse]:
    """One request; the probe hears of its end only when its socket is closed or given back."""
    model, (messages, given, parameters, run_context) = route.model, asked
    settings = _without_sdk_retries(model, given)
    probe = current_probe()
    probe.upstream_opened()
    try:
        if route.whole or _cannot_stream(model):
            whole = await model.request(messages, settings, parameters)
            yield CompletedStreamedResponse(whole, model_request_parameters=parameters, replay_events=True)
            return
        async with model.request_stream(messages, settings, parameters, run_context) as stream:
            yield stream
    finally:
        probe.upstream_closed()


def is_guarded(model: Model) -> bool:
    """Whether a guard is among the wrappers of `model`: one is enough."""
    while isinstance(model, WrapperModel):
        if isinstance(model, GuardedModel):
            return True
        model = model.wrapped
    return False


def _without_sdk_retries(model: Model, settings: ModelSettings | None) -> ModelSettings:
    merged = cast(ModelSettings, dict(settings or {}))
    if "max_retries" not in getattr(model, "unsupported_settings", ()):
        merged["max_retries"] = 0
    return merged


def _retry_in(route: Route, error: Exception, attempt: int) -> float | None:
    """How long to wait before the next attempt; None if there is none."""
    if attempt > route.limits.retries or retry_reason(error) is None:
        return None
    wait_s = error.retry_after if isinstance(error, ModelAPIError) else None
    if wait_s is None:
        wait_s = BACKOFF_S * 2 ** (attempt - 1) * random.uniform(0.8, 1.2)  # noqa: S311 - no secret  # nosec B311
    wait_s = max(0.0, wait_s)
    scope = current_scope()
    if scope is not None and asyncio.get_running_loop().time() + wait_s >= scope.deadline:
        return None
    return wait_s if route.breaker.would_admit(wait_s) else None


async def _before_retry(route: Route, error: Exception, wait_s: float) -> None:
    """Say that the request is repeated, then wait; the reader sees it while the wait goes on."""
    probe = current_probe()
    scope = current_scope()
    if scope is not None:
        reason = retry_reason(error) or "error"
        await scope.tell(ModelRetried(scope.step, scope.attempt, reason, int(wait_s * 1000)))
    probe.waits("retry sleep", fires="retry", fires_in_s=wait_s)
    await asyncio.sleep(wait_s)
    await _tell_requested(route)


def _next_route(error: Exception, failed: Route, others: list[Route]) -> tuple[Route, list[Route], str] | None:
    """The next way to ask that may help, those after it, and why; None where none is left."""
    while others:
        route, *others = others
        why = fallback_reason(error, same_upstream=route.model is failed.model)
        if why is not None or failed.whole:  # the stream's failure has said already that another way may help
            return route, others, why or type(error).__name__
    return None


async def _announce(failed: Route, route: Route, why: str) -> None:
    scope = current_scope()
    if scope is not None:
        asked = failed.falls_to or failed.model.model_name
        await scope.tell(Degraded("model", f"{asked} failed ({why}); asking {route.falls_to} instead"))
    await _tell_requested(route)


async def _tell_requested(route: Route) -> None:
    scope = current_scope()
    if scope is not None:
        scope.attempt += 1
        await scope.tell(ModelRequested(scope.step, route.model.model_name, scope.attempt))


def _for_route(asked: _Asked, route: Route) -> _Asked:
    """The same request in the form that another model takes."""
    if route.whole:
        return asked
    return asked._replace(messages=route.model.prepare_messages(asked.messages, asked.parameters))


def _cannot_stream(model: Model) -> bool:
    while isinstance(model, WrapperModel):
        model = model.wrapped
    if isinstance(model, FunctionModel):
        return model.stream_function is None
    return type(model).request_stream is Model.request_stream


def _lacks_finish(stream: StreamedResponse) -> bool:
    """Whether a stream ended without saying why; of an OpenAI chat stream pydantic-ai then makes a `stop` up."""
    if stream.cancelled:
        return False
    if not isinstance(stream, OpenAIStreamedResponse):
        return stream.state == "incomplete" and stream.finish_reason is None
    details = stream.provider_details or {}
    return "finish_reason" not in details and "refusal" not in details
