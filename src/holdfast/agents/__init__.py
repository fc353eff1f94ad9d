"""Agents of every kind behind one port: pydantic-ai's, plain generators, and what loads them by name."""

from holdfast.agents.generator import GeneratorAgent
from holdfast.agents.loading import AgentLoadError, default_agent, load_agents, parse_spec
from holdfast.agents.pydantic_ai import PydanticAgent
from holdfast.tools import CurrentCall, current_call

__all__ = [
    "AgentLoadError",
    "CurrentCall",
    "GeneratorAgent",
    "PydanticAgent",
    "current_call",
    "default_agent",
    "load_agents",
    "parse_spec",
]
