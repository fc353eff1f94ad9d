"""Several prompts to /v1/chat/completions at once: the hang of document 4, and what must not spread.

A server need not know sessions: one that lets both prompts of a session run to their own end is no hang, and is
reported as skipped, unless the session header was given on the command line. One in which the second waits for the
first, or gets no answer, has failed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Final

from holdfast.probe.bench import Bench
from holdfast.probe.chats import tokens
from holdfast.probe.options import FIVE_S, NEXT_S, SUPERSEDE_S, UPSTREAM_S
from holdfast.probe.reading import Chat
from holdfast.probe.results import Failed, Seen, Skipped
from holdfast.probe.scenario import Scenario
from holdfast.probe.wire import Broke, Silent

_GAP_S: Final = 0.1
_RAPID_S: Final = 0.05
_FIVE: Final = 5
_GOES_ON_S: Final = 1.0


async def supersede(bench: Bench) -> Seen:
    """Document 4, test 3, the critical one: prompt B 100 ms after prompt A, in one session."""
    return await _supersede(bench, bench.long(), silent=False)


async def supersede_silent(bench: Bench) -> Seen:
    """The same, and A's model has not said a word: nothing that A awaits will ever return."""
    return await _supersede(bench, bench.script("!first_token delay=60"), silent=True)


async def _supersede(bench: Bench, prompt: tuple[str, str | None], *, silent: bool) -> Seen:
    bench.knows_sessions()
    session = bench.session("rapid")
    upstream = await bench.upstream()
    first = bench.chat(prompt, session)
    await asyncio.sleep(_GAP_S)
    if first.stream.over:
        await first.opened()
        raise Skipped("A was over before B came; give a prompt with a longer answer, --long-prompt")
    second = bench.chat(bench.short("four"), session)
    await _answered(bench, first, second)
    figures = {"b_first_token_ms": second.first_ms or 0.0, "b_total_ms": second.took_ms}
    if not await _ends(bench, first, silent=silent):
        header = bench.options.session_header
        if bench.options.sessions:
            raise Failed(
                f"B was answered, and A goes on beside it in one session ({first.stream.state()})",
                f"{header} is heeded: one answer at a time, A ends",
                figures,
            )
        bench.sessionless = (
            f"a second prompt of a session was answered and the first went on beside it: nothing shows that the server "
            f"knows sessions ({header} was sent; give --session-header to require it)"
        )
        bench.knows_sessions()
    figures["a_ended_ms"] = (first.stream.ended_at - second.stream.began) * 1000
    if not bench.target.rehearsal and _ended_by_itself(bench, first, second):
        raise Skipped("A may have come to its own end; give a prompt with a longer answer, --long-prompt")
    if bench.target.holdfast and (first.read.error or {}).get("code") != "superseded":
        raise Failed(f"A ended with {first.read.error or 'no error'}", "an error chunk with code superseded", figures)
    await upstream.closes(bench.options.within(UPSTREAM_S), "A was superseded")
    return Seen(f"B is answered, A ended{_word_of(first)}", figures)


async def _answered(bench: Bench, first: Chat, second: Chat) -> None:
    """B gets its answer, in time."""
    try:
        await second.first(bench.soon_s(SUPERSEDE_S))
        await second.completed()
    except Silent as silent:
        raise Failed(
            f"B hangs: {silent}; A: {first.stream.state()}",
            f"B is answered at most {SUPERSEDE_S:g} s later than alone, whatever A does",
        ) from None


async def _ends(bench: Bench, first: Chat, *, silent: bool) -> bool:
    """Whether A ended once B was there; False where it goes on. `silent`: it would say nothing if it did.

    Raises:
        Failed: It neither ends nor goes on.
    """
    try:
        await first.stream.ended(limit_s=bench.options.within(NEXT_S))
    except Broke:
        return True
    except Silent:
        seen = len(first.stream.frames)
        with contextlib.suppress(Silent):
            return not await first.stream.until(lambda: len(first.stream.frames) > seen, "more of A", _GOES_ON_S)
        if silent:
            return False
        raise Failed(f"B was answered, and A neither ends nor goes on ({first.stream.state()})", "A ends") from None
    return True


def _ended_by_itself(bench: Bench, first: Chat, second: Chat) -> bool:
    """Whether A's end looks like that of any answer: no error, and not just before B's began."""
    if first.read.error is not None or first.read.finish is None:
        return False
    return bench.target.holdfast or first.stream.ended_at > (second.read.first_at or 0.0)


def _word_of(chat: Chat) -> str:
    error = chat.read.error
    if error:
        return f" with the error {error.get('code') or error.get('message')}"
    return f" (finish_reason {chat.read.finish})" if chat.read.finish else " without a word of why"


async def five(bench: Bench) -> Seen:
    """Document 4, test 4: five prompts 50 ms apart, each without a session."""
    chats = await _five(bench, "")
    return await _five_end(bench, chats, all_answer=True)


async def five_one_session(bench: Bench) -> Seen:
    """The same five in one session: all end, the last is answered."""
    bench.knows_sessions()
    chats = await _five(bench, bench.session("five"))
    return await _five_end(bench, chats, all_answer=False)


async def _five(bench: Bench, session: str) -> list[Chat]:
    chats = []
    for number in range(_FIVE):
        prompt = bench.short(f"p{number}")
        if bench.target.rehearsal:
            prompt = (f"!say p{number}\n!tokens n=25 rate=50", f"p{number}{tokens(25)}")
        chats.append(bench.chat(prompt, session))
        await asyncio.sleep(_RAPID_S)
    return chats


async def _five_end(bench: Bench, chats: list[Chat], *, all_answer: bool) -> Seen:
    # A server that is not ours may have one place to work in, and answer them in turn: slow, and no hang.
    limit_s = bench.end_s(FIVE_S) if bench.target.holdfast else None
    ways = [chat.finished(limit_s) if all_answer else _over(chat, limit_s) for chat in chats[:-1]]
    found = await asyncio.gather(*ways, chats[-1].finished(limit_s), return_exceptions=True)
    lost = [(n, e) for n, e in enumerate(found, 1) if isinstance(e, BaseException)]
    for number, error in lost:
        if not isinstance(error, Silent | Failed):
            raise error
        raise Failed(
            f"{len(lost)} of {_FIVE} did not end as they should; prompt {number}: {error}",
            f"each ends at most {FIVE_S:g} s later than alone",
        )
    answered = 0
    for number, chat in enumerate(chats, 1):
        whole = chat.read.done and chat.read.error is None and bool(chat.read.text)
        answered += whole
        if not whole and (all_answer or number == _FIVE):
            raise Failed(f"prompt {number} of {_FIVE} was not answered ({chat.stream.state()})", "its answer")
    figures = {"slowest_first_token_ms": max(chat.first_ms or 0.0 for chat in chats)}
    figures["slowest_total_ms"] = max(chat.took_ms for chat in chats)
    return Seen(f"all five ended, {answered} with an answer", figures)


async def _over(chat: Chat, limit_s: float | None) -> None:
    """An answer that may have been ended by the next prompt of its session: that it is over is enough."""
    with contextlib.suppress(Broke):
        await chat.stream.ended(limit_s=limit_s)


async def apart(bench: Bench) -> Seen:
    """Document 4, test 5: superseding in one session leaves another untouched."""
    bench.knows_sessions()
    one, two = bench.session("one"), bench.session("two")
    before = await bench.chat(bench.long(), one).first()
    prompt = ("!tokens n=50 rate=50", tokens(50)) if bench.target.rehearsal else bench.long()
    other = await bench.chat(prompt, two).first()
    if before.stream.over:
        raise Failed(f"a prompt in another session ended the first ({before.stream.state()})", "it is untouched")
    following = bench.chat(bench.short("b"), one)
    await _answered(bench, before, following)
    figures = {"b_first_token_ms": following.first_ms or 0.0}
    if prompt[1] is None:
        await _goes_on(other)
        words = "the other session's answer goes on"
    else:
        await other.completed()
        words = "the other session's answer is whole, its text exact"
    figures["other_longest_silence_ms"] = other.read.silence_ms(other.stream.began)
    return Seen(words, figures)


async def _goes_on(chat: Chat) -> None:
    """More of an answer, or its own end.

    Raises:
        Failed: It was ended, or has fallen silent.
    """
    seen = len(chat.read.text)
    try:
        more = await chat.stream.until(lambda: len(chat.read.text) > seen, "more of the other session's answer")
    except Silent as silent:
        raise Failed(str(silent), "it goes on") from None
    if not more and (chat.read.error or chat.read.finish is None):
        raise Failed(f"the other session's answer was ended ({chat.stream.state()})", "it goes on")


SCENARIOS: Final = (
    Scenario(
        "chat.supersede",
        "Prompt B comes 100 ms after A in one session: B is answered, A ends.",
        "document 4, test 3; P4: one run of a session at a time, and none waits for a dead one",
        2,
        supersede,
    ),
    Scenario(
        "chat.supersede_silent",
        "The same, while A waits for a model that is silent for a minute.",
        "document 4, test 3; F21: B starts within 3.5 s, whatever A does",
        2,
        supersede_silent,
        scripted=True,
    ),
    Scenario(
        "chat.five",
        "Five prompts 50 ms apart, without a session, are all answered.",
        "document 4, test 4: all complete without a hang",
        _FIVE,
        five,
    ),
    Scenario(
        "chat.five_one_session",
        "Five prompts 50 ms apart in one session all end, and the last is answered.",
        "document 4, test 4; F22: starts at once on one session cause no deadlock",
        _FIVE,
        five_one_session,
    ),
    Scenario(
        "chat.sessions_apart",
        "A prompt that supersedes another leaves a second session untouched.",
        "document 4, test 5; F23: sessions never influence each other",
        3,
        apart,
    ),
)
