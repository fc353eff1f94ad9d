"""Twenty people at once, each with a token of their own: nobody waits for another, nobody sees another."""

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import pytest

from tests.access.support import SECRET, bearer, token
from tests.system.support import System
from tests.ws.support import Client, socket

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SUBJECTS = 20
LIMIT_S = 10.0
SEES = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]


async def test_twenty_subjects_at_once_each_see_their_five_events(
    start_system: Callable[..., System], figures: Callable[[str, list[str]], None]
) -> None:
    """One simple request each over the agent view: five events in order, of their own run only, in ten seconds."""
    system = start_system(HOLDFAST_JWT_SECRET=SECRET)
    url = f"http://127.0.0.1:{system.http.port}"
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                socket(
                    url,
                    "?view=agent",
                    additional_headers=bearer(token(sub=f"subject-{n}", aud=None, iss=None, tenant=None)),
                )
            )
            for n in range(SUBJECTS)
        ]

        async def ask(n: int, client: Client) -> tuple[str, float]:
            """Its run, and after how long it had ended."""
            began = time.monotonic()
            run = (await client.ask("start", input=f'!tool echo {{"text": "to {n}"}}\n!say done {n}'))["run"]
            end = await client.end_of(run)
            assert end["output"] == f"done {n}"
            return run, time.monotonic() - began

        began = time.monotonic()
        answers = await asyncio.gather(*(ask(n, client) for n, client in enumerate(clients)))
        took_s = time.monotonic() - began
        runs = [run for run, _ in answers]
        for (run, _), client in zip(answers, clients, strict=True):
            mine = client.events(run)
            kinds = [event["type"] for event in mine]
            assert list(dict.fromkeys(kinds)) == SEES, kinds
            assert [event["seq"] for event in mine] == sorted(event["seq"] for event in mine)
            assert {frame["run_id"] for frame in client.seen if "run_id" in frame} == {run}
        assert len(set(runs)) == SUBJECTS
    assert took_s < LIMIT_S
    slowest = max(s for _, s in answers)
    figures(f"{SUBJECTS} subjects at once, agent view", [f"all in {took_s:.2f} s, the slowest {slowest:.2f} s"])
