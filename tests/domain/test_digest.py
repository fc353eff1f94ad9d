"""The digest: what a log amounts to, the same for whoever folds it."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.digest import Digest
from holdfast.domain.messages import Message

chunks = st.lists(st.text(max_size=8), max_size=6)
texts = st.text(min_size=1, max_size=20)


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": kind, **fields}


def delta(part: int, text: str) -> dict[str, Any]:
    return event("text.delta", part=part, text=text)


def done(part: int, text: str) -> dict[str, Any]:
    return event("text.done", part=part, text=text)


def called(call: str, **args: Any) -> dict[str, Any]:
    return event("tool.called", call=call, name="look", args=args)


def finished(call: str, result: Any, outcome: str = "success") -> dict[str, Any]:
    return event("tool.finished", call=call, name="look", outcome=outcome, result=result, duration_ms=1)


def discarded(parts: list[int], calls: list[str]) -> dict[str, Any]:
    return event("attempt.discarded", step=1, reason="resumed", parts=parts, calls=calls)


def shapes(messages: list[Message]) -> list[tuple[str, str, bool]]:
    return [(m.role, m.text, m.interrupted) for m in messages]


@given(st.lists(chunks, max_size=4))
def test_text_is_the_concatenation_of_its_deltas(parts: list[list[str]]) -> None:
    """What a reader has on the screen, part by part, however the deltas were cut."""
    digest = Digest(delta(n, c) for n, part in enumerate(parts) for c in part)
    assert digest.text() == "".join(c for part in parts for c in part)


@given(chunks, st.text(max_size=20))
def test_a_done_wins_over_its_deltas(part: list[str], whole: str) -> None:
    """text.done is the whole part; a fold that begins in its middle is put right by it."""
    digest = Digest([*(delta(0, c) for c in part), done(0, whole)])
    assert digest.text() == whole
    assert digest.open_parts() == []


@given(chunks)
def test_concat_of_deltas_is_text_done(part: list[str]) -> None:
    """DESIGN 7: for a part that has a done, both forms amount to the same."""
    whole = "".join(part)
    without = Digest(delta(0, c) for c in part)
    assert without.text() == Digest([done(0, whole)]).text() == whole


@given(st.lists(st.tuples(st.integers(0, 3), texts), max_size=12), st.sets(st.integers(0, 3)))
def test_discarded_parts_count_nowhere(written: list[tuple[int, str]], dropped: set[int]) -> None:
    """Readers dropped them; output, partial, history must not bring them back."""
    digest = Digest([*(delta(p, t) for p, t in written), discarded(sorted(dropped), [])])
    kept = {p for p, _ in written} - dropped
    assert set(digest.parts()) == kept
    assert set(digest.open_parts()) == kept
    order = list(dict.fromkeys(p for p, _ in written if p in kept))
    assert digest.text() == "".join(t for n in order for p, t in written if p == n)


@given(texts, texts)
def test_the_last_discarded_text_is_the_partial_until_something_follows(old: str, new: str) -> None:
    """A run that dies right after a discard still keeps what its reader saw last."""
    digest = Digest([delta(0, old), discarded([0], [])])
    assert (digest.text(), digest.partial()) == ("", old)
    assert shapes(digest.messages(completed=False, user="q")) == [("user", "q", False), ("assistant", old, True)]
    digest.feed("text.delta", delta(1, new))
    assert digest.partial() == new
    assert shapes(digest.messages(completed=False, user="q"))[1:] == [("assistant", new, True)]


def test_what_was_discarded_last_stands_behind_what_came_before_it() -> None:
    """A stop in a later step's fresh start keeps both: what earlier steps said, and what was on the screen."""
    digest = Digest([delta(0, "first "), event("tool.called", call="c", name="look", args={}), finished("c", 1)])
    digest.feed("text.delta", delta(1, "half"))
    digest.feed("attempt.discarded", discarded([1], []))
    assert (digest.text(), digest.partial()) == ("first ", "first half")
    assert [m.text for m in digest.messages(completed=False, user="q") if m.role == "assistant"] == ["first ", "half"]
    assert [m.text for m in digest.messages(completed=True, user="q") if m.role == "assistant"] == ["first "]
    digest.feed("text.delta", delta(2, "again"))
    assert digest.partial() == "first again"


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=6))
def test_every_call_in_the_history_has_a_result(calls: list[tuple[bool, bool]]) -> None:
    """P5: a history that is given to a model is valid: no call without a result, no result without a call."""
    digest = Digest()
    for n, (ends, drops) in enumerate(calls):
        digest.feed("model.requested", event("model.requested", step=n))
        digest.feed("tool.called", called(f"c{n}"))
        if ends:
            digest.feed("tool.finished", finished(f"c{n}", n))
        if drops:
            digest.feed("attempt.discarded", discarded([], [f"c{n}"]))
    messages = digest.messages(completed=False, user="q")
    asked = [c.call for m in messages for c in m.calls]
    assert asked == [m.call for m in messages if m.role == "tool"]
    assert asked == [f"c{n}" for n, (_, drops) in enumerate(calls) if not drops] == digest.calls()
    outcomes = {m.call: m.outcome for m in messages if m.role == "tool"}
    for n, (ends, drops) in enumerate(calls):
        if not drops:
            assert outcomes[f"c{n}"] == ("success" if ends else "interrupted")
    still_open = [f"c{n}" for n, (ends, drops) in enumerate(calls) if not ends and not drops]
    assert [c.call for c in digest.open_calls()] == still_open


def test_a_second_end_of_a_call_changes_nothing() -> None:
    """The first tool.finished of a call is what the model was told."""
    digest = Digest([called("c1"), finished("c1", "first"), finished("c1", "second", "failed")])
    (_, result) = digest.messages(completed=True, user="")
    assert (result.result, result.outcome) == ("first", "success")


def test_text_before_a_call_and_after_its_result_are_two_messages() -> None:
    """The order of what was said and looked up is the order in the history."""
    digest = Digest([delta(0, "let me look"), called("c1", x=1), finished("c1", 7), delta(1, "it is 7")])
    messages = digest.messages(completed=True, user="q")
    assert shapes(messages) == [
        ("user", "q", False),
        ("assistant", "let me look", False),
        ("tool", "", False),
        ("assistant", "it is 7", False),
    ]
    assert messages[1].calls[0].args == {"x": 1}


def test_only_an_answer_that_was_cut_short_is_interrupted() -> None:
    """The mark tells a model that it was stopped in the middle of a sentence; a completed run has none."""
    events = [delta(0, "one"), called("c1"), finished("c1", 1), delta(1, "tw")]
    assert [m.interrupted for m in Digest(events).messages(completed=False)] == [False, False, True]
    assert not any(m.interrupted for m in Digest(events).messages(completed=True))


def test_reasoning_is_not_text() -> None:
    """What a model thought is no part of its answer, nor of the history."""
    digest = Digest([event("reasoning.delta", part=0, text="hm"), delta(1, "yes")])
    assert digest.text() == "yes"
    assert shapes(digest.messages(completed=True)) == [("assistant", "yes", False)]
    assert digest.next_part() == 2


@given(st.lists(st.dictionaries(st.sampled_from(["input_tokens", "output_tokens"]), st.integers(0, 99)), max_size=5))
def test_usage_is_summed(responses: list[dict[str, int]]) -> None:
    """Every model response counts, also those of attempts that were discarded: they were paid for."""
    digest = Digest(event("model.responded", usage=usage) for usage in responses)
    expected = {name: sum(u.get(name, 0) for u in responses) for u in responses for name in u}
    expected |= {"requests": len(responses)} if responses else {}
    silent = [usage for usage in responses if not any(usage.values())]
    assert digest.usage() == expected | ({"unreported": len(silent)} if silent else {})


def test_input_comes_from_the_log_unless_given() -> None:
    """A log alone is enough to know what was asked."""
    digest = Digest([event("run.created", input="q"), event("steered", input="and this")])
    assert [m.text for m in digest.messages(completed=True)] == ["q", "and this"]
    assert [m.text for m in digest.messages(completed=True, user="edited")] == ["edited", "and this"]


@given(st.sampled_from(["run.stalled", "degraded", "tool.progress", "something.new"]))
def test_other_events_change_nothing(kind: str) -> None:
    """A log of a later version can be folded by an earlier one."""
    digest = Digest([delta(0, "x"), event(kind, call="c1", text="y", part=7)])
    assert (digest.text(), digest.parts(), digest.calls()) == ("x", [0], [])


def test_a_call_is_known_from_its_first_argument_until_it_is_taken_back() -> None:
    """A reader shows it from there on: whoever takes an attempt back has to name it, though it was never called."""
    digest = Digest([delta(0, "x"), event("tool.args", call="c1", name="look", delta='{"a')])
    assert (digest.text(), digest.calls(), digest.open_calls(), digest.tool_calls) == ("x", ["c1"], [], 0)
    digest.feed("attempt.discarded", {"parts": [], "calls": ["c1"]})
    assert (digest.calls(), digest.names()) == ([], {"c1"})


def test_the_first_content_is_timed_from_the_creation() -> None:
    """What a store says of a run that its worker did not end, it says from the log alone."""
    log = [
        event("run.created", ts="2026-01-02T03:04:05.678Z"),
        event("run.started", ts="2026-01-02T03:04:05.900Z"),
        {**delta(0, "a"), "ts": "2026-01-02T03:04:06.001Z"},
        {**delta(0, "b"), "ts": "2026-01-02T03:04:07.000Z"},
    ]
    assert Digest(log).ttft_ms == 323
    assert Digest(log[:2]).ttft_ms is None
    assert Digest([event("run.created"), delta(0, "a")]).ttft_ms is None
