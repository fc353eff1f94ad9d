"""From `[name=]module:attr` on the command line, or an object, to agents; errors say what to write instead."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

from pydantic_ai import Agent as PydanticAIAgent
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.models import Model

from holdfast.agents.generator import GeneratorAgent
from holdfast.agents.pydantic_ai import PydanticAgent
from holdfast.config.settings import Settings
from holdfast.domain.ids import ID_PATTERN, is_id
from holdfast.models import ModelGuard
from holdfast.ports.agent import Agent
from holdfast.tools import ToolPool

DEFAULT_NAME: Final = "holdfast"
UNNAMED: Final = "agent"  # an object that has no name of its own
DEFAULT_INSTRUCTIONS: Final = "You are a helpful assistant."
ACCEPTED: Final = (
    "a pydantic_ai.Agent, an async generator function that takes the run's context (`async def agent(ctx): "
    "yield ...`), or an object with name, kind, resumable and run(ctx)"
)
_CANDIDATES: Final = 8


class AgentLoadError(Exception):
    """An agent that was asked for cannot be served; the text says what to change."""


class _Around(NamedTuple):
    settings: Settings
    pool: ToolPool
    model: Model | None
    guard: ModelGuard | None


class Spec(NamedTuple):
    """One agent as the command line names it."""

    name: str
    module: str
    attribute: str


def parse_spec(text: str) -> Spec:
    """Read `[name=]module:attr`.

    Raises:
        AgentLoadError: It is not of that form.
    """
    name, given, rest = text.rpartition("=")
    module, colon, attribute = rest.partition(":")
    if module.endswith(".py"):
        dotted = module.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise AgentLoadError(f"agent {text!r} names a file; name the module: {dotted}:{attribute or 'agent'}")
    if not colon or not module or not attribute or (given and not name):
        raise AgentLoadError(f"agent {text!r} is not of the form [name=]module:attribute")
    return Spec(name, module, attribute)


def load_agents(
    specs: Sequence[object],
    directory: Path,
    settings: Settings,
    pool: ToolPool,
    model: Model | None = None,
    guard: ModelGuard | None = None,
) -> list[Agent]:
    """Import and wrap the agents; the first is the default.

    Args:
        specs: `[name=]module:attr` each, or what such a line names; none at all means the built-in chat agent.
        directory: Where modules are looked for first, usually the current directory.
        settings: The limits.
        pool: Where sync tools run.
        model: In place of each agent's own.
        guard: What their models share; one of its own for each agent by default.

    Raises:
        AgentLoadError: One of them cannot be served.
    """
    if not specs:
        return [default_agent(model, settings, pool, guard)]
    agents: list[Agent] = []
    origins: dict[str, str] = {}
    around = _Around(settings, pool, model, guard)
    for given in specs:
        if isinstance(given, str):
            text, agent = given, _load(parse_spec(given), given, directory, around)
        else:
            text, agent = _called(given), _take(given, around)
        if agent.name in origins:
            remedy = f"as in other={text.rpartition('=')[2]}" if isinstance(given, str) else "by its `name`"
            raise AgentLoadError(
                f"two agents are named {agent.name!r}: {origins[agent.name]} and {text}; name one of them anew, "
                f"{remedy}"
            )
        origins[agent.name] = text
        agents.append(agent)
    return agents


def default_agent(model: Model | None, settings: Settings, pool: ToolPool, guard: ModelGuard | None = None) -> Agent:
    """The plain chat agent that is served where only a model is named.

    Raises:
        AgentLoadError: There is no model either; nothing is made up.
    """
    if model is None:
        raise AgentLoadError(
            "nothing to serve: name an agent (module:attribute), or a model with --model NAME --model-url URL or "
            "--model provider:name; `holdfast demo` shows everything without one"
        )
    agent = PydanticAIAgent(model, name=DEFAULT_NAME, instructions=DEFAULT_INSTRUCTIONS)
    return PydanticAgent(agent, DEFAULT_NAME, settings, pool, model, guard)


def _load(spec: Spec, text: str, directory: Path, around: _Around) -> Agent:
    found = _attribute(_import(spec, text, directory), spec, text)
    name = spec.name or _own_name(found) or spec.attribute.rpartition(".")[2]
    if not is_id(name):
        raise AgentLoadError(
            f"agent {text!r} is named {name!r}, which clients cannot write; give it a name of {ID_PATTERN}, "
            f"as in other={spec.module}:{spec.attribute}"
        )
    return _wrap(found, name, text, around)


def _take(found: Any, around: _Around) -> Agent:
    """An agent that is here already."""
    name = _own_name(found) or getattr(found, "__name__", "") or UNNAMED
    if not is_id(name):
        raise AgentLoadError(f"{_called(found)} is named {name!r}, which clients cannot write; use {ID_PATTERN}")
    return _wrap(found, name, _called(found), around)


def _called(found: object) -> str:
    """An object for who is told of it, who has no text of its own to know it by."""
    name = getattr(found, "__qualname__", "") or _own_name(found)
    return f"{_what(found)} {name}".strip()


def _wrap(found: Any, name: str, text: str, around: _Around) -> Agent:
    if isinstance(found, AbstractAgent):
        return _pydantic(found, name, text, around)
    if inspect.isasyncgenfunction(found) or inspect.isasyncgenfunction(vars(type(found)).get("__call__")):
        return GeneratorAgent(found, name)
    if _is_port(found):
        model_name = getattr(found, "model_name", "")
        return GeneratorAgent(
            found.run, name, kind=found.kind, resumable=bool(found.resumable), model_name=model_name or ""
        )
    raise AgentLoadError(f"agent {text!r} is {_what(found)}; it must be {ACCEPTED}")


def _import(spec: Spec, text: str, directory: Path) -> ModuleType:
    here = str(directory.resolve())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(spec.module)
    except ModuleNotFoundError as error:
        missing = error.name or spec.module
        if spec.module == missing or spec.module.startswith(f"{missing}."):
            raise AgentLoadError(
                f"agent {text!r}: no module {missing!r} in {here} or among the installed packages; "
                "start from the directory that holds it"
            ) from error
        raise AgentLoadError(f"agent {text!r}: {spec.module} imports {missing!r}, which is not installed") from error
    except SystemExit as error:  # a script without `if __name__ == "__main__"`: it would end the worker without a word
        raise AgentLoadError(
            f"agent {text!r}: importing {spec.module} called exit({error.code!r}){_place(error)}; "
            "an import must define the agent and return"
        ) from error
    except Exception as error:
        where = _place(error)
        raise AgentLoadError(
            f"agent {text!r}: importing {spec.module} failed{where}: {type(error).__name__}: {error}"
        ) from error


def _attribute(module: ModuleType, spec: Spec, text: str) -> Any:
    found: Any = module
    for part in spec.attribute.split("."):
        if not hasattr(found, part):
            candidates = [name for name, value in vars(module).items() if _serves(value)]
            near = get_close_matches(part, [n for n in vars(module) if not n.startswith("_")], _CANDIDATES)
            hint = ", ".join(f"{spec.module}:{name}" for name in (candidates or near)[:_CANDIDATES])
            raise AgentLoadError(
                f"agent {text!r}: {spec.module} has no {part!r}" + (f"; it has {hint}" if hint else "")
            )
        found = getattr(found, part)
    return found


def _pydantic(found: AbstractAgent[Any, Any], name: str, text: str, around: _Around) -> Agent:
    if around.model is None and found.model is None:
        raise AgentLoadError(
            f"agent {text!r} has no model; give it one (Agent('provider:name', ...)), or start with --model"
        )
    return PydanticAgent(found, name, around.settings, around.pool, around.model, around.guard)


def _own_name(found: Any) -> str:
    name = getattr(found, "name", None)
    return name if isinstance(name, str) else ""


def _serves(value: Any) -> bool:
    return isinstance(value, AbstractAgent) or inspect.isasyncgenfunction(value) or _is_port(value)


def _is_port(value: Any) -> bool:
    wanted = ("run", "name", "kind", "resumable")
    return not inspect.isclass(value) and all(hasattr(value, name) for name in wanted) and callable(value.run)


def _what(found: Any) -> str:
    if inspect.isclass(found):
        return f"the class {found.__name__}"
    if inspect.iscoroutinefunction(found):
        return "a coroutine function (it returns once, where an agent yields)"
    if inspect.isgeneratorfunction(found):
        return "a sync generator function (it would block every other run; write `async def`)"
    if inspect.isasyncgen(found):
        return "an async generator that is already running (name the function, without calling it)"
    if inspect.isfunction(found):
        return "a plain function"
    return f"a {type(found).__name__}"


def _place(error: BaseException) -> str:
    frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ is not None else []
    if isinstance(error, SyntaxError) and error.filename:
        return f" at {error.filename}:{error.lineno}"
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
