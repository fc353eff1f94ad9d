"""One attempt of one run of a pydantic-ai agent, from the input or the checkpoint to the result.

Driven only through `agent.iter()` and each node's stream. A resumed attempt takes the last complete response from its
checkpoint instead of asking for it again, so that finished tools keep their results and a finished answer stays the
answer that was shown.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pydantic_core
from pydantic_ai import Agent, AgentRun, CallToolsNode, DeferredToolRequests, ModelRequestNode
from pydantic_ai.exceptions import ModelAPIError, RunCancelled
from pydantic_ai.messages import (
    FunctionToolResultEvent,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    ToolCallPart,
    ToolReturnPart,
)
from pydantic_ai.result import AgentStream
from pydantic_ai.tools import DeferredToolResults
from pydantic_ai.usage import UsageLimits

from holdfast.agents import shape
from holdfast.agents.channel import Channel
from holdfast.agents.checkpoint import BadCheckpoint, Progress, Writer, as_one, read
from holdfast.agents.client_tools import HandedOver, external, handed
from holdfast.agents.deciding import requests_of, results_of
from holdfast.agents.delegation import Delegation, delegating
from holdfast.agents.history import call_ids, given_and_mended
from holdfast.agents.mcp import McpLimits
from holdfast.agents.mistakes import patient
from holdfast.agents.numbering import Numbering
from holdfast.agents.repeats import POLLING, Repeats
from holdfast.agents.restart import Restarts, afresh
from holdfast.agents.results import args_of, jsonable
from holdfast.agents.sampling import model_settings
from holdfast.agents.tooling import Hooks, ToolLimits, ToolRunner
from holdfast.domain.errors import AgentExit, RunEnded
from holdfast.domain.events import bounded
from holdfast.domain.runs import Reason
from holdfast.models import RequestScope, in_scope
from holdfast.ports.agent import (
    AgentEvent,
    AttemptDiscarded,
    Checkpoint,
    Degraded,
    ModelRequested,
    ModelResponded,
    PartDone,
    Result,
    RunContext,
    Steered,
    TextDelta,
    ToolCalled,
    ToolFinished,
    Waiting,
)
from holdfast.ports.probe import enter

if TYPE_CHECKING:
    from holdfast.agents.pydantic_ai import PydanticAgent


class Drive:
    """One attempt of one run."""

    def __init__(self, adapter: PydanticAgent, ctx: RunContext) -> None:
        """Take the agent behind the port, and the run."""
        settings = adapter.settings
        self.adapter = adapter
        self.ctx = ctx
        self.channel: Channel[AgentEvent] = Channel()
        self.failure: Exception | None = None
        self.tools = ToolRunner(ctx, ToolLimits.of(settings), adapter.owner, self.channel)
        self.repeats = Repeats(settings.tool_repeats_warn, settings.tool_repeats, self._polls)
        self.hooks = Hooks(self.tools, adapter.guard, McpLimits.of(settings), self._decide)
        self.scope = RequestScope(self._tell, ctx.deadline)
        self._writer = Writer()
        self._before: list[ModelMessage] = []  # this run's messages of earlier attempts
        self._known: frozenset[str] = frozenset()  # calls that earlier attempts have told of
        self._run: AgentRun[Any, Any] | None = None
        self._numbering = Numbering(ctx.first_part, (), self._is_output)
        self._requested_at = 0.0
        self._first_at: float | None = None
        self._steered: list[str] = []  # inputs that an earlier attempt has read, and the model has not
        self._told = False  # whether the log has the response at hand from an earlier attempt
        self._resumed: ModelResponse | None = None  # the response that an earlier attempt ended with
        self._stream: AgentStream[Any, Any] | None = None  # the response that is being shown
        self._restarts = Restarts(adapter.guard.limits.restarts if ctx.retracts else 0, ctx.deadline)

    async def drive(self) -> None:
        """From the input, or the checkpoint, to the result; a failure is kept, a cancellation passes."""
        enter(self.ctx.probe)
        try:
            with in_scope(self.scope), Agent.using_thread_executor(self.adapter.pool):
                await self._iterate()
        except asyncio.CancelledError as error:
            self._recover(error)
            raise
        except (SystemExit, KeyboardInterrupt) as error:  # in a task it would end the worker's loop, and all runs
            self._recover(error)
            self.failure = AgentExit(error)
        except HandedOver as over:
            await self._hand_over(over.calls)
        except Exception as error:  # noqa: BLE001 - translated at the outer edge, in `PydanticAgent.run`
            self._recover(error)
            self.failure = error

    async def _iterate(self) -> None:
        ctx, adapter = self.ctx, self.adapter
        given, past = given_and_mended(ctx.history, goes_on=not ctx.input)
        ctx.probe.history = shape.report(given, past)
        self.hooks.compactor.since = len(past)
        prompt, past = self._start(past)
        delegation = Delegation(adapter.guard, self.hooks.mcp, self.channel, ctx.deadline)
        async with (
            AsyncExitStack() as stack,
            adapter.agent.iter(
                prompt,
                message_history=past,
                model=adapter.model,
                instructions=ctx.instructions or None,
                model_settings=model_settings(ctx.settings),
                conversation_id=ctx.session or None,
                toolsets=external(ctx.tools),
                capabilities=[self.hooks],
            ) as run,
        ):
            self._run = run
            stack.enter_context(delegating(delegation))
            self._leave_steps_to_the_budget(run)
            run.ctx.deps.tool_manager = patient(run.ctx.deps.tool_manager)
            node = run.next_node
            while not Agent.is_end_node(node):
                if Agent.is_model_request_node(node):
                    node = await self._request(run, node)
                elif Agent.is_call_tools_node(node):
                    await self._tools(run, node)
                ctx.probe.waits("agent")
                node = await run.next(node)
        await self._finish(run)

    def _leave_steps_to_the_budget(self, run: AgentRun[Any, Any]) -> None:
        """The library's limit of 50 requests holds where nobody chose one; `budget_steps` is chosen."""
        deps, steps = run.ctx.deps, self.adapter.settings.budget_steps
        if deps.usage_limits == UsageLimits():
            deps.usage_limits = UsageLimits(request_limit=steps + 1 if steps else None)

    def _start(self, past: list[ModelMessage]) -> tuple[str | None, list[ModelMessage]]:
        """The prompt and the messages before it: the input anew, or where the checkpoint is."""
        taken = call_ids(past) | self.ctx.calls
        if not self.ctx.checkpoint:  # not by the attempt: a release, as a drain does it, counts none
            self._numbering = Numbering(self.ctx.first_part, taken, self._is_output)
            return self.ctx.input or None, past
        try:
            progress = read(self.ctx.checkpoint)
        except BadCheckpoint as error:
            raise RunEnded(
                Reason.AGENT_ERROR, "bad_checkpoint", str(error), remedy="start a new run with the same prompt"
            ) from error
        self._resume(progress)
        self._numbering = Numbering(self.ctx.first_part, taken | self._known, self._is_output)
        return None, [*past, *self._before]

    def _resume(self, progress: Progress) -> None:
        messages = progress.messages
        self._known = frozenset(call_ids(messages))
        self.repeats.recall(messages)
        self.scope.step = progress.step
        if messages and isinstance(messages[-1], ModelResponse):
            self.hooks.replay = self._resumed = messages[-1]
            self.tools.finished = dict(progress.finished)
            self.tools.in_flight = frozenset(progress.in_flight())
            self.tools.asked = progress.asked
            self._steered = progress.steered
            self._writer.resume(progress)
            messages = messages[:-1]
        self._before = list(messages)

    async def _request(self, run: AgentRun[Any, Any], node: ModelRequestNode[Any, Any]) -> ModelRequestNode[Any, Any]:
        """Stream one response, begun anew where it broke off; the node that has it."""
        self._told = self.hooks.replay is not None
        if not self._told:
            if self.scope.step:
                await self._steer(run)
            self.scope.begin_step()
        self._restarts.begin()
        while True:
            try:
                await self._respond_to(run, node)
            except ModelAPIError as error:
                reason = self._restarts.reason(error, node, self._stream)
                if reason is None:
                    raise
            else:
                return node
            self._stream = None
            node = afresh(run, node)
            parts, calls = self._numbering.drop()
            await self.channel.send(AttemptDiscarded(self.scope.step, reason, parts, calls))
            self.scope.attempt += 1

    async def _respond_to(self, run: AgentRun[Any, Any], node: ModelRequestNode[Any, Any]) -> None:
        """Stream one response; of one that is replayed, the log has everything already."""
        self._stream = None
        if not self._told:
            await self._tell(ModelRequested(self.scope.step, self._model_name(run), self.scope.attempt))
        self._numbering.begin()
        self._requested_at, self._first_at = time.monotonic(), None
        async with node.stream(run.ctx) as stream:
            self._stream = stream
            async for event in stream:
                if self._told:
                    continue
                for told in self._numbering.events(event):
                    if self._first_at is None:
                        self._first_at = time.monotonic()
                    if isinstance(told, TextDelta):
                        self._restarts.discarded = None
                    await self.channel.send(told)

    async def _tell(self, event: AgentEvent) -> None:
        """Pass an event on; a request begins only when the reader lets it, who may doubt the worker's lease."""
        await self.channel.send(event)
        if isinstance(event, ModelRequested):
            await self.channel.settle()

    async def _tools(self, run: AgentRun[Any, Any], node: CallToolsNode[Any, Any]) -> None:
        """Tell of the whole response, make it durable, and only then let its tools start."""
        self._stream = None
        if not self._told:
            await self._respond(run, node.model_response)
        async with node.stream(run.ctx) as stream:
            async for event in stream:
                if isinstance(event, FunctionToolResultEvent) and isinstance(event.part, ToolReturnPart):
                    await self._finished(event.part, event.content)

    async def _respond(self, run: AgentRun[Any, Any], response: ModelResponse) -> None:
        self._restarts.discarded = None
        for done in self._numbering.end():
            await self.channel.send(done)
        self._numbering.name_calls(response)
        await self.channel.send(self._responded(run, response))
        calls = [p for p in response.parts if isinstance(p, ToolCallPart) and not self._is_output(p.tool_name)]
        for part in calls:
            await self.channel.send(ToolCalled(part.tool_call_id, part.tool_name, bounded(args_of(part))))
        for said in self.repeats.look(calls, self.tools.notes):
            await self.channel.send(Degraded("tool_loop", said))
        await self.channel.send(Checkpoint(self._writer.messages(self.scope.step, self._messages(run))))
        await self.channel.settle()

    async def _decide(self, deferred: DeferredToolRequests) -> DeferredToolResults:
        """What was decided about the calls of this step; if anything was not, ask, and go no further."""
        decisions = {each["call"]: each for each in self.ctx.decisions}
        known = decisions.keys() | self.tools.finished.keys()
        theirs = handed(deferred, self.ctx.tools)
        if theirs:
            raise HandedOver(theirs)
        undecided = [part for part in [*deferred.approvals, *deferred.calls] if part.tool_call_id not in known]
        if undecided:
            requests = requests_of(deferred, undecided)
            await self.channel.send(Waiting(requests, self._writer.asked({r.call: r.kind for r in requests})))
            await self.channel.settle()  # the reader leaves us here
        elif self.tools.asked:  # from here on a call that has no result may have run
            await self.channel.send(Checkpoint(self._writer.asked({})))
            await self.channel.settle()
        return results_of(deferred, decisions, self.tools.finished, self.tools.outcomes)

    async def _steer(self, run: AgentRun[Any, Any]) -> None:
        """Between two steps: what the user wrote meanwhile goes into the next request."""
        texts, self._steered = self._steered, []
        for n, text in [(item.n, item.input) for item in await self.ctx.inbox()]:
            await self.channel.send(Steered(n, text, self._writer.steered(text)))
            texts.append(text)
        if texts:
            await self.channel.settle()
            run.enqueue(as_one(texts))

    async def _finished(self, part: ToolReturnPart, content: Any) -> None:
        call = part.tool_call_id
        if call in self.tools.finished:
            return
        await self.channel.send(
            ToolFinished(
                call=call,
                name=part.tool_name,
                outcome=self.tools.outcome(part),
                result=bounded(jsonable(part.content)),
                duration_ms=self.tools.duration_ms(call),
                checkpoint=self._writer.finished(call, part, content),
            )
        )

    async def _finish(self, run: AgentRun[Any, Any]) -> None:
        result = run.result
        if result is None:
            raise RunEnded(Reason.AGENT_ERROR, "no_result", "the agent ended without a result")
        output = result.output
        text = output if isinstance(output, str) else pydantic_core.to_json(output, fallback=str).decode()
        if not isinstance(output, str) and result.response.tool_calls:
            part = self._numbering.next_part()  # an answer given through a tool was not streamed as text
            await self.channel.send(TextDelta(part, text))
            await self.channel.send(PartDone(part))
        await self.channel.send(Result(text, self._writer.messages(self.scope.step, self._messages(run))))

    async def _hand_over(self, calls: tuple[str, ...]) -> None:
        """End the run with calls that the client answers; what else its last step did is kept."""
        if self._run is None:
            return
        messages = self._messages(self._run)
        last = next((message for message in reversed(messages) if isinstance(message, ModelResponse)), None)
        text = (last.text if last is not None else None) or ""
        await self.channel.send(Result(text, self._writer.recovered(self.scope.step, messages), calls))

    def _messages(self, run: AgentRun[Any, Any]) -> list[ModelMessage]:
        """This run's messages so far, those of earlier attempts included."""
        return self._own(self._new(run))

    def _new(self, run: AgentRun[Any, Any]) -> list[ModelMessage]:
        """What this attempt added; the results that it went on from are of the session, not of the run."""
        new = run.new_messages()
        first = new[0] if new else None
        given = not self.ctx.input and not self._before and isinstance(first, ModelRequest)
        return new[1:] if given else new

    def _own(self, new: list[ModelMessage]) -> list[ModelMessage]:
        """`new` behind what earlier attempts have: pydantic-ai may count a replayed response as not new."""
        resumed = self._resumed
        if resumed is None:
            return [*self._before, *new]
        if self.hooks.replay is not None:
            return [*self._before, resumed]
        has_it = bool(new) and isinstance(new[0], ModelResponse)
        return [*self._before, *([] if has_it else [resumed]), *new]

    def _recover(self, error: BaseException) -> None:
        """Keep what the run has, for the session's history."""
        if self._run is None and not self._before:
            return
        lost = RunCancelled.from_cancellation(error)
        new = lost.new_messages() if lost is not None else self._new(self._run) if self._run is not None else []
        messages = self._restarts.with_discarded(self._shown(self._own(new)))
        begun = messages and (isinstance(messages[0], ModelRequest) or not self.ctx.input)
        if begun:  # else the log knows more: the input, at least
            self.ctx.recovered = self._writer.recovered(self.scope.step, messages)

    def _shown(self, messages: list[ModelMessage]) -> list[ModelMessage]:
        """`messages` with what was streamed since: just before and after a stream the loop keeps no part of it."""
        last = messages[-1] if messages else None
        if self._stream is None or (isinstance(last, ModelResponse) and last.parts):
            return messages
        shown = self._stream.response
        if not shown.parts or any(list(message.parts) == list(shown.parts) for message in messages):
            return messages
        return [*messages, replace(shown, state="interrupted")]

    def _responded(self, run: AgentRun[Any, Any], response: ModelResponse) -> ModelResponded:
        now = time.monotonic()
        details = response.provider_details or {}
        raw = details.get("finish_reason") or response.finish_reason
        usage = response.usage
        counts = {name: value for name, value in vars(usage).items() if isinstance(value, int) and value}
        return ModelResponded(
            step=self.scope.step,
            model=response.model_name or self._model_name(run),
            finish_reason=str(raw) if raw else None,
            usage={"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens, **counts},
            ttft_ms=None if self._first_at is None else int((self._first_at - self._requested_at) * 1000),
            duration_ms=int((now - self._requested_at) * 1000),
        )

    def _model_name(self, run: AgentRun[Any, Any]) -> str:
        return run.ctx.deps.model.model_name

    def _polls(self, tool: str) -> bool:
        """Whether a tool says of itself that it is asked the same thing again and again."""
        tool_def = self._run.ctx.deps.tool_manager.get_tool_def(tool) if self._run is not None else None
        return tool_def is not None and bool((tool_def.metadata or {}).get(POLLING))

    def _is_output(self, tool: str) -> bool:
        """Whether a tool is the form of the answer, not work of its own."""
        run = self._run
        if run is None:
            return False
        tool_def = run.ctx.deps.tool_manager.get_tool_def(tool)
        return tool_def is not None and tool_def.kind == "output"
