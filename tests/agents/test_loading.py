"""`[name=]module:attr`: what is found, what it is called, and what is said when it is not there."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from holdfast.agents import AgentLoadError, GeneratorAgent, PydanticAgent, default_agent, load_agents
from holdfast.config.settings import Settings
from holdfast.tools import ToolPool
from tests.agents.support import context, tell

SOURCE = """
from pydantic_ai import Agent
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.models.test import TestModel

bare = Agent()
named = Agent(TestModel(), name="weather")
unnamed = Agent(TestModel())
wrapped = WrapperAgent(named)
number = 7

async def echo(ctx):
    yield ctx.input

def sync(ctx):
    yield "x"

async def once(ctx):
    return "x"

running = echo(None)

class Own:
    name = "own"
    kind = ""
    resumable = False
    async def run(self, ctx):
        yield "x"

own = Own()

class Sealed:
    __slots__ = ()
    name, kind, resumable, model_name = "sealed", "sealed", True, "m1"
    def run(self, ctx):
        return Words()

class Words:
    def __init__(self):
        self.left = ["one ", "two"]
    def __aiter__(self):
        return self
    async def __anext__(self):
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop(0)

sealed = Sealed()

class box:
    inner = own
"""


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "hf_agents.py").write_text(SOURCE)
    (tmp_path / "hf_broken.py").write_text("x = 1\nraise RuntimeError('at import')\n")
    (tmp_path / "hf_needs.py").write_text("import hf_not_installed\n")
    (tmp_path / "hf_syntax.py").write_text("def f(:\n")
    (tmp_path / "hf_exits.py").write_text("import sys\nsys.exit(4)\n")
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("hf_"):
            del sys.modules[name]


def load(here: Path, *specs: str, model: bool = False):
    return load_agents(specs, here, Settings(), ToolPool(1, 1.0), TestModel() if model else None)


def test_a_name_is_the_given_one_else_the_agents_own_else_the_attribute(here: Path) -> None:
    """The name is what clients write; the order is documented."""
    agents = load(here, "other=hf_agents:named", "hf_agents:named", "hf_agents:unnamed", "hf_agents:echo")
    assert [agent.name for agent in agents] == ["other", "weather", "unnamed", "echo"]
    assert isinstance(agents[0], PydanticAgent)
    assert isinstance(agents[3], GeneratorAgent)


def test_an_object_with_our_port_is_taken_as_it_is(here: Path) -> None:
    """Other libraries come in through the port."""
    agents = load(here, "hf_agents:own", "second=hf_agents:box.inner")
    assert [agent.name for agent in agents] == ["own", "second"]
    assert not agents[1].resumable


async def test_an_object_with_our_port_may_yield_what_a_generator_may(here: Path) -> None:
    """Whoever outgrows a function must not find that words are refused, or that a name cannot be set."""
    (agent,) = load(here, "hf_agents:sealed")
    told = await tell(agent.run(context("hi")))
    assert told.result.output == "one two"
    assert (agent.kind, agent.resumable, agent.model_name) == ("sealed", True, "m1")


async def test_objects_are_taken_as_what_names_them_is() -> None:
    """An application that has its agents at hand need not put them into modules."""

    async def echo(ctx):
        yield ctx.input

    given = [Agent(TestModel(), name="weather"), echo, "tests.startup.agents:good"]
    agents = load_agents(given, Path(), Settings(), ToolPool(1, 1.0))
    assert [agent.name for agent in agents] == ["weather", "echo", "good"]
    assert load_agents([Agent(TestModel())], Path(), Settings(), ToolPool(1, 1.0))[0].name == "agent"
    with pytest.raises(AgentLoadError, match="two agents are named 'echo'"):
        load_agents([echo, echo], Path(), Settings(), ToolPool(1, 1.0))
    with pytest.raises(AgentLoadError, match=r"must be a pydantic_ai\.Agent, an async generator function"):
        load_agents([7], Path(), Settings(), ToolPool(1, 1.0))


def test_the_given_model_replaces_the_agents_own(here: Path) -> None:
    """--model is the last word."""
    (agent,) = load(here, "hf_agents:bare", model=True)
    assert agent.model_name == "test"


async def test_a_wrapped_agent_is_driven_through_its_wrapper(here: Path) -> None:
    """It is the way to give an agent usage limits, or anything else that its constructor does not take."""
    (agent,) = load(here, "hf_agents:wrapped")
    told = await tell(agent.run(context("hi")))
    assert (agent.name, told.result.output) == ("weather", "success (no tool calls)")


ERRORS = {
    "hf_agents": "form [name=]module:attribute",
    "hf_agents.py:named": "name the module: hf_agents:named",
    "=hf_agents:named": "form [name=]module:attribute",
    "hf_agents:": "form [name=]module:attribute",
    "hf_absent:agent": "no module 'hf_absent'",
    "hf_needs:agent": "imports 'hf_not_installed', which is not installed",
    "hf_broken:agent": "hf_broken.py:2: RuntimeError: at import",
    "hf_syntax:agent": "hf_syntax.py:1",
    "hf_exits:agent": "importing hf_exits called exit(4) at ",
    "hf_agents:nmaed": "it has hf_agents:bare, hf_agents:named",
    "hf_agents:number": "is a int; it must be a pydantic_ai.Agent",
    "hf_agents:sync": "a sync generator function",
    "hf_agents:once": "a coroutine function",
    "hf_agents:running": "already running",
    "hf_agents:Own": "the class Own",
    "hf_agents:bare": "has no model; give it one",
    "a b=hf_agents:named": "which clients cannot write",
}


@pytest.mark.parametrize("spec", ERRORS)
def test_each_mistake_is_named_with_what_to_write_instead(here: Path, spec: str) -> None:
    """Nobody should need the source to start a server."""
    with pytest.raises(AgentLoadError) as raised:
        load(here, spec)
    assert ERRORS[spec] in str(raised.value)


def test_equal_names_refuse_to_start(here: Path) -> None:
    """Which one a client gets must not depend on the order of the command line."""
    with pytest.raises(AgentLoadError, match="two agents are named 'weather'"):
        load(here, "hf_agents:named", "weather=hf_agents:echo")


def test_nothing_to_serve_refuses_to_start(here: Path) -> None:
    """Without a model nothing is made up."""
    with pytest.raises(AgentLoadError, match="--model"):
        load(here)


def test_a_model_alone_is_a_plain_chat_agent(here: Path) -> None:
    """`serve --model M` needs no code at all."""
    (agent,) = load(here, model=True)
    assert (agent.name, agent.kind, agent.resumable) == ("holdfast", "pydantic-ai", True)
    assert default_agent(TestModel(), Settings(), ToolPool(1, 1.0)).name == "holdfast"
