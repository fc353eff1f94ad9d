"""OpenAI's own clients in the background: cut at any byte, resumed by `starting_after`, cancelled."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any

import httpx2
import openai
import pytest

from tests.streams.node import node
from tests.system.proxy import CuttingProxy
from tests.system.support import System, full

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = '!think n=10\n!tool look {"at": "é"}\n!tokens n=120 rate=100'
TEXT = "".join(f"t{k} " for k in range(1, 121))
CUTS = full(100, 15)  # at least so many in all
AT_ONCE = 5
ENDS = ("response.completed", "response.failed", "response.incomplete")
Read = Callable[[str, list[str], bool], list[dict[str, Any]]]


def with_python(url: str, keys: list[str], cancel: bool) -> list[dict[str, Any]]:
    """Read one response for each key to its end, all at the same time, with openai-python."""
    found: dict[str, dict[str, Any]] = {}
    threads = [threading.Thread(target=lambda key=key: found.update({key: _whole(url, key, cancel)})) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    return [found[key] for key in keys]


def _whole(url: str, key: str, cancel: bool) -> dict[str, Any]:
    events: list[dict[str, Any]] = []
    response, breaks, cancelled = "", 0, None
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        while not events or events[-1]["type"] not in ENDS:
            assert breaks < 300, f"never whole: {len(events)} events"
            try:
                if response:
                    after = events[-1]["sequence_number"]
                    stream = client.responses.retrieve(response, stream=True, starting_after=after)
                else:
                    headers = {"Idempotency-Key": key}
                    stream = client.responses.create(
                        model="asker", input=SCRIPT, background=True, stream=True, extra_headers=headers
                    )
                for event in stream:
                    events.append(event.model_dump())
                    response = response or event.response.id
                    if cancel and cancelled is None and event.type == "response.output_text.delta":
                        cancelled = client.responses.cancel(response).status
            except (openai.APIConnectionError, httpx2.HTTPError):
                breaks += 1
            else:
                breaks += events[-1]["type"] not in ENDS
        now = _retried(lambda: client.responses.retrieve(response))
    said = {"status": now.status, "text": now.output_text}
    return {"id": response, "events": events, "breaks": breaks, "cancelled": cancelled, "now": said}


def _retried(ask: Callable[[], Any]) -> Any:
    for _ in range(50):
        try:
            return ask()
        except openai.APIConnectionError:
            continue
    raise AssertionError("never answered")


def with_node(url: str, keys: list[str], cancel: bool) -> list[dict[str, Any]]:
    """The same with openai-node."""
    found: list[dict[str, Any]] = node(
        "openai.mjs", url, cancel=cancel, responses=[{"text": SCRIPT, "key": key} for key in keys]
    )
    return found


@pytest.fixture(params=[with_python, with_node], ids=["python", "node"])
def read(request: pytest.FixtureRequest) -> Read:
    found: Read = request.param
    return found


def test_cut_anywhere_every_event_comes_once_and_in_order(read: Read, url: str, request: Any) -> None:
    """Text exact, numbers contiguous from 0, one terminal event, whatever breaks and wherever."""
    seed = random.randrange(2**32)
    chance, cuts, rounds = random.Random(seed), 0, 0
    while cuts < CUTS:
        rounds += 1
        assert rounds < 30, cuts
        with closing(CuttingProxy(int(url.rpartition(":")[2]), lambda: chance.randrange(1, 12_000))) as proxy:
            keys = [f"{request.node.name}-{seed}-{rounds}-{n}" for n in range(AT_ONCE)]
            for seen in read(proxy.url, keys, False):
                events = seen["events"]
                assert [e["sequence_number"] for e in events] == list(range(len(events))), f"seed {seed}"
                assert [e["type"] for e in events if e["type"] in ENDS] == ["response.completed"]
                said = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
                assert said == TEXT, f"seed {seed}"
                assert seen["now"] == {"status": "completed", "text": TEXT}
            cuts += proxy.cuts


def test_cancelled_by_its_own_client(read: Read, url: str, site: System, request: Any) -> None:
    """Cancel answers with the end, the stream ends with it, and retrieve says the same."""
    (seen,) = read(url, [f"cancel-{request.node.name}"], True)
    assert (seen["cancelled"], seen["now"]["status"]) == ("cancelled", "cancelled")
    events = seen["events"]
    assert (events[-1]["type"], events[-1]["response"]["status"]) == ("response.incomplete", "cancelled")
    assert [e["sequence_number"] for e in events] == list(range(len(events)))
    assert site.record(seen["id"].removeprefix("resp_"))["reason"] == "stopped"
