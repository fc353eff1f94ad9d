"""Deltas over HTTP at the rates of real models: exact in sum, and the first is not held back."""

import json
import threading
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

from tests.system.support import Http, System, frames, full

GAPS_MS = (5, 20, 50, 100)
TOKENS = full(200, 40)
FAST = full(20_000, 3_000)
ROUNDS = full(100, 15)


class Stream(threading.Thread):
    """One run, followed as it goes: each event with the time of its arrival."""

    def __init__(self, system: System, script: str) -> None:
        super().__init__(daemon=True)
        self.arrived: list[tuple[float, dict[str, Any]]] = []
        self._system = system
        self._script = script
        self.began = time.monotonic()
        self.start()

    def run(self) -> None:
        body = {"input": self._script, "agent": "diver"}
        with self._system.http.stream("/api/runs", method="POST", body=body, limit_s=60) as response:
            for _, _, data in frames(response):
                self.arrived.append((time.monotonic() - self.began, json.loads(data)))

    def deltas(self) -> list[tuple[float, str]]:
        return [(at, event["text"]) for at, event in self.arrived if event["type"] == "text.delta"]

    def check(self, n: int) -> None:
        """What was said in pieces is what was said as a whole, three times over."""
        text = "".join(f"t{i} " for i in range(1, n + 1))
        assert "".join(delta for _, delta in self.deltas()) == text
        assert [event["text"] for _, event in self.arrived if event["type"] == "text.done"] == [text]
        end = self.arrived[-1][1]
        assert (end["type"], end["output"]) == ("run.completed", text)


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_concatenated_deltas_are_the_text_and_the_output_at_every_rate(system: System, figures: Callable[..., None]):
    """A client that shows deltas and one that reads the output show the same answer."""
    rates = {f"{gap} ms": (1000 / gap, TOKENS) for gap in GAPS_MS} | {"full speed": (1_000_000, FAST)}
    streams = {name: (Stream(system, f"!tokens n={n} rate={rate:g}"), n) for name, (rate, n) in rates.items()}
    said = []
    for name, (stream, n) in streams.items():
        stream.join(80)
        assert not stream.is_alive(), f"{name}: no end; {len(stream.arrived)} events"
        stream.check(n)
        deltas = stream.deltas()
        said.append(f"gap {name}: {n} tokens in {len(deltas)} deltas")
    figures("deltas", said)


@pytest.mark.slow
@pytest.mark.parametrize("gap_ms", [50, 100])
def test_a_token_that_comes_alone_is_delivered_alone_and_at_once(system: System, gap_ms: int):
    """Coalescing may join what comes together; it must not wait for more."""
    stream = Stream(system, f"!tokens n=20 rate={1000 / gap_ms:g}")
    stream.join(9)
    stream.check(20)
    deltas = stream.deltas()
    assert deltas[0][1] == "t1 "
    assert len(deltas) >= 15, deltas  # a machine that is busy may join a few
    late = [at - deltas[0][0] - gap_ms / 1000 * i for i, (at, _) in enumerate(deltas) if len(deltas) == 20]
    assert not late or median(late) < 0.2, f"median lateness of a token: {median(late) * 1000:.0f} ms"


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_model_at_full_speed_does_not_starve_its_own_log(system: System):
    """The writer's thread gets the interpreter beside a loop that never rests: 5,000 tokens were 2 to 5 deltas."""
    stream = Stream(system, "!tokens n=10000 rate=1000000")
    stream.join(60)
    stream.check(10000)
    assert len(stream.deltas()) > 15


def test_the_first_token_is_not_held_back(system: System, figures: Callable[..., None]):
    """What we add to the wait for the first word is a small part of any model's own."""
    script = "!tokens n=3 rate=20"  # two tokens follow 50 ms apart: an answer that is held back shows
    direct, ours, chat = [], [], []
    for _ in range(ROUNDS):
        direct.append(_first_chunk(system.model.http, script))
        ours.append(_first_delta(system, script))
        chat.append(_first_chunk(system.http, script))
    rows = [f"{name}: p50 {median(values) * 1000:.1f} ms" for name, values in _named(direct, ours, chat)]
    figures(f"time to the first token, {ROUNDS} rounds", rows)
    assert median(ours) - median(direct) < 0.25, rows
    assert median(chat) - median(direct) < 0.25, rows


def _named(direct: list[float], ours: list[float], chat: list[float]) -> list[tuple[str, list[float]]]:
    return [("the model itself", direct), ("through Holdfast, native", ours), ("through Holdfast, /v1", chat)]


def _first_delta(system: System, script: str) -> float:
    began = time.monotonic()
    body = {"input": script, "agent": "diver"}
    with system.http.stream("/api/runs", method="POST", body=body) as response:
        for _, event, data in frames(response):
            if event == "text.delta":
                took = time.monotonic() - began
                assert json.loads(data)["text"] == "t1 "
                return took
    raise AssertionError("no text at all")


def _first_chunk(http: Http, script: str) -> float:
    began = time.monotonic()
    body = {"model": "diver", "stream": True, "messages": [{"role": "user", "content": script}]}
    with http.stream("/v1/chat/completions", method="POST", body=body) as response:
        for _, _, data in frames(response):
            choices = json.loads(data)["choices"] if data != "[DONE]" else []
            if choices and choices[0]["delta"].get("content"):
                took = time.monotonic() - began
                assert choices[0]["delta"]["content"] == "t1 "
                return took
    raise AssertionError("no text at all")
