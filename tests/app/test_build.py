"""Which code and which settings took a run."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2

from holdfast import __version__
from holdfast.agents.generator import GeneratorAgent
from holdfast.app.build import build_id, fingerprint
from holdfast.app.runtime import Runtime
from holdfast.config import Settings


async def says(ctx):
    yield "hello"


async def test_a_run_record_says_what_took_it(tmp_path: Path) -> None:
    """Whoever looks at a run of last week knows the code and the settings it met."""
    settings = Settings(port=0, store=f"sqlite:///{tmp_path}/h.db", drain_s=0)
    async with (
        Runtime(settings, agents=[GeneratorAgent(says, "says")]) as runtime,
        httpx2.AsyncClient(base_url=runtime.url) as http,
    ):
        run = (await http.post("/api/runs", json={"input": "x"})).json()
        shown = (await http.get("/version")).json()
        assert shown == {"version": __version__, "build": build_id(), "config": fingerprint(settings)}
        assert (run["build"], run["config"]) == (shown["build"], shown["config"])
        assert (await http.get(f"/api/runs/{run['id']}")).json()["build"] == build_id()
        info = f'build="{build_id()}",config="{fingerprint(settings)}",version="{__version__}"'
        assert f"holdfast_build_info{{{info}}} 1.0" in (await http.get("/metrics")).text


def test_a_fingerprint_shows_a_changed_setting_and_no_secret() -> None:
    """Two servers of one deployment have one fingerprint, whatever their ports and keys."""
    one = fingerprint(Settings())
    assert re.fullmatch("[0-9a-f]{12}", one)
    assert fingerprint(Settings(port=1, host="::1", api_keys="a:b", jwt_secret="s")) == one
    assert fingerprint(Settings(stop_grace_s=3)) != one
