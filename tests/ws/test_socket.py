"""Operations on one socket: ready, start, subscribe, unsubscribe, stop, steer, ping."""

from tests.gateway.support import Site
from tests.ws.support import socket


async def test_ready_comes_first_and_says_whether_runs_are_taken(here: Site) -> None:
    """Document 1: a client connected, was greeted and then met silence. It is told at once what it has here."""
    async with socket(here.url) as client:
        assert client.ready["takes_runs"] is True
        assert client.ready["why"] is None
        assert client.ready["agents"] == ["echo"]
        assert client.ready["limits"]["subscriptions"] == here.settings.ws_subscriptions


async def test_a_run_is_started_and_followed_to_its_end_on_one_socket(here: Site) -> None:
    """The ack has the record, and the events are those of the log, each once, to the terminal one."""
    async with socket(here.url) as client:
        ack = await client.ask("start", input="hello", session="s1")
        assert (ack["op"], ack["of"], ack["session"], ack["replayed"]) == ("ack", "start", "s1", False)
        assert ack["record"]["input"] == "hello"
        holder = await here.claim()
        await holder.say("hi")
        await here.complete(holder, "hi")
        end = await client.end_of(ack["run"])
        assert end["output"] == "hi"
        log = (await here.http.get(f"/api/runs/{ack['run']}/events", headers={"Accept": "application/json"})).json()
        assert client.events(ack["run"]) == log["events"]
        assert (await client.ask("ping"))["op"] == "pong"
