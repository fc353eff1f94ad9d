"""A reader of a log gets exactly the missing suffix, whatever happens to its connections."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.client import ApiError, ServerUnreachable, Unauthorized
from tests.client.fake_log import RUN, FakeLog, cut

_errors = st.sampled_from(
    [None, httpx2.ReadError("reset"), httpx2.ReadTimeout("silent"), httpx2.RemoteProtocolError("cut")]
)
_cuts = st.builds(cut, st.integers(0, 6), _errors, torn=st.booleans(), again=st.integers(0, 3))


@given(length=st.integers(1, 12), script=st.lists(_cuts, max_size=5), after=st.integers(0, 12))
def test_reader_gets_exactly_the_missing_suffix(length, script, after):
    """P3: no gap and no duplicate, wherever the connections break and whatever is sent twice."""
    after = min(after, length - 1)
    log = FakeLog(length, script)
    with log.client() as client:
        assert [e["seq"] for e in client.events(RUN, after)] == list(range(after + 1, length + 1))


@given(length=st.integers(1, 12), script=st.lists(_cuts, max_size=5), after=st.integers(0, 12))
async def test_asynchronous_reader_gets_exactly_the_missing_suffix(length, script, after):
    """The same promise for the client of a loop."""
    after = min(after, length - 1)
    log = FakeLog(length, script)
    async with log.async_client() as client:
        assert [e["seq"] async for e in client.follow(RUN, after)] == list(range(after + 1, length + 1))


def test_states_of_the_connection_are_told_in_their_order():
    """A page can say connecting, live, again in n s, and how it ended, without guessing."""
    log = FakeLog(3, [cut(1), cut(0)])
    heard = []
    with log.client() as client:
        events = client.follow(RUN, on_state=heard.append)
        assert events.connection.state == "connecting"
        assert next(events)["seq"] == 1
        assert (events.connection.state, events.place) == ("live", "1-1")
        assert [e["seq"] for e in events] == [2, 3]
        assert (events.connection.state, events.place) == ("ended", "3-1")
    told = [each.state for each in heard]
    again = ["reconnecting", "connecting", "live"]
    assert told == ["connecting", "live", *again, *again, "ended"]
    assert [(each.wait_s, each.failures) for each in heard if each.state == "reconnecting"] == [
        (log.waits[0], 1),
        (log.waits[1], 2),
    ]


def test_leaving_and_failing_are_states_too():
    """After a refusal, and after the caller left, nothing pretends to be live."""
    log = FakeLog(3)
    with log.client() as client:
        with client.follow(RUN) as events:
            next(events)
        assert events.connection.state == "closed"
        assert list(events) == []
    refusal = {"code": "unauthorized", "detail": "no key", "remedy": "send one", "retryable": False}
    log = FakeLog(3, [httpx2.Response(401, json=refusal)])
    with log.client() as client:
        events = client.follow(RUN)
        with pytest.raises(Unauthorized):
            next(events)
        assert (events.connection.state, events.connection.cause) == ("failed", "unauthorized: no key")
    assert len(log.asked) == 1


def test_a_server_that_stays_silent_is_given_up(monkeypatch):
    """P7: thirty seconds of silence are not thirty seconds of life, so half-open connections are counted, too."""
    clock = [0.0]
    monkeypatch.setattr("holdfast.client.stream.time.monotonic", lambda: clock[0])

    def silent(log: FakeLog, after: int) -> Iterator[bytes]:
        clock[0] += 30.0
        raise httpx2.ReadTimeout("silent")
        yield b""

    log = FakeLog(3, [silent] * 9)
    with log.client(attempts=3) as client, pytest.raises(ServerUnreachable, match="4 connections in a row"):
        list(client.follow(RUN))


def test_reconnect_names_the_event_it_has():
    """The epoch in the id is how a server sees that the log was replaced meanwhile."""
    log = FakeLog(5, [cut(2), cut(1)])
    with log.client() as client:
        list(client.events(RUN))
    assert [r.headers.get("last-event-id") for r in log.asked] == [None, "2-1", "3-1"]


def test_an_end_without_a_terminal_event_is_an_interruption():
    """F35: EOF is not success; the reader says that it was interrupted and comes back."""
    log = FakeLog(3, [cut(1)])
    heard = []
    with log.client() as client:
        events = list(client.events(RUN, on_interrupt=lambda cause, wait_s: heard.append((cause, wait_s))))
    assert events[-1]["type"] == "run.completed"
    assert heard == [("the stream closed before the terminal event", log.waits[0])]


def test_waits_double_up_to_their_limit_and_jitter():
    """F50: a restarted server is not met by all its readers in the same second."""
    broken = [cut(0)] * 8
    log = FakeLog(1, broken)
    with log.client(attempts=8) as client:
        list(client.events(RUN))
    for wait, step in zip(log.waits, [1, 2, 4, 8, 16, 30, 30, 30], strict=True):
        assert step / 2 <= wait <= step


def test_attempts_in_a_row_are_counted_and_progress_resets_them():
    """P7: every retry has a count; a reader that gets something each time is not failing."""
    log = FakeLog(6, [cut(1), cut(0), cut(1), cut(0), cut(1), cut(0)])
    with log.client(attempts=2) as client:
        assert len(list(client.events(RUN))) == 6
    log = FakeLog(6, [cut(1), cut(0), cut(0), cut(0)])
    with log.client(attempts=2) as client:
        reader = client.events(RUN)
        assert next(reader)["seq"] == 1
        with pytest.raises(ServerUnreachable, match="3 connections in a row"):
            next(reader)


def test_a_gap_is_read_again_and_never_handed_out():
    """A proxy or a server that drops a frame cannot make the reader skip it."""

    def gap(log: FakeLog, after: int) -> Iterator[bytes]:
        yield log.frame(1)
        yield log.frame(3)

    log = FakeLog(4, [gap])
    with log.client() as client:
        assert [e["seq"] for e in client.events(RUN)] == [1, 2, 3, 4]
    assert log.asked[1].headers["last-event-id"] == "1-1"


def test_resync_is_handed_out_and_the_log_follows_from_its_start():
    """A log that was replaced is said, never silently mixed with the old one."""

    def replaced(log: FakeLog, after: int) -> Iterator[bytes]:
        yield log.notice("resync", asked="7-1", head=3, epoch=2)
        for seq in (1, 2, 3):
            yield log.frame(seq, epoch=2)

    log = FakeLog(3, [replaced])
    with log.client() as client:
        events = list(client.events(RUN, "7-1"))
    assert events[0] == {"type": "resync", "run": RUN, "asked": "7-1", "head": 3, "epoch": 2}
    assert [e["seq"] for e in events[1:]] == [1, 2, 3]


def test_after_a_resync_the_new_place_is_named():
    """The old place is of no more use, also on the next connection."""

    def replaced(log: FakeLog, after: int) -> Iterator[bytes]:
        yield log.notice("resync", asked="7-1", head=3, epoch=2)
        yield log.frame(1, epoch=2)

    log = FakeLog(3, [replaced])
    with log.client() as client:
        list(client.events(RUN, "7-1"))
    assert log.asked[1].headers["last-event-id"] == "1-2"


def test_gone_ends_the_reading_with_its_code():
    """A log that was deleted under its reader ends with an error, not with silence or endless retries."""

    def gone(log: FakeLog, after: int) -> Iterator[bytes]:
        yield log.frame(1)
        yield log.notice("gone", code="gone", detail="the log was deleted", remedy="start a new run")

    log = FakeLog(3, [gone])
    with log.client() as client:
        reader = client.events(RUN)
        assert next(reader)["seq"] == 1
        with pytest.raises(ApiError, match="gone: the log was deleted; start a new run") as caught:
            next(reader)
    assert caught.value.code == "gone"


def test_unavailable_is_an_interruption():
    """A store that restarts costs the reader a wait."""

    def unavailable(log: FakeLog, after: int) -> Iterator[bytes]:
        yield log.frame(1)
        yield log.notice("unavailable", detail="the store does not answer")

    log = FakeLog(3, [unavailable])
    with log.client() as client:
        assert [e["seq"] for e in client.events(RUN)] == [1, 2, 3]


def test_204_says_that_nothing_is_missing():
    """A reader that already has the terminal event is told so, and stops."""
    log = FakeLog(3, [httpx2.Response(204)])
    with log.client() as client:
        assert list(client.events(RUN, 3)) == []
    assert len(log.asked) == 1


def test_refusals_end_the_reading_and_overload_does_not():
    """What cannot get better is not asked again; what can is, after the time the server names."""
    unknown = {"code": "unknown_run", "detail": "no run r_1", "remedy": "check the run id", "retryable": False}
    busy = {"code": "overloaded", "detail": "full", "remedy": "wait", "retryable": True}
    log = FakeLog(
        3, [httpx2.Response(503, json=busy, headers={"retry-after": "9"}), httpx2.Response(404, json=unknown)]
    )
    with log.client() as client, pytest.raises(ApiError, match="unknown_run"):
        list(client.events(RUN))
    assert log.waits == [9.0]


def test_a_frame_that_is_no_event_is_read_again():
    """Half a JSON document is a broken connection, not a crash."""

    def broken(log: FakeLog, after: int) -> Iterator[bytes]:
        yield log.frame(1)
        yield b'id: 2-1\nevent: text.delta\ndata: {"seq": 2, "typ\n\n'

    log = FakeLog(3, [broken])
    with log.client() as client:
        assert [e["seq"] for e in client.events(RUN)] == [1, 2, 3]


def test_reader_closes_its_connection_when_its_caller_leaves():
    """A reader that is dropped holds no socket."""
    closed = []

    class Stream(httpx2.SyncByteStream):
        def __iter__(self):
            log = FakeLog(9)
            for seq in range(1, 10):
                yield log.frame(seq)

        def close(self):
            closed.append(True)

    answer = httpx2.Response(200, headers={"content-type": "text/event-stream"}, stream=Stream())
    with FakeLog(9, [answer]).client() as client:
        reader = client.events(RUN)
        next(reader)
        reader.close()
    assert closed


def test_after_must_be_an_offset():
    """A wrong offset is refused here, before it costs a request."""
    with FakeLog(1).client() as client, pytest.raises(ValueError, match="not 'x'"):
        client.events(RUN, "x")
