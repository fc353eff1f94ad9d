"""The catalogue of errors and the receipts: complete, and true."""

import ast
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.domain.digest import Digest
from holdfast.domain.errors import CATALOGUE, HoldfastError, RunEnded, StoreUnavailable, run_error
from holdfast.domain.receipts import ToolEnd, reaper_receipt, receipt
from holdfast.domain.runs import REASONS, Reason, State

SOURCES = Path(__file__).parents[2] / "src" / "holdfast"
# PROTOCOL.md, "Errors are application/problem+json"
STATUS = {
    "unauthorized": 401,
    "forbidden_origin": 403,
    "unknown_run": 404,
    "unknown_session": 404,
    "unknown_agent": 404,
    "method_not_allowed": 405,
    "session_busy": 409,
    "idempotency_conflict": 409,
    "already_ended": 409,
    "late_decision": 409,
    "invalid_request": 422,
    "invalid_offset": 422,
    "rate_limited": 429,
    "not_ready": 503,
    "overloaded": 503,
    "store_unavailable": 503,
}


@pytest.mark.parametrize("code", sorted(STATUS))
def test_every_code_of_the_protocol_is_in_the_catalogue(code: str) -> None:
    """Clients outside this repository rely on the pair."""
    assert CATALOGUE[code].status == STATUS[code]


@pytest.mark.parametrize("code", sorted(CATALOGUE))
def test_every_entry_says_what_to_do(code: str) -> None:
    """P8: a code, a cause, a remedy. Lower case, no full stop."""
    entry = CATALOGUE[code]
    assert 400 <= entry.status <= 599
    assert entry.remedy
    assert not entry.remedy.endswith(".")
    assert code == code.lower()
    if entry.status in (429, 503):
        assert entry.retryable
    error = HoldfastError(code, "what happened", run="r_1")
    assert (error.status, error.retryable, error.remedy) == (entry.status, entry.retryable, entry.remedy)
    assert (str(error), error.fields) == ("what happened", {"run": "r_1"})


def test_every_code_that_is_raised_is_in_the_catalogue() -> None:
    """HoldfastError("typo", ...) would fail only when it is needed."""
    raised = set()
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "HoldfastError"
            if called and node.args and isinstance(node.args[0], ast.Constant):
                raised.add(node.args[0].value)
    assert raised
    assert raised <= set(CATALOGUE)


def test_an_unknown_outcome_may_be_repeated() -> None:
    """The one exception of the store port."""
    error = StoreUnavailable("append: disk I/O error")
    assert (error.code, error.status, error.retryable) == ("store_unavailable", 503, True)


@given(st.text(max_size=4_000))
def test_the_error_of_a_run_is_bounded(message: str) -> None:
    """A stack of a megabyte in a message must not fill the log."""
    ended = RunEnded(Reason.TOOL_ERROR, "tool_error", message, cause="ValueError", remedy="r")
    error = ended.to_error()
    assert error == run_error("tool_error", message, "ValueError", "r", retryable=False)
    assert len(error["message"]) <= 2_000
    assert set(error) == {"code", "message", "cause", "retryable", "remedy"}
    assert ended.reason in REASONS[State.FAILED]


def test_a_receipt_has_the_shape_of_the_protocol() -> None:
    """Checks outside the repository read it."""
    made = receipt(
        requested_ms=1_767_225_600_000,
        ended_ms=1_767_225_600_120,
        upstream_closed_ms=15,
        tools=[ToolEnd("c1", "look", "killed")],
        abandoned=False,
        by="worker",
    )
    assert made == {
        "requested_at": "2026-01-01T00:00:00.000Z",
        "ended_at": "2026-01-01T00:00:00.120Z",
        "elapsed_ms": 120,
        "upstream_closed_ms": 15,
        "tools": [{"call": "c1", "name": "look", "ended": "killed"}],
        "abandoned": False,
        "by": "worker",
    }


def test_the_reapers_receipt_claims_nothing_it_cannot_know() -> None:
    """P2: what could not be stopped is said; upstream is unknown, not closed."""
    fold = Digest(
        [
            {"type": "tool.called", "call": "c1", "name": "a", "args": {}},
            {"type": "tool.finished", "call": "c1", "outcome": "success", "result": 1},
            {"type": "tool.called", "call": "c2", "name": "b", "args": {}},
        ]
    )
    made = reaper_receipt(1_000, 3_500, fold.open_calls())
    assert (made["by"], made["upstream_closed_ms"], made["abandoned"]) == ("reaper", None, True)
    assert made["tools"] == [{"call": "c2", "name": "b", "ended": "abandoned"}]
    assert made["elapsed_ms"] == 2_500
    assert reaper_receipt(1_000, 3_500, [])["abandoned"] is False


def test_elapsed_is_never_negative() -> None:
    """A wall clock may be set back between the request and the end."""
    assert reaper_receipt(5_000, 1_000, [])["elapsed_ms"] == 0
