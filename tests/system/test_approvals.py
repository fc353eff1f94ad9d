"""A run that waits for a person: parked, decided, steered, killed; on SQLite and on Redis, in real processes."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.redis_server import RedisServer
from tests.system.support import Http, Process, System, free_port, full, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ENV = {"HOLDFAST_SPARE": "false", "HOLDFAST_LEASE_S": "4", "HOLDFAST_RENEW_S": "1", "HOLDFAST_QUEUED_BEHIND": "3"}


class Asking(System):
    """A server whose agents ask; on Redis, if it is given one."""

    def __init__(self, directory: Path, redis: RedisServer | None) -> None:
        self.redis = redis
        shutil.copy(Path(__file__).with_name("agents_asking.py"), directory)
        super().__init__(directory, "agents_asking:asker", "agents_asking:plain", env=ENV)

    def command(self, port: int) -> list[str]:
        plain = super().command(port)
        return plain if self.redis is None else [*plain[:-1], self.redis.url]

    def second(self) -> Http:
        """Another gateway on the same store, without a worker of its own; SQLite has one, asked twice."""
        if self.redis is None:
            return Http(self.http.port)
        http = Http(free_port())
        store = self.command(http.port)[-1]
        serve = ["serve", "--no-worker", "--port", str(http.port), "--store", store]
        process = Process("second", serve, self.directory, self.env)
        self.processes.append(process)
        until(lambda: process.answers(http, "/readyz"), "the second gateway is ready", 40)
        return http

    def did(self) -> Counter[str]:
        """What the tools did, by their own account."""
        path = self.directory / "journal.txt"
        return Counter(path.read_text().splitlines()) if path.exists() else Counter()

    def waits(self, text: str, **fields: Any) -> tuple[str, list[dict[str, Any]]]:
        """A new run, once it waits; and what it asks."""
        run = self.run(text, **fields)
        asked = self.until_event(run, "run.waiting")["requests"]
        until(lambda: self.record(run)["state"] == "waiting", "its record says so")
        return run, asked

    def decide(self, run: str, *decisions: dict[str, Any]) -> tuple[int, Any]:
        return self.http.ask("POST", f"/api/runs/{run}/decisions", {"decisions": list(decisions)})


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def system(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asking]:
    directory = tmp_path_factory.mktemp("asking")
    with ExitStack() as stack:
        redis = None
        if request.param == "redis":
            redis = RedisServer(directory, "--appendonly", "yes", "--appendfsync", "always")
            stack.callback(redis.close)
            redis.start()
        yield stack.enter_context(closing(Asking(directory, redis)))


def tool(name: str, **args: Any) -> str:
    return f"!tool {name} {json.dumps(args)}"


def finished(events: list[dict[str, Any]]) -> dict[str, tuple[str, Any]]:
    """Tool -> how it ended; each ended once."""
    ends = [event for event in events if event["type"] == "tool.finished"]
    assert len({event["call"] for event in ends}) == len(ends), ends
    return {event["name"]: (event["outcome"], event["result"]) for event in ends}


def test_everything_that_asks_is_asked_at_once(system: Asking) -> None:
    """What asks nobody has run, once; edited args, a denial and a result from outside reach the model."""
    before = system.did()
    tools = [tool("pay", amount=5), tool("look", at="sky"), tool("remove", path="/etc"), tool("outside", question="q")]
    run, asked = system.waits("\n".join([*tools, "!say done"]))
    calls = {request["name"]: request for request in asked}
    assert {name: (r["kind"], r["metadata"]) for name, r in calls.items()} == {
        "pay": ("approval", {}),
        "remove": ("approval", {"why": "an absolute path"}),
        "outside": ("call", {"queue": "desk"}),
    }
    assert system.did() - before == Counter({"look sky": 1, "outside q": 1})

    def held() -> int:
        (worker,) = system.http.get("/api/workers")["workers"]
        return worker["facts"]["runs"] if "facts" in worker else worker["runs_held"]

    until(lambda: held() == 0, "no worker holds it")
    decisions = [
        {"call": calls["pay"]["call"], "approve": True, "args": {"amount": 7}},
        {"call": calls["remove"]["call"], "approve": False, "message": "not that one"},
        {"call": calls["outside"]["call"], "result": {"because": "so"}},
    ]
    assert system.decide(run, *decisions, {"call": "nobody", "approve": True})[0] == 422
    assert system.decide(run, decisions[0], decisions[1], {"call": decisions[2]["call"], "approve": True})[0] == 422
    assert system.record(run)["state"] == "waiting"
    assert system.decide(run, *decisions)[0] == 202
    assert system.decide(run, *reversed(decisions))[0] == 202  # the same again
    record = system.end(run)
    assert (record["state"], record["output"]) == ("completed", "done"), record
    events = system.events(run)
    ends = finished(events)
    assert ends["pay"] == ("success", "paid 7")
    assert ends["look"] == ("success", "seen sky")
    assert ends["remove"] == ("denied", "not that one")
    assert ends["outside"] == ("success", {"because": "so"})
    assert system.did() - before == Counter({"look sky": 1, "outside q": 1, "pay 7": 1})
    assert [e["type"] for e in events].count("run.resumed") == 1
    assert system.decide(run, *decisions)[0] == 202
    status, problem = system.decide(run, {**decisions[0], "approve": False, "message": "no"}, *decisions[1:])
    assert status == 422 or (status, problem["code"]) == (409, "late_decision")
    system.prompt_works(record["session"])


def test_a_decision_that_contradicts_or_comes_late_is_refused(system: Asking) -> None:
    """The first decision holds; after a stop there is none to take, and the receipt says that nothing ran."""
    run, (asked,) = system.waits("\n".join([tool("pay", amount=1), "!say done"]))
    yes, no = ({"call": asked["call"], "approve": answer} for answer in (True, False))
    assert system.decide(run, yes)[0] == 202
    status, problem = system.decide(run, no)
    assert (status, problem["code"]) == (409, "late_decision")
    assert system.end(run)["output"] == "done"
    before = system.did()
    run, (asked,) = system.waits("\n".join([tool("pay", amount=2), "!say done"]), session="s_late")
    record = system.stop(run)
    assert (record["state"], record["reason"]) == ("cancelled", "stopped"), record
    assert record["receipt"]["tools"] == [{"call": asked["call"], "name": "pay", "ended": "cancelled"}]
    assert record["receipt"]["abandoned"] is False
    status, problem = system.decide(run, {"call": asked["call"], "approve": True})
    assert (status, problem["code"]) == (409, "late_decision")
    assert system.did() == before
    system.prompt_works("s_late")
    assert system.http.ask("POST", "/api/runs/r_nobody/decisions", {"decisions": [yes]})[0] == 404


def test_a_prompt_takes_the_place_of_a_run_that_waits(system: Asking) -> None:
    """supersede ends it in its own step, and the next run's history is valid; enqueue waits behind it."""
    run, _ = system.waits("\n".join([tool("pay", amount=3), "!say done"]), session="s_super")
    behind = system.run("!say behind", session="s_super", on_busy="enqueue")
    assert system.record(behind)["position"] == 1
    assert system.end(system.run("!say second", session="s_super"))["output"] == "second"
    assert system.record(run)["reason"] == system.record(behind)["reason"] == "superseded"


def test_of_two_who_decide_at_once_one_wins(system: Asking) -> None:
    """Through two gateways: the run goes on once, and whoever said something else is told."""
    second = system.second()
    run, (asked,) = system.waits("\n".join([tool("pay", amount=11), "!say done"]))
    answers: list[int] = []

    def decide(http: Http, answer: bool) -> None:
        body = {"decisions": [{"call": asked["call"], "approve": answer}]}
        answers.append(http.ask("POST", f"/api/runs/{run}/decisions", body)[0])

    threads = [threading.Thread(target=decide, args=(http, http is second)) for http in (system.http, second) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [202, 202, 409, 409]
    assert system.end(run)["output"] == "done"
    assert [e["type"] for e in system.events(run)].count("run.resumed") == 1
    assert system.did()["pay 11"] <= 1


def test_a_waiting_run_survives_the_death_of_everything(system: Asking) -> None:
    """kill -9 of gateway and worker while it waits, and again while the approved tool runs: once, or unknown."""
    run, (asked,) = system.waits("\n".join([tool("slow_pay", amount=9), "!say done"]))
    system.kill()
    system.start()
    assert system.record(run)["state"] == "waiting"
    assert system.decide(run, {"call": asked["call"], "approve": True})[0] == 202
    until(lambda: system.did()["slow_pay 9"], "the approved tool began")
    system.kill()
    system.start()
    record = system.end(run, 40)
    assert (record["state"], record["output"]) == ("completed", "done"), record
    events = system.events(run)
    assert finished(events)["slow_pay"][0] == "unknown"
    assert system.did()["slow_pay 9"] == 1
    assert [e["type"] for e in events].count("tool.called") == 1


def test_a_part_of_the_decisions_survives_the_death_of_everything(system: Asking) -> None:
    """One decision now, kill -9 of gateway and worker, the other one later: both hold, each runs once or never."""
    calls = [tool("pay", amount=21), tool("remove", path="/x")]
    run, asked = system.waits("\n".join([*calls, "!say done"]))
    named = {request["name"]: request for request in asked}
    first, second = named["pay"], named["remove"]
    status, record = system.decide(run, {"call": first["call"], "approve": True})
    assert (status, record["state"], record["waits_for"]) == (202, "waiting", [second["call"]])
    system.kill()
    system.start()
    assert system.record(run)["waits_for"] == [second["call"]]
    assert system.did()["pay 21"] == 0, "nothing runs before all is decided"
    assert system.decide(run, {"call": first["call"], "approve": True})[0] == 202
    status, problem = system.decide(run, {"call": first["call"], "approve": False})
    assert (status, problem["code"]) == (409, "late_decision")
    status, record = system.decide(run, {"call": second["call"], "approve": False})
    assert status == 202
    assert "waits_for" not in record
    assert system.end(run, 40)["output"] == "done"
    assert (system.did()["pay 21"], system.did()["remove /x"]) == (1, 0)


def test_a_worker_that_dies_right_after_the_decision_loses_nothing(system: Asking) -> None:
    """The decision is in the store before anybody acts on it."""
    for n in range(full(5, 1)):
        run, (asked,) = system.waits("\n".join([tool("pay", amount=20 + n), "!say done"]))
        (worker,) = system.workers()
        status, _ = system.decide(run, {"call": asked["call"], "approve": True})
        worker.send_signal(signal.SIGKILL)
        assert status == 202
        record = system.end(run, 40)
        assert (record["state"], record["output"]) == ("completed", "done"), record
        outcome = finished(system.events(run))["pay"][0]
        assert outcome in {"success", "unknown"}
        assert system.did()[f"pay {20 + n}"] <= 1
        assert outcome == "unknown" or system.did()[f"pay {20 + n}"] == 1


def test_a_steered_input_is_read_between_two_steps(system: Asking) -> None:
    """Once, in the log and by the model; its key repeats nothing; the inbox is bounded."""
    run = system.run("\n".join([tool("pause", seconds=0.8), "!say first"]), session="s_steer")
    system.until_event(run, "tool.called")
    for _ in range(2):
        status, _ = system.http.ask(
            "POST", f"/api/runs/{run}/steer", {"input": "!say turned"}, {"Idempotency-Key": "k"}
        )
        assert status == 202
    status, record = system.http.ask("POST", "/api/runs", {"input": "b", "session": "s_steer", "on_busy": "steer"})
    assert (status, record["id"]) == (202, run)
    assert system.http.ask("POST", f"/api/runs/{run}/steer", {"input": "!say turned"})[0] == 202
    status, problem = system.http.ask("POST", f"/api/runs/{run}/steer", {"input": "one too many"})
    assert (status, problem["code"]) == (409, "session_busy")
    record = system.end(run)
    assert record["output"].endswith("turned"), record
    assert [e["input"] for e in system.events(run) if e["type"] == "steered"] == ["!say turned", "b", "!say turned"]
    assert len(system.http.get("/api/runs?session=s_steer")["runs"]) == 1  # nothing became a run as well


def test_what_nobody_read_becomes_one_run(system: Asking) -> None:
    """Steered while it waits, and stopped: the input is not lost. Decided instead: it is read before the next step."""
    run, _ = system.waits("\n".join([tool("pay", amount=4), "!say done"]), session="s_left")
    assert system.http.ask("POST", f"/api/runs/{run}/steer", {"input": "!say heard"})[0] == 202
    system.stop(run)
    follow = next(r["id"] for r in system.http.get("/api/runs?session=s_left")["runs"] if r["id"] != run)
    assert system.end(follow)["output"] == "heard"
    run, (asked,) = system.waits("\n".join([tool("pay", amount=4), "!say done"]), session="s_left")
    assert system.http.ask("POST", f"/api/runs/{run}/steer", {"input": "!say heard"})[0] == 202
    assert system.decide(run, {"call": asked["call"], "approve": False})[0] == 202
    assert system.end(run)["output"].endswith("heard")


def test_a_crash_after_an_input_was_read_neither_loses_nor_doubles_it(system: Asking) -> None:
    """The event, the checkpoint and the inbox change in one step."""
    run = system.run("\n".join([tool("pause", seconds=0.5), "!stall after=1 for=60"]), session="s_crash")
    system.until_event(run, "tool.called")
    steered = "!first_token delay=1.2\n!say turned"
    assert system.http.ask("POST", f"/api/runs/{run}/steer", {"input": steered})[0] == 202
    system.until_event(run, "steered")
    system.kill()
    system.start()
    assert system.end(run, 40)["output"].endswith("turned")
    assert [e["type"] for e in system.events(run)].count("steered") == 1
    assert len(system.http.get("/api/runs?session=s_crash")["runs"]) == 1


def test_a_plain_generator_asks_and_is_steered(system: Asking) -> None:
    """It is called anew with the decisions; its inbox is read where it says so."""
    run, (asked,) = system.waits("hello", agent="plain")
    assert asked == {"call": "go", "name": "go", "args": {"far": True}, "kind": "approval", "metadata": {}}
    assert system.http.ask("POST", f"/api/runs/{run}/steer", {"input": "on"})[0] == 202
    assert system.decide(run, {"call": "go", "approve": True})[0] == 202
    record = system.end(run)
    assert (record["state"], record["output"]) == ("completed", "You said on. yes"), record
