"""A model whose streams break, over real sockets: what readers are told, on each protocol, and what they end with."""

import json
import signal
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.system.conftest import DIVER
from tests.system.support import Model, System, frames, until

BREAKS = "!close after=3 times=1\n!say the answer"
RETRIES = 4
FAILURES = 20


@pytest.fixture(scope="module")
def shaky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A server that is patient with a model that restarts, and soon done with one that is broken."""
    env = {
        "HOLDFAST_SPARE": "false",
        "HOLDFAST_MODEL_RETRIES": str(RETRIES),
        "HOLDFAST_BREAKER_FAILURES": str(FAILURES),
        "HOLDFAST_BREAKER_OPEN_S": "5",
        "HOLDFAST_RENEW_S": "0.5",
    }
    with closing(System(tmp_path_factory.mktemp("shaky"), DIVER, env=env)) as system:
        yield system


def breakers(system: System) -> list[dict]:
    return system.http.get("/api/workers")["workers"][0]["facts"]["breakers"]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_the_log_names_what_to_drop_and_has_one_answer(shaky: System) -> None:
    """A reader who follows the log ends with what the record says; a late one reads the same."""
    run = shaky.run(BREAKS)
    record = shaky.end(run)
    assert (record["state"], record["output"]) == ("completed", "the answer")
    events = shaky.events(run)
    (dropped,) = [e for e in events if e["type"] == "attempt.discarded"]
    assert (dropped["step"], dropped["reason"], dropped["calls"]) == (1, "connection_lost", [])
    said: dict[int, str] = {}
    for event in events:
        if event["type"] == "text.delta":
            said[event["part"]] = said.get(event["part"], "") + event["text"]
        elif event["type"] == "attempt.discarded":
            said = {part: text for part, text in said.items() if part not in event["parts"]}
    assert "".join(said.values()) == "the answer"
    assert [e["attempt"] for e in events if e["type"] == "model.requested"] == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_streamed_chat_completion_that_breaks_off_ends_with_the_models_error(shaky: System) -> None:
    """It cannot take text back, so its answer is not begun anew; the client reads what happened, not how we tell it."""
    prompt = f"{BREAKS}\nstreamed"  # the model counts `times` for each list of messages
    body = {"messages": [{"role": "user", "content": prompt}], "stream": True}
    with shaky.http.stream("/v1/chat/completions", method="POST", body=body) as response:
        run = response.headers["X-Run-Id"]
        said = [data for _, _, data in frames(response)]
    assert said[-1] == "[DONE]"
    error = json.loads(said[-2])["error"]
    assert (error["type"], error["code"]) == ("run_failed", "model_error")
    record = shaky.end(run)
    assert (record["state"], record["error"]["code"]) == ("failed", "model_connection_lost")
    assert "attempt.discarded" not in [event["type"] for event in shaky.events(run)]
    until(lambda: shaky.model.stats()["open"] == 0, "the upstream is closed")


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_chat_completion_that_is_not_streamed_gets_the_answer(shaky: System) -> None:
    """Nothing was shown, so nothing is to be taken back."""
    body = {"messages": [{"role": "user", "content": BREAKS}]}
    status, answer = shaky.http.ask("POST", "/v1/chat/completions", body)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "the answer")


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_model_server_that_is_killed_in_its_answer_and_comes_back(shaky: System) -> None:
    """kill -9 in the middle of an answer: dropped, repeated until the server is back, answered."""
    run = shaky.run("!tokens n=60 rate=20")
    shaky.until_text(run, "t2 ")
    shaky.model.process.signal(signal.SIGKILL)
    shaky.model.process.wait()
    port = shaky.model.http.port
    again = Model(shaky.directory, port)
    shaky.model = again
    shaky.processes.append(again.process)
    record = shaky.end(run, 60)
    assert record["state"] == "completed", record
    assert record["output"] == "".join(f"t{n} " for n in range(1, 61))
    kinds = [e["type"] for e in shaky.events(run)]
    assert kinds.count("attempt.discarded") == 1


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_a_broken_model_is_not_asked_until_its_probe(shaky: System) -> None:
    """Every run is refused at once, and told when to come again. Last in its module: the others' upstream is broken."""
    for _ in range(FAILURES // (RETRIES + 1)):
        record = shaky.end(shaky.run("!status code=503 retry_after=0"))
        assert record["error"]["code"] == "model_status_503", record
    asked = shaky.model.stats()["requests"]
    record = shaky.end(shaky.run("!say hello"))
    assert (record["state"], record["reason"]) == ("failed", "model_error")
    error = record["error"]
    assert (error["code"], error["retryable"]) == ("model_breaker_open", True)
    assert "repeat the prompt in" in error["remedy"]
    assert shaky.model.stats()["requests"] == asked
    (shown,) = until(lambda: [b for b in breakers(shaky) if b["state"] == "open"], "the breaker is shown", 4)
    assert shown["upstream"] == f"127.0.0.1:{shaky.model.http.port} openai"
    assert shown["failures"] == FAILURES
    ready = shaky.http.get("/readyz")  # 200: other agents may have other models, and a probe needs requests
    assert ready["parts"]["worker"]["breakers"][0]["upstream"] == shown["upstream"]
    until(lambda: shaky.end(shaky.run("!say back"))["state"] == "completed", "a probe closes it", 20, every_s=0.5)
    until(lambda: breakers(shaky)[0]["state"] == "closed", "and that is shown")
