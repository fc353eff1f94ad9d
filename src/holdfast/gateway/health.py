"""Is it up, can it take a run, how did it start: each answered within a second, whatever the parts do."""

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
    if found is None:
        found = {"ready": False, "parts": {"check": {"ok": False, "why": why}}}
    if gate.closing:
        parts = {**found.get("parts", {}), "server": {"ok": False, "why": "draining"}}
        found = {**found, "ready": False, "parts": parts}
    if found.get("ready"):
        return answer(found)
    parts = found.get("parts", {})
    missing = [f"{name}: {part.get('why', '?')}" for name, part in parts.items() if not part.get("ok")]
    error = HoldfastError("not_ready", "; ".join(missing) or "not ready")
    response = answer({**found, **document(error)}, 503, {"Retry-After": "1"})
    response.headers["content-type"] = PROBLEM_TYPE
    return response


async def startupz(gate: Gate, request: Request) -> Response:
    """GET /startupz: the phases of the start with their durations."""
    found = gate.startup()
    return answer(found, 200 if found.get("started", True) else 503)


async def health(gate: Gate, request: Request) -> Response:
    """GET /health: a summary for people; 200 as long as it can be asked."""
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
