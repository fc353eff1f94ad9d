"""Agents whose tools ask first; what their tools did is in `journal.txt`, beside them."""

import time
from pathlib import Path

from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ApprovalRequired, CallDeferred

from holdfast.ports.agent import Request, Steered, Waiting

JOURNAL = Path(__file__).with_name("journal.txt")

asker = Agent(name="asker", instructions="Answer in one sentence.")


def note(what: str) -> None:
    """One line, on the disk before anything else happens."""
    with JOURNAL.open("a") as journal:
        journal.write(what + "\n")


@asker.tool_plain(requires_approval=True)
def pay(amount: int) -> str:
    """Cannot be taken back."""
    note(f"pay {amount}")
    return f"paid {amount}"


@asker.tool_plain(requires_approval=True)
def slow_pay(amount: int) -> str:
    """Long enough to be killed in."""
    note(f"slow_pay {amount}")
    time.sleep(3)
    return f"paid {amount}"


@asker.tool_plain
def look(at: str) -> str:
    """Asks nobody."""
    note(f"look {at}")
    return f"seen {at}"


@asker.tool
def remove(ctx: RunContext[None], path: str) -> str:
    """Asks for some paths only."""
    if path.startswith("/") and not ctx.tool_call_approved:
        raise ApprovalRequired(metadata={"why": "an absolute path"})
    note(f"remove {path}")
    return f"removed {path}"


@asker.tool_plain
def outside(question: str) -> str:
    """Answered by somebody else."""
    note(f"outside {question}")
    raise CallDeferred(metadata={"queue": "desk"})


@asker.tool_plain
def pause(seconds: float) -> str:
    """Long enough to be steered in."""
    note("pause")
    time.sleep(seconds)
    return "rested"


async def plain(ctx):
    """A generator that asks, and reads its inbox."""
    if not ctx.decisions:
        yield "May I? "
        yield Waiting([Request("go", "go", {"far": True})])
    for item in await ctx.inbox():
        yield Steered(item.n, item.input)
        yield f"You said {item.input}. "
    yield "yes" if ctx.decisions[0]["approve"] else "no"
