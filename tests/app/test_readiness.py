"""The model's part of /readyz: how old its answer may be."""

from __future__ import annotations

import pytest

from holdfast.app import readiness
from holdfast.app.readiness import ModelPart
from holdfast.app.upstream import Reached

URL = "http://Model.example:8000/v1"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the model's server answers, each time that it was asked; it does the first time only."""
    answers: list[bool] = []

    async def probe(url: str) -> Reached:
        answers.append(not answers)
        return Reached(answers[-1], False, url)

    monkeypatch.setattr(readiness, "probe_model", probe)
    monkeypatch.setattr(readiness, "_MODEL_BAD_S", (0.0, 60.0))
    return answers


def failing(failures: int, upstream: str = "model.example:8000 openai") -> list[dict[str, object]]:
    return [{"upstream": upstream, "state": "closed", "failures": failures, "opens_in_s": 0.0}]


async def test_a_model_whose_requests_fail_is_asked_again_at_once(asked: list[bool]) -> None:
    """Else /readyz says for a minute that a run would be taken, while each run fails."""
    part = ModelPart(URL)
    assert (await part())["ok"]
    part.hear(failing(1))
    assert not (await part())["ok"]
    assert asked == [True, False]


async def test_failures_that_are_known_or_elsewhere_ask_nothing(asked: list[bool]) -> None:
    """A probe of /readyz each second must not become a request to the provider each second."""
    part = ModelPart(URL)
    part.hear(failing(1))
    assert (await part())["ok"]
    part.hear(failing(1))
    part.hear(failing(7, "model.example:80001 openai"))
    part.hear([])
    assert (await part())["ok"]
    assert asked == [True]
