"""Says what kind of server is under test, from what it tells without being given work.

    holdfast    GET /version has version, build and config: the native API is there, and every scenario applies
    openai      anything else that speaks HTTP: the scenarios of POST /v1/chat/completions apply
    silent      it takes connections and answers nothing

Whether the model behind it follows a script is told by a Holdfast's list of agents, and by the rehearsal model's own
header. Nothing here is a prompt.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from holdfast.probe.options import ANSWER_S, Options
from holdfast.probe.wire import Answer, Broke, Silent, Unreachable, Wire

REHEARSAL_HEADER: Final = "x-holdfast-rehearsal"
UNAUTHORIZED: Final = frozenset({401, 403})

_KEY: Final = "give a key that may read and run, with --api-key (HOLDFAST_API_KEY is sent to a Holdfast only)"

Kind = Literal["holdfast", "openai", "silent"]


class Refused(Exception):
    """The server cannot be probed with these options; the message says what to change."""


@dataclass
class Target:
    """What is under test.

    Attributes:
        kind: holdfast, openai or silent.
        words: The same, for people.
        rehearsal: Whether the model follows the script of a prompt.
        model: The name that is sent as `model`.
        agents: A Holdfast's agents.
        alive: A path that it answered without work; empty if there is none.
        stats: An address of the rehearsal model's counters.
        answers: How long each question took, by path.
        trouble: What went wrong while it was asked.
    """

    kind: Kind = "openai"
    words: str = ""
    rehearsal: bool = False
    model: str = ""
    agents: list[str] = field(default_factory=list)
    alive: str = ""
    stats: str = ""
    answers: dict[str, float] = field(default_factory=dict)
    trouble: list[str] = field(default_factory=list)

    @property
    def holdfast(self) -> bool:
        """Whether it has the native API."""
        return self.kind == "holdfast"

    def document(self) -> dict[str, Any]:
        """As --json has it."""
        return {
            "kind": self.kind,
            "words": self.words,
            "model": self.model,
            "rehearsal": self.rehearsal,
            "agents": self.agents,
            "upstream_stats": self.stats or None,
        }


async def detect(wire: Wire, options: Options) -> Target:
    """Ask the server what it is.

    Raises:
        Unreachable: Nobody listens there.
        Refused: It wants a key, or has no model or agent of the given name.
    """
    target = Target()
    # Both at once: one that answers neither costs one limit.
    version, models = await asyncio.gather(_ask(wire, target, "/version"), _ask(wire, target, "/v1/models"))
    if version is None and models is None:
        target.kind, target.words = "silent", f"a server that answers nothing: {'; '.join(target.trouble)}"
        return target
    target.alive = "/version" if version is not None and version.status == 200 else "/v1/models"
    facts = version.json if version is not None and version.status == 200 else None
    if isinstance(facts, dict) and {"version", "build", "config"} <= facts.keys():
        target.kind = "holdfast"
        if options.holdfast_key and not options.api_key:
            wire.carry(options.holdfast_key)
        await _holdfast(wire, target, options, facts)
    else:
        if models is not None and models.status in UNAUTHORIZED:
            raise Refused(f"GET /v1/models was answered with {models.status}: {_KEY}")
        await _openai(wire, target, options, models)
    if options.upstream_stats:
        target.stats = options.upstream_stats.rstrip("/").removesuffix("/v1").removesuffix("/_stats") + "/_stats"
    return target


async def _ask(wire: Wire, target: Target, path: str) -> Answer | None:
    try:
        answer = await wire.ask("GET", path, limit_s=min(ANSWER_S, wire.timeout_s))
    except (Silent, Broke) as error:
        target.trouble.append(str(error))
        return None
    target.answers[path] = answer.took_ms
    return answer


async def _holdfast(wire: Wire, target: Target, options: Options, facts: dict[str, Any]) -> None:
    workers = await _ask(wire, target, "/api/workers")
    if workers is not None and workers.status in UNAUTHORIZED:
        raise Refused(f"GET /api/workers was answered with {workers.status}: {_KEY}")
    found = (workers.json or {}).get("agents") if workers is not None and workers.status == 200 else None
    agents = [agent for agent in found or [] if isinstance(agent, dict) and agent.get("name")]
    target.agents = [str(agent["name"]) for agent in agents]
    if options.model and agents and options.model not in target.agents:
        raise Refused(f"no agent is named {options.model!r}; --model takes one of {', '.join(target.agents)}")
    chosen = next((a for a in agents if a["name"] == options.model), agents[0] if agents else {})
    target.model = options.model or str(chosen.get("name", "")) or "any"
    target.rehearsal = chosen.get("rehearsal") is True
    model = "the rehearsal model" if target.rehearsal else str(chosen.get("model") or "its own model")
    target.words = f"Holdfast {facts['version']} (build {facts['build']}), agent {target.model}, with {model}"


async def _openai(wire: Wire, target: Target, options: Options, models: Answer | None) -> None:
    names = _names(models)
    target.model = options.model or (names[0] if names else "any")
    target.rehearsal = models is not None and REHEARSAL_HEADER in models.headers
    if target.rehearsal:
        target.words = "the rehearsal model itself: an OpenAI-compatible server without sessions"
        stats = await _ask(wire, target, "/_stats")
        if stats is not None and stats.status == 200:
            target.stats = wire.url + "/_stats"
    elif names:
        target.words = f"an OpenAI-compatible server, model {target.model}"
    else:
        said = "GET /v1/models gave no answer" if models is None else f"GET /v1/models gave {models.status}"
        target.words = f"unknown ({said}); probed as an OpenAI-compatible server, model {target.model!r}"


def _names(models: Answer | None) -> list[str]:
    data = models.json.get("data") if models is not None and isinstance(models.json, dict) else None
    return [str(m["id"]) for m in data if isinstance(m, dict) and m.get("id")] if isinstance(data, list) else []


__all__ = ["Kind", "Refused", "Target", "Unreachable", "detect"]
