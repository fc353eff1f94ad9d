"""/v1/responses: OpenAI's Responses API over the same log.

A response is a run, `resp_<run>`, and a chain of responses is a session: a response that continues the last one of its
session is the session's next run; one that continues an earlier one begins a session that is a copy up to there.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.errors import HoldfastError
from holdfast.domain.events import decode_event
from holdfast.domain.ids import RunKey
from holdfast.domain.runs import OnDisconnect, Policy
from holdfast.engine.sessions import StartRequest
from holdfast.gateway.bodies import check_id, check_input, check_metadata, idempotency_key, read_json
from holdfast.gateway.events import LogStream, Offset, Opening, open_log
from holdfast.gateway.gate import Gate
from holdfast.gateway.openai_inputs import ResponseBody, asked_of, refuse_unsupported, sampling_of
from holdfast.gateway.openai_messages import choose_agent
from holdfast.gateway.openai_response import PREFIX, ResponseEncoder, ResponseLog
from holdfast.gateway.openai_tools import check_answers, check_takes_tools, client_tools
from holdfast.gateway.openai_whole import WholeAnswer, named
from holdfast.gateway.problems import invalid
from holdfast.gateway.requests import tenant_of, trace_of
from holdfast.gateway.routes import Answer, Operation, Query, answer
from holdfast.gateway.runs import BY, IDEMPOTENCY_KEY, SESSION_ID, made
from holdfast.ports.store import RunRecord, Status

PROTOCOL: Final = "openai.responses"
_CANCEL_MARGIN_S: Final = 1.5  # above the grace: by then a stopped run has its end, whatever it does
_PAGE_EVENTS: Final = 500
_NUMBER_DIGITS: Final = 15


class Deleted(msgspec.Struct):
    """A response that was forgotten."""

    id: str
    object: str = "response"
    deleted: bool = True


class WholeResponse(ResponseLog):
    """The fold from a log to a response that is not streamed, whatever its end was."""

    def answer(self) -> Response:
        """The object."""
        return answer(self.value())


async def create_response(gate: Gate, request: Request) -> Response:
    """POST /v1/responses: streamed or not, in the background or not."""
    body = await read_json(request, ResponseBody, gate.settings.body_bytes)
    refuse_unsupported(body)
    asked = asked_of(body, continues=body.previous_response_id is not None)
    tools = client_tools(body.tools, body.tool_choice, nested=False)
    agents = list(gate.sessions.agents())
    agent = choose_agent(body.model, [each.name for each in agents])
    if tools or asked.goes_on:
        check_takes_tools(agent, agents)
    tenant = tenant_of(request)
    session, follows = await _place(gate, tenant, body, request.headers.get("x-session-id", ""))
    if session:
        await check_answers(gate, tenant, session, asked.context, "input")
    background = bool(body.background)
    on_disconnect = body.on_disconnect or (OnDisconnect.CONTINUE if background else OnDisconnect.CANCEL)
    if background and on_disconnect is OnDisconnect.CANCEL:
        raise invalid("on_disconnect: a background response is not cancelled with its client", param="on_disconnect")
    created = await gate.sessions.start(
        tenant,
        StartRequest(
            input="" if asked.goes_on else check_input(asked.prompt, gate.settings.input_bytes),
            session=session,
            follows=follows,
            agent=agent,
            on_busy=body.on_busy or Policy.SUPERSEDE,
            on_disconnect=on_disconnect,
            metadata=check_metadata(body.metadata or {}),
            instructions=asked.instructions,
            settings=sampling_of(body),
            context=asked.context,
            remember=True,
            tools=tools,
            request=_repeated(body),
            protocol=PROTOCOL,
            idempotency_key=idempotency_key(request),
            trace=trace_of(request),
            retracts=not body.stream,
            listens=not background,
        ),
    )
    record = made(created)
    listens = on_disconnect is OnDisconnect.CANCEL and created.status is Status.OK
    opening = await open_log(gate, record.key, Offset())
    if body.stream:
        return LogStream(gate, record.key, opening, ResponseEncoder(record), headers=named(record), listens=listens)
    if background:
        return answer(_so_far(record, opening).value(), headers=named(record))
    return WholeAnswer(gate, record, opening, WholeResponse(record), listens=listens)


async def retrieve_response(gate: Gate, request: Request) -> Response:
    """GET /v1/responses/{response}: the object as it is now, or its stream from a number on."""
    record = await gate.sessions.get(response_key(request))
    if not _streamed(request):
        return answer(await _folded(gate, record), headers=named(record))
    encoder = ResponseEncoder(record, _starting_after(request))
    return LogStream(gate, record.key, await open_log(gate, record.key, Offset()), encoder, headers=named(record))


async def cancel_response(gate: Gate, request: Request) -> Response:
    """POST /v1/responses/{response}/cancel: idempotent; answers with the end, which is near."""
    key = response_key(request)
    record = await gate.sessions.stop(key, BY)
    if not record.state.terminal:
        record = await gate.sessions.wait(key, gate.settings.stop_grace_s + _CANCEL_MARGIN_S)
    return answer(await _folded(gate, record), headers=named(record))


async def delete_response(gate: Gate, request: Request) -> Response:
    """DELETE /v1/responses/{response}: stop it if it works, then forget its log and what it left in its session."""
    key = response_key(request)
    await gate.sessions.forget_run(key, BY, gate.settings.stop_grace_s + _CANCEL_MARGIN_S)
    return answer(Deleted(PREFIX + key.run))


def response_key(request: Request) -> RunKey:
    """The run of the response that the path names."""
    return _key(tenant_of(request), check_id(request.path_params["response"], "the response id"))


def _key(tenant: str, response: str, param: str | None = None) -> RunKey:
    run = response.removeprefix(PREFIX)
    if run == response or not run:
        fields = {} if param is None else {"param": param}
        remedy = f"response ids begin with {PREFIX}; use the id that the response had"
        raise HoldfastError("unknown_run", f"no response {response}", remedy=remedy, **fields)
    return RunKey(tenant, check_id(run, "the response id"))


async def _place(gate: Gate, tenant: str, body: ResponseBody, session: str) -> tuple[str, str]:
    """The session of a new response, and the run of it that it follows."""
    previous = body.previous_response_id
    if previous is None:
        return check_id(session, "X-Session-Id") if session else "", ""
    if session:
        raise invalid("send previous_response_id or X-Session-Id, not both", param="previous_response_id")
    record = await gate.sessions.get(_key(tenant, previous, "previous_response_id"))
    return record.session, record.key.run


def _repeated(body: ResponseBody) -> dict[str, Any]:
    found = {
        "background": bool(body.background),
        "previous_response_id": body.previous_response_id,
        "tools": body.tools,
        "tool_choice": body.tool_choice,
        "format": body.text.format if body.text else None,
    }
    return {name: value for name, value in found.items() if value}


def _so_far(record: RunRecord, opening: Opening) -> ResponseLog:
    log = ResponseLog(record)
    for event in map(decode_event, opening.page.events):
        log.feed(event)
    return log


async def _folded(gate: Gate, record: RunRecord) -> dict[str, Any]:
    """The response as its log has it now."""
    log, after = ResponseLog(record), 0
    while True:
        page = await gate.sessions.read(record.key, after, _PAGE_EVENTS)
        for event in map(decode_event, page.events):
            log.feed(event)
        after += len(page.events)
        if not page.events or after >= page.head:
            return log.value()


def _streamed(request: Request) -> bool:
    text = request.query_params.get("stream", "false")
    if text.lower() not in ("true", "false"):
        raise invalid(f"stream={text[:64]!r} is neither true nor false", param="stream")
    return text.lower() == "true"


def _starting_after(request: Request) -> int:
    text = request.query_params.get("starting_after")
    if text is None:
        return -1
    if not (text.isascii() and text.isdigit() and len(text) <= _NUMBER_DIGITS):
        raise invalid(f"starting_after={text[:64]!r} is not a sequence number", param="starting_after")
    return int(text)


_STREAM = ("text/event-stream",)
OPERATIONS = (
    Operation(
        "POST",
        "/v1/responses",
        create_response,
        "Create a response, streamed or not, in the background or not",
        (Answer(200, "The response, or its events", dict[str, Any], _STREAM),),
        body=ResponseBody,
        headers=(
            SESSION_ID,
            IDEMPOTENCY_KEY,
        ),
        errors=("unknown_agent", "session_busy", "idempotency_conflict", "not_ready", "gone"),
    ),
    Operation(
        "GET",
        "/v1/responses/{response}",
        retrieve_response,
        "Get a response, or its events from a number on",
        (Answer(200, "The response as it is now, or its events", dict[str, Any], _STREAM),),
        query=(
            Query("stream", "Whether its events are asked for", {"type": "string", "enum": ["true", "false"]}),
            Query(
                "starting_after",
                "stream=true only: the sequence_number of the last event that the reader has",
                {"type": "integer", "minimum": 0, "maximum": 10**_NUMBER_DIGITS - 1},
            ),
        ),
        errors=("unknown_run", "gone", "invalid_request"),
    ),
    Operation(
        "DELETE",
        "/v1/responses/{response}",
        delete_response,
        "Stop a response if it works, and forget it",
        (Answer(200, "It is forgotten", Deleted),),
        errors=("unknown_run", "not_ready", "invalid_request"),
    ),
    Operation(
        "POST",
        "/v1/responses/{response}/cancel",
        cancel_response,
        "Stop a response",
        (Answer(200, "The response, with its end", dict[str, Any]),),
        errors=("unknown_run", "gone", "invalid_request"),
    ),
)
