"""`--model ollama:NAME`, with the rehearsal model standing in at OLLAMA_BASE_URL."""

import time
from pathlib import Path

import pytest

from tests.scenarios.support import Chat
from tests.system.support import START_S, Http, Process, System, free_port, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


class _OllamaSystem(System):
    """Serves the plain agent around `ollama:llama3`; only the environment says where that is."""

    def command(self, port: int) -> list[str]:
        self.env = {"OLLAMA_BASE_URL": self.model.url.removesuffix("/v1")}
        return ["serve", "--model", "ollama:llama3", "--port", str(port), "--store", f"sqlite:///{self.store}"]


def test_ollama_is_asked_where_the_environment_says(tmp_path: Path):
    """Answers come from there, under the name that was asked for; /readyz looks there, and says when it is gone."""
    system = _OllamaSystem(tmp_path)
    try:
        assert Chat(system, "!say hello").end().text.strip() == "hello"
        run = system.run("!tokens n=5 rate=50")
        record = system.end(run)
        assert (record["state"], record["model"], record["rehearsal"]) == ("completed", "ollama:llama3", True)
        (asked,) = (e for e in system.events(run) if e["type"] == "model.requested")
        assert asked["model"] == "llama3"
        part = system.http.get("/readyz")["parts"]["model"]
        assert part["ok"] is True
        assert system.model.url in part["detail"]
        assert f"ollama:llama3 at {system.model.url}" in system.server.log()
        slow = Chat(system, "!first_token delay=30", "s")
        time.sleep(0.1)
        assert Chat(system, "!say four", "s").end().text.strip() == "four"
        assert slow.end().error is not None
        until(lambda: system.model.stats()["open"] == 0, "a superseded request is closed", 3)
        system.model.process.end()
        failed = system.end(system.run("!say nobody"), 20)
        assert (failed["state"], failed["reason"]) == ("failed", "model_error")
    finally:
        system.close()


def test_without_ollama_the_server_is_not_ready_and_says_where_it_looked(tmp_path: Path):
    """P8: nothing is simulated."""
    http, nowhere = Http(free_port()), f"http://127.0.0.1:{free_port()}/v1"
    command = ["serve", "--model", "ollama:llama3", "--port", str(http.port), "--store", "sqlite:///holdfast.db"]
    server = Process("serve", command, tmp_path, {"OLLAMA_BASE_URL": nowhere})
    try:
        until(lambda: server.answers(http, "/livez"), "it is up", START_S)

        def part() -> dict | None:
            status, body = http.ask("GET", "/readyz")
            return body["parts"].get("model") if status == 503 else None

        assert nowhere in until(part, "it says that it is not ready")["why"]
    finally:
        server.end()
