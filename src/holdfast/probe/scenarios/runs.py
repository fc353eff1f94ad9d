"""A run and its log on Holdfast's own API: started once, told once, refused in words."""

from __future__ import annotations

import json
from typing import Any, Final

from holdfast.domain.events import EventType
from holdfast.probe.bench import RUNS, Bench
from holdfast.probe.chats import difference, tokens
from holdfast.probe.logs import end_problem, log_problems, text_of
from holdfast.probe.options import ANSWER_S
from holdfast.probe.results import Failed, Seen
from holdfast.probe.scenario import Scenario

_N: Final = 40
_NDJSON: Final = "application/x-ndjson"


async def log(bench: Bench) -> Seen:
    """The log of a run, read live from the request that starts it."""
    prompt = (f"!tokens n={_N} rate=200", tokens(_N)) if bench.target.rehearsal else bench.short()
    follow = bench.streamed(prompt)
    await follow.until(lambda events: events, "the first event")
    first_ms = (follow.stream.frames[0].at - follow.stream.began) * 1000
    events = await follow.whole()
    run = str(events[0].get("run"))
    problems = log_problems(events)
    if end := end_problem(events, EventType.RUN_COMPLETED):
        problems.append(end)
    record = await bench.record(run)
    if (record.get("state"), record.get("seq")) != ("completed", len(events)):
        problems.append(f"the record says {record.get('state')} at seq {record.get('seq')}, the log {len(events)}")
    if prompt[1] is not None and text_of(events).strip() != prompt[1].strip():
        problems.append(f"the text is {difference(text_of(events).strip(), prompt[1].strip())}")
    if problems:
        raise Failed("; ".join(problems), "seq 1, 2, 3 .. without a gap, one terminal event, and that last")
    figures = {
        "first_event_ms": first_ms,
        "events": float(len(events)),
        "total_ms": (follow.stream.ended_at - follow.stream.began) * 1000,
    }
    return Seen("seq without a gap, one terminal event, the deltas are the text, the record agrees", figures)


async def forms(bench: Bench) -> Seen:
    """The same log as server-sent events, as NDJSON and in JSON pages."""
    run = await bench.start(bench.short())
    sse = await bench.follow(run).whole()
    ndjson = await bench.follow(run, accept=_NDJSON).whole()
    pages: list[Any] = []
    for _ in range(len(sse) + 1):  # a page that never moves on must not hold us
        page = await bench.call("GET", f"{RUNS}/{run}/events?after={len(pages)}&limit=3")
        pages += page["events"]
        if not page["events"] or len(pages) >= page["head"]:
            break
    wrong = [name for name, found in (("NDJSON", ndjson), ("JSON pages", pages)) if found != sse]
    if wrong:
        raise Failed(f"{' and '.join(wrong)} differ from the server-sent events", "the same events in every form")
    return Seen("server-sent events, NDJSON and JSON pages have the same events", {"events": float(len(sse))})


async def once(bench: Bench) -> Seen:
    """The same Idempotency-Key is the same run; another body with it is refused."""
    key = {"Idempotency-Key": bench.session("key")}
    body = {"input": bench.short()[0]}
    first, again = await bench.post_run(body, headers=key), await bench.post_run(body, headers=key)
    bench.sent -= 1  # the repeat starts nothing
    found = [a.json.get("id") if isinstance(a.json, dict) else None for a in (first, again)]
    if first.status != 201 or again.status not in (200, 201) or found[0] != found[1] or found[0] is None:
        raise Failed(f"the same request twice gave {first.words()[:80]} and {again.words()[:80]}", "one run")
    other = await bench.post_run({"input": bench.short("another")[0] + " "}, headers=key)
    bench.sent -= 1
    if other.status != 409:
        raise Failed(f"another body with the same key was answered with {other.words()}", "409 idempotency_conflict")
    await bench.ended(found[0], bench.end_s(5.0), "its start")
    return Seen(
        "a repeat is the same run, another body is 409", {"start_ms": first.took_ms, "repeat_ms": again.took_ms}
    )


async def refusals(bench: Bench) -> Seen:
    """What is no request, no offset or no run: refused at once, with a code and a remedy."""
    run = await bench.start(bench.short())
    await bench.ended(run, bench.end_s(5.0), "its start")
    nobody = f"{RUNS}/r_{bench.session('nobody')}"
    cases: tuple[tuple[str, str, Any, int, str], ...] = (
        ("POST", RUNS, b"{", 422, "invalid_request"),
        ("POST", RUNS, {"input": 7}, 422, "invalid_request"),
        ("POST", RUNS, {"input": "hello", "session": "no id"}, 422, "invalid_request"),
        ("GET", f"{RUNS}/{run}/events?after=x", None, 422, "invalid_offset"),
        ("GET", f"{RUNS}/{run}/events?after=-1", None, 422, "invalid_offset"),
        ("GET", f"{RUNS}/{run}/events?after=1-2-3", None, 422, "invalid_offset"),
        ("GET", nobody, None, 404, "unknown_run"),
        ("GET", f"{nobody}/events", None, 404, "unknown_run"),
        ("POST", f"{nobody}/stop", None, 404, "unknown_run"),
    )
    slowest = 0.0
    for method, path, body, status, code in cases:
        answer = await bench.wire.ask(method, path, body, limit_s=bench.options.within(ANSWER_S))
        problem = answer.json if isinstance(answer.json, dict) else {}
        if (answer.status, problem.get("code")) != (status, code) or not problem.get("remedy"):
            shown = json.dumps(body) if isinstance(body, dict) else (body or b"").decode()
            raise Failed(
                f"{method} {path} {shown}".strip() + f" was answered with {answer.words()}", f"{status} {code}"
            )
        slowest = max(slowest, answer.took_ms)
    return Seen(f"{len(cases)} bad requests were each refused with their code and a remedy", {"slowest_ms": slowest})


SCENARIOS: Final = (
    Scenario(
        "run.log",
        "A run's log has no gap, one terminal event and nothing after it, and its text is that of its deltas.",
        "P1: exactly one terminal event; P3: no gap; F33: the deltas are the text",
        1,
        log,
        native=True,
    ),
    Scenario(
        "run.forms",
        "Every form of a log has the same events.",
        "P3: the same log on every protocol",
        1,
        forms,
        native=True,
    ),
    Scenario(
        "run.once",
        "An Idempotency-Key makes one run of a request that is repeated.",
        "F6: a repeated request is the same run",
        1,
        once,
        native=True,
    ),
    Scenario(
        "run.refusals",
        "Bad bodies, malformed offsets and unknown runs are refused with a code and a remedy.",
        "P8: nothing fails silently; F47: each error has a code and a remedy",
        1,
        refusals,
        native=True,
    ),
)
