"""Whatever /openapi.json allows or forbids is sent to a live server: no 500, and nothing undescribed comes back."""

import json
import os
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from holdfast.gateway.app import OPERATIONS
from tests.history.site import Site

EXAMPLES = 300 if os.environ.get("HOLDFAST_FULL") else 25
# A conversation that fits its schema may still lack a user's message, and an offset be of another log; no schema says
# that well.
UNSAYABLE = {
    path: ["positive_data_acceptance"]
    for path in ("/v1/chat/completions", "/v1/responses", "/api/chat", "/ag-ui/{agent}", "/streams/runs/{run}")
}
# Deleting what the next example needs would leave only 404 to look at.
SPARED = {("DELETE", "/api/sessions/{session}"), ("DELETE", "/v1/responses/{response}")}
# A list that is followed has no end: here it is asked for once, tests/gateway/test_live.py has its streams.
ENDLESS = {"/api/events"}
ROWS = [(row.method, row.path) for row in OPERATIONS]


@pytest.fixture(scope="module")
def known(http: httpx2.Client) -> dict[str, str]:
    """A run that has ended and its session: beyond what is not there, there is more to break."""
    made = http.post("/api/runs", json={"input": "x", "session": "known"})
    run = made.json()["id"]
    assert http.post(f"/api/runs/{run}/stop?wait_s=5").json()["state"] in ("completed", "cancelled")
    return {"run": run, "session": "known", "response": f"resp_{run}"}


@pytest.fixture(scope="module")
def description(site: Site) -> Any:
    return schemathesis.openapi.from_url(f"{site.url}/openapi.json")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("method_path", ROWS, ids=[f"{method} {path}" for method, path in ROWS])
def test_what_comes_back_is_described(
    site: Site, description: Any, known: dict[str, str], method_path: tuple[str, str]
) -> None:
    """A generated client meets no status and no shape that it was not told of."""
    method, path = method_path
    operation = description[path][method]
    cases = st.one_of(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE),
        operation.as_strategy(generation_mode=GenerationMode.NEGATIVE),
    )

    @settings(
        max_examples=EXAMPLES,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=cases if has_input(operation) else operation.as_strategy(),
        real=st.integers(0, 3),
        accept=st.sampled_from(["*/*", "application/json", "application/x-ndjson", "text/event-stream"]),
    )
    def send(case: Case, real: int, accept: str) -> None:
        if real and case.path_parameters and method_path not in SPARED:
            case.path_parameters = {name: known.get(name, value) for name, value in case.path_parameters.items()}
        body = case.body if isinstance(case.body, dict) else {}
        if body.get("agent") == "hold" or body.get("model") == "hold":
            return
        form = "application/json" if path in ENDLESS else accept
        answer = case.call(base_url=site.url, headers={"Accept": form}, timeout=10)
        assert answer.status_code != 500, answer.text
        unsayable = [*UNSAYABLE.get(path, []), *(["negative_data_rejection"] if real else [])]
        if decided_twice(body):
            unsayable.append("positive_data_acceptance")
        case.validate_response(answer, excluded_checks=schemathesis.checks.CHECKS.get_by_names(unsayable))

    send()
    site.assert_quiet()


def decided_twice(body: dict[str, Any]) -> bool:
    """Whether two decisions are about one call: a schema can compare whole items only."""
    decisions = body.get("decisions")
    calls = [each.get("call") for each in decisions if isinstance(each, dict)] if isinstance(decisions, list) else []
    return any(calls.count(call) > 1 for call in calls)


def has_input(operation: Any) -> bool:
    """Whether there is anything in a request that could be wrong."""
    return bool(operation.definition.raw.get("parameters") or operation.definition.raw.get("requestBody"))


def test_description_names_every_code_of_its_refusals(http: httpx2.Client) -> None:
    """What a client can be refused with is in the description of the request that it sends."""
    described = http.get("/openapi.json").json()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            for status, answer in operation["responses"].items():
                assert int(status) < 400 or answer["content"], f"{method} {path} {status}"
    assert json.dumps(described).count("NaN") == 0
