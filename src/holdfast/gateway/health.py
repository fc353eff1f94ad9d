"""Is it up, can it take a run, how did it start: each answered within a second, whatever the parts do.

Load balancers have no key, so all of it is open. With keys, whoever has none is told whether, and not why: reasons name
addresses, models and files.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from holdfast.domain.errors import HoldfastError
from holdfast.gateway.checks import ask_all
from holdfast.gateway.gate import Gate
from holdfast.gateway.problems import PROBLEM_TYPE, document
from holdfast.gateway.routes import Answer, Operation, answer


async def livez(gate: Gate, request: Request) -> Response:
    """GET /livez: this process serves."""
    return answer({"status": "up"})


async def readyz(gate: Gate, request: Request) -> Response:
    """GET /readyz: whether a run would be taken now, with a reason per part."""
    found, why = await gate.ready.answer()
    return ready_answer(found, why, closing=gate.closing, known=await gate.access.knows(request))


def ready_answer(found: dict[str, Any] | None, why: str, *, closing: bool, known: bool) -> Response:
    """What /readyz says.

    Args:
        found: The parts, or None where nothing answered in time.
        why: Then, why.
        closing: Whether the process drains.
        known: Whether the reasons are the business of whoever asks.
    """
    if found is None:
        found = {"ready": False, "parts": {"check": {"ok": False, "why": why}}}
    if closing:
        parts = {**found.get("parts", {}), "server": {"ok": False, "why": "draining"}}
        found = {**found, "ready": False, "parts": parts}
    if not known:
        return unready(None) if not found.get("ready") else answer({"ready": True})
    if found.get("ready"):
        return answer(found)
    parts = found.get("parts", {})
    missing = [f"{name}: {part.get('why', '?')}" for name, part in parts.items() if not part.get("ok")]
    return unready(found, "; ".join(missing))


def unready(found: dict[str, Any] | None, why: str = "", retry_after_s: int = 1) -> Response:
    """503: with `found`, the parts and why; without, to strangers, that it is so."""
    error = HoldfastError("not_ready", why or "not ready", remedy=None if found else "ask with a key for the reasons")
    response = answer({**(found or {"ready": False}), **document(error)}, 503, {"Retry-After": str(retry_after_s)})
    response.headers["content-type"] = PROBLEM_TYPE
    return response


async def startupz(gate: Gate, request: Request) -> Response:
    """GET /startupz: the phases of the start with their durations."""
    return started_answer(gate.startup(), known=await gate.access.knows(request))


def started_answer(found: dict[str, Any], *, known: bool) -> Response:
    """What /startupz says; to strangers, whether it has started and no more."""
    started = found.get("started", True)
    return answer(found if known else {"started": started}, 200 if started else 503)


async def health(gate: Gate, request: Request) -> Response:
    """GET /health: a summary for people; 200 as long as it can be asked."""
    if not await gate.access.knows(request):
        ready, _ = await gate.ready.answer()
        is_ready = bool(ready and ready.get("ready")) and not gate.closing
        return answer({"status": "ok" if is_ready else "degraded", "ready": is_ready})
    (ready, why), (store, store_why) = await ask_all(gate.owner, gate.ready, gate.store)
    is_ready = bool(ready and ready.get("ready"))
    return answer(
        {
            "status": "ok" if is_ready else "degraded",
            "ready": is_ready,
            "why": why or None,
            "parts": (ready or {}).get("parts", {}),
            "store": store if store is not None else {"error": store_why},
            "agents": [agent.name for agent in gate.sessions.agents()],
            "readers": gate.readers,
            "process": gate.facts(),
            **gate.version,
        }
    )


async def version(gate: Gate, request: Request) -> Response:
    """GET /version: version, build, config fingerprint."""
    return answer(gate.version)


_FACTS = dict[str, Any]

OPERATIONS = (
    Operation("GET", "/livez", livez, "Is the process up", (Answer(200, "It is", _FACTS),)),
    Operation(
        "GET",
        "/readyz",
        readyz,
        "Would a run be taken now",
        (Answer(200, "Yes, with its parts", _FACTS),),
        errors=("not_ready",),
    ),
    Operation(
        "GET",
        "/startupz",
        startupz,
        "How did it start",
        (Answer(200, "The phases with their durations", _FACTS), Answer(503, "It is still starting", _FACTS)),
    ),
    Operation("GET", "/health", health, "A summary", (Answer(200, "The summary", _FACTS),)),
    Operation("GET", "/version", version, "What runs here", (Answer(200, "Version and build", _FACTS),)),
)
