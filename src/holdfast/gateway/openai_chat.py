"""/v1/chat/completions and /v1/models: OpenAI's forms over the same log.

A streamed chat completion cannot take text back and cannot be resumed. So its run begins no answer anew, an attempt
that is discarded all the same (its worker died) ends the stream with an error, and a client that leaves stops its run
unless it asked otherwise.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.digest import Digest
from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import TERMINAL, EventType, decode_event, encode_json
from holdfast.domain.runs import OnDisconnect, Policy, Reason
from holdfast.engine.sessions import StartRequest
from holdfast.gateway.bodies import check_id, check_input, check_metadata, idempotency_key, read_json
from holdfast.gateway.events import LogStream, Offset, open_log
from holdfast.gateway.gate import Gate
from holdfast.gateway.openai_messages import ChatBody, choose_agent, conversation, refuse_unsupported, sampling
from holdfast.gateway.openai_tools import Handed, check_answers, check_takes_tools, client_tools
from holdfast.gateway.openai_whole import WholeAnswer, named
from holdfast.gateway.problems import OpenAIError, openai_document
from holdfast.gateway.requests import tenant_of, trace_of
from holdfast.gateway.routes import Answer, Operation, answer
from holdfast.gateway.runs import IDEMPOTENCY_KEY, SESSION_ID, made
from holdfast.ports.store import Page, RunRecord, Status

STATUS_OF: Final[dict[Reason, int]] = {
    Reason.SUPERSEDED: 409,
    Reason.STOPPED: 409,
    Reason.CLIENT_DISCONNECT: 409,
    Reason.MODEL_ERROR: 502,
    Reason.MODEL_STALLED: 502,
    Reason.DEADLINE: 504,
    Reason.QUEUE_TIMEOUT: 503,
    Reason.WORKER_LOST: 503,
    Reason.STORE_ERROR: 503,
    Reason.SHUTDOWN: 503,
    Reason.BUDGET: 429,
    Reason.AGENT_ERROR: 500,
    Reason.TOOL_ERROR: 500,
}
DONE = b"data: [DONE]\n\n"
_FINISH = frozenset({"stop", "length", "content_filter"})


class ModelItem(msgspec.Struct):
    """A served agent as OpenAI lists models."""

    id: str
    created: int = 0
    object: str = "model"
    owned_by: str = "holdfast"


class ModelList(msgspec.Struct):
    """What is served."""

    data: list[ModelItem]
    object: str = "list"


class ChatEncoder:
    """chat.completion.chunk objects of one run's log. Pure: a function of the events it was given."""

    media_type = "text/event-stream"
    keepalive = b": keepalive\n\n"

    def __init__(self, record: RunRecord, *, include_usage: bool) -> None:
        """Take what every chunk repeats."""
        self._ended = False
        self._shown: set[int] = set()
        self._text_shown = False
        self._finish = "stop"
        self._handed = Handed()
        self._include_usage = include_usage
        self._frame = {
            "id": f"chatcmpl-{record.key.run}",
            "object": "chat.completion.chunk",
            "created": record.created_at // 1000,
            "model": record.spec.agent,
        }

    def begin(self) -> bytes:
        """The role, at once, so that the client has headers and a body before the model's first word."""
        return self._chunk({"role": "assistant", "content": ""})

    def ended(self) -> bool:
        """After [DONE] nothing is written."""
        return self._ended

    def page(self, page: Page) -> bytes:
        """The chunks of a page's events."""
        out = []
        for data in page.events:
            if self._ended:
                break
            event = decode_event(data)
            out.append(self._event(event["type"], event))
        return b"".join(out)

    def notice(self, kind: str, fields: dict[str, Any]) -> bytes:
        """A log that cannot be read on ends the stream with an error."""
        if kind == "resync":
            return b""
        return self._failed("run_failed", fields.get("code", kind), str(fields.get("detail", kind)))

    def _event(self, kind: str, event: dict[str, Any]) -> bytes:
        self._handed.feed(kind, event)
        match kind:
            case EventType.TEXT_DELTA:
                self._shown.add(event["part"])
                self._text_shown = True
                return self._chunk({"content": event["text"]})
            case EventType.REASONING_DELTA:
                self._shown.add(event["part"])
                return self._chunk({"reasoning_content": event["text"]})
            case EventType.ATTEMPT_DISCARDED:
                if self._shown.isdisjoint(event.get("parts", ())):
                    return b""
                why = f"the answer so far was withdrawn ({event.get('reason')}), which this protocol cannot say"
                return self._failed("run_failed", "attempt_discarded", why)
            case EventType.MODEL_RESPONDED:
                self._finish = finish_reason(event.get("finish_reason"))
                return b""
            case EventType.RUN_COMPLETED:
                return self._completed(event)
            case EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                return self._failed(*ending(kind, event))
            case _:
                return b""

    def _completed(self, event: dict[str, Any]) -> bytes:
        self._ended = True
        output = event.get("output")
        late = b"" if self._text_shown or not isinstance(output, str) else self._chunk({"content": output})
        calls = self._handed.calls()
        if calls:
            late += self._chunk({"tool_calls": [{"index": n, **call} for n, call in enumerate(calls)]})
        end = self._chunk({}, "tool_calls" if calls else self._finish)
        if self._include_usage:
            end += self._data({**self._frame, "choices": [], "usage": usage(event.get("usage"))})
        return late + end + DONE

    def _failed(self, kind: str, code: str, message: str) -> bytes:
        self._ended = True
        return self._data({"error": {"message": message, "type": kind, "code": code}}) + DONE

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        usage_field = {"usage": None} if self._include_usage else {}
        return self._data({**self._frame, "choices": [choice], **usage_field})

    @staticmethod
    def _data(value: dict[str, Any]) -> bytes:
        return b"data: %b\n\n" % encode_json(value)


class WholeCompletion:
    """The fold from a log to a completion that is not streamed, with a status that says how the run ended."""

    def __init__(self, record: RunRecord) -> None:
        """Begin before the first event."""
        self._record = record
        self._digest = Digest()
        self._handed = Handed()
        self._last: dict[str, Any] = {}

    def feed(self, event: dict[str, Any]) -> None:
        """Take the next event."""
        self._digest.feed(event["type"], event)
        self._handed.feed(event["type"], event)
        self._last = event

    def answer(self) -> Response:
        """The completion, or the error that the run ended with."""
        last, digest, calls = self._last, self._digest, self._handed.calls()
        kind = last.get("type", "")
        if kind not in TERMINAL:
            lost = HoldfastError("internal", "the log ended without a terminal event")
            return answer(openai_document(lost), lost.status)
        if kind != EventType.RUN_COMPLETED:
            type_, code, message = ending(kind, last)
            status = STATUS_OF.get(Reason(code), 500) if code in set(Reason) else 500
            headers = {"Retry-After": "1"} if status in (429, 503) else None
            return answer({"error": {"message": message, "type": type_, "code": code}}, status, headers)
        output = last.get("output")
        text = output if isinstance(output, str) else digest.text()
        said: dict[str, Any] = {"role": "assistant", "content": (text or None) if calls else text}
        if calls:
            said["tool_calls"] = calls
        why = "tool_calls" if calls else finish_reason(digest.finish_reason)
        choice = {"index": 0, "message": said, "finish_reason": why, "logprobs": None}
        return answer(
            {
                "id": f"chatcmpl-{self._record.key.run}",
                "object": "chat.completion",
                "created": self._record.created_at // 1000,
                "model": self._record.spec.agent,
                "choices": [choice],
                "usage": usage(last.get("usage")),
            }
        )


async def create_completion(gate: Gate, request: Request) -> Response:
    """POST /v1/chat/completions."""
    body = await read_json(request, ChatBody, gate.settings.body_bytes)
    session = request.headers.get("x-session-id", "")
    if session:
        check_id(session, "X-Session-Id")
    refuse_unsupported(body)
    asked = conversation(body, in_session=bool(session))
    tools = client_tools(body.tools, body.tool_choice, nested=True)
    on_disconnect = body.on_disconnect or OnDisconnect.CANCEL
    agents = list(gate.sessions.agents())
    agent = choose_agent(body.model, [each.name for each in agents])
    if tools or asked.goes_on:
        check_takes_tools(agent, agents)
    tenant = tenant_of(request)
    if session:
        await check_answers(gate, tenant, session, asked.context, "messages")
    created = await gate.sessions.start(
        tenant,
        StartRequest(
            input="" if asked.goes_on else check_input(asked.prompt, gate.settings.input_bytes),
            session=session,
            agent=agent,
            on_busy=body.on_busy or Policy.SUPERSEDE,
            on_disconnect=on_disconnect,
            metadata=check_metadata(body.metadata or {}),
            instructions=asked.instructions,
            settings=sampling(body),
            context=asked.context,
            remember=bool(session),
            tools=tools,
            protocol="openai.chat",
            idempotency_key=idempotency_key(request),
            trace=trace_of(request),
            retracts=not body.stream,
            listens=True,
        ),
    )
    record = made(created)
    listens = on_disconnect is OnDisconnect.CANCEL and created.status is Status.OK
    opening = await open_log(gate, record.key, Offset())
    if not body.stream:
        return WholeAnswer(gate, record, opening, WholeCompletion(record), listens=listens)
    options = body.stream_options
    encoder = ChatEncoder(record, include_usage=bool(options and options.include_usage))
    return LogStream(
        gate,
        record.key,
        opening,
        encoder,
        headers=named(record),
        listens=listens,
        resumes=False,
    )


async def list_models(gate: Gate, request: Request) -> Response:
    """GET /v1/models: the served agents."""
    return answer(ModelList([ModelItem(agent.name) for agent in gate.sessions.agents()]))


async def get_model(gate: Gate, request: Request) -> Response:
    """GET /v1/models/{model}: one of the served agents."""
    name = request.path_params["model"]
    served = [agent.name for agent in gate.sessions.agents()]
    if name not in served:
        raise HoldfastError("unknown_agent", f"no model {name[:200]!r}; served are {', '.join(served)}", param="model")
    return answer(ModelItem(name))


def ending(kind: str, event: dict[str, Any]) -> tuple[str, str, str]:
    """How a run that did not complete is told: OpenAI's type, the reason as code, and a message."""
    reason = str(event.get("reason", ""))
    error = event.get("error") or {}
    message = error.get("message") or f"the run was {reason.replace('_', ' ')}"
    if error.get("remedy"):
        message = f"{message}; {error['remedy']}"
    return ("run_cancelled" if kind == EventType.RUN_CANCELLED else "run_failed"), reason, message


def usage(counted: dict[str, Any] | None) -> dict[str, int]:
    """A run's usage in OpenAI's names."""
    found = counted or {}
    prompt, completion = int(found.get("input_tokens", 0)), int(found.get("output_tokens", 0))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def finish_reason(said: object) -> str:
    """A model's finish reason as OpenAI's; a turn that ended in tool calls went on, so its word is not the last."""
    return said if isinstance(said, str) and said in _FINISH else "stop"


OPERATIONS = (
    Operation(
        "POST",
        "/v1/chat/completions",
        create_completion,
        "Create a chat completion, streamed or not",
        (
            Answer(200, "The completion, or its chunks", dict[str, Any], ("text/event-stream",)),
            *(
                Answer(status, f"The run ended: {HTTPStatus(status).phrase}", OpenAIError)
                for status in sorted(set(STATUS_OF.values()))
            ),
        ),
        body=ChatBody,
        headers=(
            SESSION_ID,
            IDEMPOTENCY_KEY,
        ),
        errors=("unknown_agent", "gone"),
    ),
    Operation(
        "GET",
        "/v1/models",
        list_models,
        "List the served agents",
        (Answer(200, "The agents", ModelList),),
    ),
    Operation(
        "GET",
        "/v1/models/{model}",
        get_model,
        "Get a served agent",
        (Answer(200, "The agent", ModelItem),),
        errors=("unknown_agent",),
    ),
)
