"""One prompt to /v1/chat/completions at a time: its end, its reader, and what comes after a reader that left."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from holdfast.probe.bench import CHAT, Bench
from holdfast.probe.chats import tokens, whole_problems
from holdfast.probe.options import ANSWER_S, NEXT_S, STOP_S, UPSTREAM_S
from holdfast.probe.reading import REFUSES, Chat
from holdfast.probe.results import Failed, Seen, Skipped
from holdfast.probe.scenario import Scenario
from holdfast.probe.wire import Silent

_N: Final = 60
_MANY: Final = 1500
_EARLY_S: Final = 0.3


async def normal(bench: Bench) -> Seen:
    """Document 4, test 1: a stream begins, says something, and ends."""
    prompt = (f"!tokens n={_N} rate=200", tokens(_N)) if bench.target.rehearsal else bench.short()
    chat, alias = await _taken(bench, prompt)
    await chat.first()
    read = await chat.completed()
    first_ms = chat.first_ms or 0.0
    bench.lone_first_s, bench.lone_took_s = first_ms / 1000, chat.took_ms / 1000
    figures = {
        "headers_ms": (chat.stream.opened_at - chat.stream.began) * 1000,
        "first_token_ms": first_ms,
        "longest_silence_ms": read.silence_ms(chat.stream.began),
        "total_ms": chat.took_ms,
    }
    exact = ", its text exact" if chat.want is not None else ""
    return Seen(f"content{exact}, finish_reason {read.finish}, [DONE], closed{alias}", figures)


async def _taken(bench: Bench, prompt: tuple[str, str | None]) -> tuple[Chat, str]:
    """A prompt that the server has taken; with document 4's `prompt` where it knows no `messages`."""
    chat = bench.chat(prompt)
    await chat.stream.opened()
    if chat.stream.status not in (400, 422):
        return await chat.opened(), ""
    bench.prompt_field = True
    other = bench.chat(prompt)
    await other.stream.opened()
    if other.stream.status == 200:
        return other, "; it takes `prompt`, not `messages`"
    bench.prompt_field = False
    return await chat.opened(), ""


async def whole(bench: Bench) -> Seen:
    """Not streamed: one JSON answer."""
    text, want = bench.short("in one piece")
    bench.sent += 1
    answer = await bench.wire.ask("POST", CHAT, bench.chat_body(text, stream=False))
    if answer.status == 429:
        raise Skipped(REFUSES)
    if answer.status != 200:
        raise Failed(f"POST {CHAT} without `stream` was answered with {answer.words()}", "200 and a chat completion")
    if problems := whole_problems(answer.json, want):
        raise Failed("; ".join(problems), "a chat completion with content and finish_reason")
    return Seen("one chat completion, with content and finish_reason", {"total_ms": answer.took_ms})


async def bad_body(bench: Bench) -> Seen:
    """Bodies that are no request: refused at once, and not as an error of the server."""
    figures = {}
    for name, body in (("no_json", b'{"messages": ['), ("no_messages", b'{"stream": true}')):
        answer = await bench.wire.ask("POST", CHAT, body, limit_s=bench.options.within(ANSWER_S))
        if answer.status == 429:
            raise Skipped(REFUSES)
        if not 400 <= answer.status < 500:
            raise Failed(f"a body with {name.replace('_', ' ')} was answered with {answer.words()}", "400 or 422")
        figures[f"{name}_ms"] = answer.took_ms
    return Seen("refused with 4xx", figures)


async def disconnect(bench: Bench) -> Seen:
    """Document 4, test 2: the client goes away after two seconds, and the same session asks again at once."""
    upstream = await bench.upstream()
    session = bench.session("left")
    left = await bench.chat(bench.long(), session).first()
    await asyncio.sleep(max(0.0, left.stream.began + bench.options.leave_s - time.monotonic()))
    if left.stream.over or left.read.finish:
        raise Skipped(
            f"the answer was over within {bench.options.leave_s:g} s; give a prompt with a longer one, --long-prompt"
        )
    await upstream.works()
    away = time.monotonic()
    left.stream.leave()
    # What the server makes of it is looked at first: the next prompt of the session would end it, too.
    words = [await upstream.closes(bench.options.within(UPSTREAM_S), "its client left")]
    figures = {"upstream_closed_by_ms": (time.monotonic() - away) * 1000} if bench.target.stats else {}
    if bench.target.holdfast:
        words.append(await _run_of(bench, session, {"client_disconnect"}))
    following = await _next(bench, session)
    figures["next_first_token_ms"] = following.first_ms or 0.0
    return Seen("; ".join(filter(None, ["the next prompt of the session is answered", *words])), figures)


async def disconnect_early(bench: Bench) -> Seen:
    """The same before the first token, when nothing is written that could fail, and the next prompt comes at once."""
    upstream = await bench.upstream()
    session = bench.session("early")
    left = bench.chat(bench.script("!first_token delay=60"), session)
    await asyncio.sleep(_EARLY_S)
    await upstream.works()
    left.stream.leave()
    following = await _next(bench, session)
    words = [await upstream.closes(bench.options.within(UPSTREAM_S), "its client left")]
    if bench.target.holdfast:  # the next prompt may have superseded it before its reader was missed
        words.append(await _run_of(bench, session, {"client_disconnect", "superseded"}))
    figures = {"next_first_token_ms": following.first_ms or 0.0}
    return Seen("; ".join(filter(None, ["the next prompt of the session is answered", *words])), figures)


async def _next(bench: Bench, session: str) -> Chat:
    """The next prompt of a session whose client has left, answered."""
    following = bench.chat(bench.short("next"), session)
    try:
        await following.first(bench.soon_s(NEXT_S))
    except Silent as silent:
        raise Failed(
            f"the client left, and the next prompt of its session is not answered: {silent}",
            f"an answer at most {NEXT_S:g} s later than alone",
        ) from None
    await following.completed()
    return following


async def _run_of(bench: Bench, session: str, reasons: set[str]) -> str:
    """How the first run of a session ended, in words."""
    runs = (await bench.call("GET", f"/api/runs?session={session}"))["runs"]
    record = await bench.ended(runs[-1]["id"], bench.options.within(STOP_S), "its client left")
    if record["state"] != "cancelled" or record["reason"] not in reasons:
        raise Failed(f"its run ended {record['state']}, {record['reason']}", "cancelled, client_disconnect")
    return f"its run is cancelled, {record['reason']}"


async def slow_reader(bench: Bench) -> Seen:
    """A reader that takes nothing hinders nobody, and gets all of it when it does."""
    rehearsal = bench.target.rehearsal
    prompt = (f"!tokens n={_MANY} rate={2 * _MANY}", tokens(_MANY)) if rehearsal else bench.long()
    slow = bench.chat(prompt, bench.session("slow"), held=True)
    await slow.opened()
    other = bench.chat(bench.short("beside"), bench.session("beside"))
    await other.first(bench.soon_s(NEXT_S))
    await other.completed()
    await asyncio.sleep(0.5)
    again = bench.chat(bench.short("after"), bench.session("beside"))
    await again.first(bench.soon_s(NEXT_S))
    await again.completed()
    figures = {"beside_first_token_ms": max(other.first_ms or 0.0, again.first_ms or 0.0)}
    slow.stream.release()
    if rehearsal:
        await slow.completed()
        return Seen("two prompts were answered meanwhile, and the slow reader then got the whole text", figures)
    await slow.first()
    return Seen("two prompts were answered meanwhile, and the slow reader then got its text", figures)


SCENARIOS: Final = (
    Scenario(
        "chat.normal",
        "A streamed answer begins, ends with finish_reason and [DONE], and the stream closes.",
        "document 4, test 1; P1: exactly one end",
        2,
        normal,
    ),
    Scenario(
        "chat.whole",
        "An answer that is not streamed comes in one piece.",
        "F41: chat completions, streamed and not",
        1,
        whole,
    ),
    Scenario(
        "chat.bad_body",
        "A body that is no request is refused at once, with 4xx.",
        "P8: nothing fails silently",
        0,
        bad_body,
    ),
    Scenario(
        "chat.disconnect",
        "A client goes away after 2 s: the next prompt of its session is answered, and the work is stopped.",
        "document 4, test 2; F42: a client that leaves stops its answer",
        2,
        disconnect,
    ),
    Scenario(
        "chat.disconnect_early",
        "The same before the first token, while the model is silent.",
        "F42: a client that leaves stops its answer, also before the first token",
        2,
        disconnect_early,
        scripted=True,
    ),
    Scenario(
        "chat.slow_reader",
        "A client that reads nothing hinders nobody.",
        "P10: a slow client slows nobody",
        3,
        slow_reader,
    ),
)
