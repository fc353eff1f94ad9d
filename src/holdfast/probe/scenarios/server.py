"""The server itself: does it answer, also when it works, and after everything that was done to it."""

from __future__ import annotations

import asyncio
from typing import Final

from holdfast.probe.bench import Bench
from holdfast.probe.options import HEALTH_S, NEXT_S
from holdfast.probe.results import Failed, Seen
from holdfast.probe.scenario import Scenario

_HEALTH: Final = ("/livez", "/readyz", "/startupz", "/health")


async def answers(bench: Bench) -> Seen:
    """What it answered while it was asked what it is."""
    if bench.target.kind == "silent":
        raise Failed("; ".join(bench.target.trouble), "an answer to GET /version or GET /v1/models")
    if bench.target.trouble:
        raise Failed("; ".join(bench.target.trouble), "an answer to each, be it 404")
    figures = {f"{path.strip('/').replace('/', '_')}_ms": ms for path, ms in bench.target.answers.items()}
    return Seen("it answers requests that start no work", figures)


async def health(bench: Bench) -> Seen:
    """The health endpoints, while a model stalls where it can be told to, else at rest."""
    stalled = bench.target.rehearsal
    if stalled:
        follow = bench.follow(await bench.start(("!stall after=1 for=60", None)))
        await follow.until(lambda events: any(e.get("type") == "text.delta" for e in events), "the first text")
    limit_s = bench.options.within(HEALTH_S)
    found = await asyncio.gather(*(bench.wire.ask("GET", path, limit_s=limit_s) for path in _HEALTH))
    figures = {f"{path.strip('/')}_ms": answer.took_ms for path, answer in zip(_HEALTH, found, strict=True)}
    wrong = [f"GET {path}: {a.words()}" for path, a in zip(_HEALTH, found, strict=True) if a.status != 200]
    if wrong:
        raise Failed("; ".join(wrong), "200 from each", figures)
    return Seen("all four answered 200" + (" while a model stalled" if stalled else ""), figures)


async def still_answers(bench: Bench) -> Seen:
    """A plain prompt at the very end."""
    chat = bench.chat(bench.short("still here"))
    await chat.first(bench.soon_s(NEXT_S))
    await chat.completed()
    first_ms = chat.first_ms or 0.0
    return Seen("a last prompt is answered like the first", {"first_token_ms": first_ms, "total_ms": chat.took_ms})


FIRST: Final = (
    Scenario(
        "server.answers", "The server answers requests that start no work.", "P7: every wait has a limit", 0, answers
    ),
)
WORKING: Final = (
    Scenario(
        "server.health",
        "/livez, /readyz, /startupz and /health each answer within a second, whatever the model does.",
        "F74: each health endpoint answers within 1 s",
        1,
        health,
        native=True,
    ),
)
LAST: Final = (
    Scenario(
        "server.still_answers",
        "After all scenarios a prompt is answered: nothing that was started holds the server up.",
        "P7: nothing leaks; document 4: no kill -9 is needed",
        1,
        still_answers,
    ),
)
