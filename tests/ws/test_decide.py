"""A run that waits for a decision, decided over its socket."""

from tests.gateway.support import Site
from tests.ws.support import socket


async def test_a_socket_decides(here: Site) -> None:
    """As over HTTP: what does not fit is an error with its code, the decision is acked, and repeated in peace."""
    async with socket(here.url) as client:
        run = (await client.ask("start", input="hello"))["run"]
        holder = await here.claim()
        await holder.park()
        wrong = await client.ask("decide", run=run, decisions=[{"call": "nobody", "approve": True}])
        assert (wrong["op"], wrong["of"], wrong["code"]) == ("error", "decide", "invalid_request")
        for _ in range(2):
            ack = await client.ask("decide", run=run, decisions=[{"call": "c1", "approve": True}])
            assert (ack["op"], ack["of"], ack["run"]) == ("ack", "decide", run)
        late = await client.ask("decide", run=run, decisions=[{"call": "c1", "approve": False}])
        assert (late["op"], late["code"]) == ("error", "late_decision")
        again = await here.claim()
        await here.complete(again, "done")
        await client.end_of(run)
