"""The agents that are served: the ones named on the command line, or the plain one around --model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.agents.loading import AgentLoadError, default_agent, load_agents
from holdfast.app.errors import StartError
from holdfast.app.upstream import probe_model
from holdfast.config import Settings, upstream_url
from holdfast.models import ModelClient, ModelConfigError, ModelGuard
from holdfast.ports.agent import Agent, AgentInfo
from holdfast.tools.pool import ToolPool


@dataclass
class Served:
    """Agents, and what they stand on."""

    agents: list[Agent]
    infos: list[AgentInfo]
    client: ModelClient
    pool: ToolPool
    guard: ModelGuard

    def facts(self) -> dict[str, Any]:
        """How the tools' threads and the models' upstreams are, for /api/workers; from any thread."""
        return pool_facts(self.pool) | self.guard.facts()

    async def aclose(self) -> None:
        """Close the model connections; on the loop that used them."""
        await self.client.aclose()


async def load_served(settings: Settings, specs: Sequence[object]) -> Served:
    """Import the agents, or take those that are objects already, and resolve the model.

    Raises:
        StartError: Something named on the command line cannot be had.
    """
    pool = ToolPool(settings.tool_threads, settings.tool_queue_s, settings.quarantine)
    client = ModelClient(settings)
    try:
        model = client.resolve(settings.model, settings.model_url)
        guard = ModelGuard.of(settings, client.fallback())
        if specs:
            agents = load_agents(specs, Path.cwd(), settings, pool, model, guard)
        elif model is not None:
            agents = [default_agent(model, settings, pool, guard)]
        else:
            raise StartError("cannot start: there is neither an agent nor a model to serve")
    except (AgentLoadError, ModelConfigError) as error:
        raise StartError(f"cannot start: {error}") from error
    upstream = upstream_url(settings)
    rehearsal = bool(upstream) and (await probe_model(upstream)).rehearsal
    infos = [_info(agent, settings, rehearsal=rehearsal) for agent in agents]
    return Served(agents, infos, client, pool, guard)


def pool_facts(pool: ToolPool) -> dict[str, Any]:
    """How the tools' threads are."""
    return {
        "tool_threads": pool.threads,
        "tools_queued": pool.queued,
        "quarantined": pool.quarantined,
        "quarantine": pool.quarantine,
    }


def _info(agent: Agent, settings: Settings, *, rehearsal: bool) -> AgentInfo:
    model = settings.model or getattr(agent, "model_name", "")
    return AgentInfo(agent.name, agent.kind, model, agent.resumable, rehearsal)
