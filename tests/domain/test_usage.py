"""What a run has used: what was reported is summed, and what nobody knows is counted, never made up."""

from __future__ import annotations

from typing import Any

from holdfast.domain.digest import Digest


def asked(attempt: int = 1, model: str = "m") -> dict[str, Any]:
    return {"type": "model.requested", "step": 1, "model": model, "attempt": attempt}


def answered(**usage: Any) -> dict[str, Any]:
    return {"type": "model.responded", "step": 1, "model": "m", "usage": usage}


def said(text: str) -> dict[str, Any]:
    return {"type": "text.delta", "part": 0, "text": text}


def test_a_response_that_was_cut_is_counted_and_its_usage_is_not_made_up() -> None:
    """F56: a stopped run shows what is known; nobody can know what the half of a response cost."""
    digest = Digest([asked(), answered(input_tokens=5, output_tokens=7), asked(), said("half an ans")])
    assert digest.usage() == {"requests": 2, "input_tokens": 5, "output_tokens": 7, "unreported": 1}


def test_a_request_that_is_repeated_before_any_content_is_one() -> None:
    """A 429 costs no tokens: three tries that end well are one request of known usage."""
    digest = Digest([asked(), asked(2), asked(3), answered(input_tokens=1, output_tokens=1)])
    assert digest.usage() == {"requests": 1, "input_tokens": 1, "output_tokens": 1}
    assert digest.spent.steps == 1


def test_a_response_that_was_taken_back_was_paid_for_all_the_same() -> None:
    """Text was shown, then the request was repeated: one usage is known, the other is not."""
    digest = Digest([asked(), said("lost"), asked(2), answered(input_tokens=1, output_tokens=1)])
    assert digest.usage()["unreported"] == 1
    assert digest.spent.unreported_characters == 4


def test_a_crash_in_the_middle_of_a_response_is_seen_by_the_attempt_that_follows() -> None:
    """The next attempt asks anew; the request that died with its worker is not forgotten."""
    digest = Digest([asked(), asked(), answered(input_tokens=1, output_tokens=1)])
    assert digest.usage() == {"requests": 2, "input_tokens": 1, "output_tokens": 1, "unreported": 1}
    assert digest.spent.steps == 2


def test_a_provider_that_reports_nothing_is_said_to() -> None:
    """Zeros are what an agent library writes where the provider sent no usage."""
    digest = Digest([asked(), said("12345678"), answered(input_tokens=0, output_tokens=0)])
    assert digest.usage() == {"requests": 1, "input_tokens": 0, "output_tokens": 0, "unreported": 1}
    assert digest.spent.unreported_characters == 8


def test_cost_is_summed_without_the_dust_of_binary_fractions() -> None:
    """It stands in records and is compared with a budget."""
    digest = Digest([answered(input_tokens=1, cost=0.1), answered(input_tokens=1, cost=0.2)])
    assert digest.usage()["cost"] == 0.3


def test_calls_that_were_taken_back_before_they_ended_are_not_counted() -> None:
    """A resumed attempt asks for the same call again; that is no second one."""
    called = {"type": "tool.called", "call": "c1", "name": "t", "args": {}}
    taken_back = {"type": "attempt.discarded", "step": 1, "reason": "resumed", "parts": [], "calls": ["c1"]}
    assert Digest([called]).tool_calls == 1
    assert Digest([called, taken_back]).tool_calls == 0
    assert Digest([called, taken_back, {**called, "call": "c2"}]).tool_calls == 1
