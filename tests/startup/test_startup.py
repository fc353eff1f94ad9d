"""The start, with everything that may be wrong: said once, with its remedy, and never served over."""

import asyncio
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import psutil
import pytest

from holdfast.app import serving, startup, trial
from holdfast.app.checking import check
from holdfast.app.errors import StartError
from holdfast.app.startup import Outcome, Startup, table
from holdfast.config import Settings
from holdfast.domain.errors import HoldfastError
from holdfast.telemetry import Log
from tests.redis_server import RedisServer
from tests.startup import later
from tests.startup.cases import CASES, HEAD, PAGE, PROFILES, Case, expected, start, table_of
from tests.system.support import Http, Process, free_port, full, until
from tests.system.support import ended as gone

pytestmark = pytest.mark.timeout(60)
ALL_PHASES_S = startup.STORE_S + startup.MODELS_S + startup.READY_S + trial.LOAD_S + 4 * startup.SHORT_S
FIRST = {case.part: case for case in reversed(CASES)}
CELLS = [
    (case, profile)
    for case in CASES
    for profile in PROFILES
    if full(1, 0) or profile == "dev" or (profile == "production" and FIRST[case.part] is case)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "profile"), CELLS, ids=lambda value: value if isinstance(value, str) else f"{value.part} {value.fault}"
)
async def test_what_is_wrong_is_said_and_decided_by_the_profile(case: Case, profile: str, tmp_path: Path) -> None:
    """F72, F73: one report with every failure; a server that starts anyway is ready, or says what is degraded."""
    began = time.monotonic()
    found = await start(case, profile, tmp_path)
    assert found.outcome == expected(case, profile)
    if found.outcome != "ready":
        assert case.says in found.why
    assert time.monotonic() - began < 40


def test_the_page_has_every_case() -> None:
    """docs/operations.md is written by these cases; `python -m tests.startup.cases` renews it."""
    rows = [f"| {c.part} | {c.fault} | {' | '.join(expected(c, p) for p in PROFILES)} |" for c in CASES]
    found = table_of(PAGE.read_text(encoding="utf-8"))
    assert found[:2] == HEAD
    longest = [re.fullmatch(r"(.*) (\d+) s \|", line) for line in found[2:]]
    assert [match[1] for match in longest if match] == rows
    assert max(int(match[2]) for match in longest if match) <= ALL_PHASES_S


def test_the_limits_of_all_phases_together_bound_a_start() -> None:
    """Whatever is slow, and whatever the phases do: the process gives up behind the last of their limits."""
    assert ALL_PHASES_S < serving._START_S
    assert f"in {ALL_PHASES_S:.0f} s at most" in PAGE.read_text(encoding="utf-8")


# what fails later


@pytest.mark.slow
@pytest.mark.parametrize("kind", later.FAULTS)
@pytest.mark.parametrize("profile", PROFILES if full(1, 0) else ["production"])
async def test_what_fails_later_is_said_and_is_well_again_by_itself(kind: str, profile: str, tmp_path: Path) -> None:
    """Ready, broken, seen in /readyz with its part, mended, ready: nobody has to restart a server for it."""
    with ExitStack() as stack:
        later.hurried(stack)
        found = await later.results(kind, profile, tmp_path)
    for fault, each in zip(later.FAULTS[kind], found, strict=True):
        assert each.meanwhile == later.expected(fault), fault
        assert fault.says in each.said, fault
        assert each.after == later.WELL, fault


def test_the_page_has_everything_that_fails_later() -> None:
    """`python -m tests.startup.later` renews it."""
    rows = []
    for kind, n in later.order():
        fault = later.FAULTS[kind][n]
        rows.append(later.row(fault, [later.expected(fault)] * len(PROFILES), later.AGAIN if fault.bad else later.WELL))
    assert table_of(PAGE.read_text(encoding="utf-8"), "later") == later.HEAD + rows


# phases


async def test_a_phase_is_tried_again_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is a moment late starts; one that hangs is given up, whatever it does with a cancellation."""
    monkeypatch.setattr(startup, "PAUSE_S", 0.0)
    monkeypatch.setattr(startup, "_CANCEL_S", 0.05)
    made, tries = Startup(Log()), 0

    async def late() -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise HoldfastError("not_ready", "not yet", remedy="wait")

    deaf_ends = asyncio.Event()

    async def deaf() -> None:
        while not deaf_ends.is_set():
            with suppress(asyncio.CancelledError):
                await deaf_ends.wait()

    assert await made.run("settings", late, limit_s=5, tries=3)
    assert not await made.run("store", deaf, limit_s=0.1, tries=3)
    assert not await made.run("tools", late, limit_s=5, needs=("settings", "store"))
    assert [(f.phase, f.outcome, f.tries) for f in made.findings] == [
        ("settings", Outcome.OK, 3),
        ("store", Outcome.FAILED, 1),
        ("tools", Outcome.SKIPPED, 0),
    ]
    assert made.summary() == "store: not done within 0 s; see what it waits on, and start again"
    assert not made.started
    deaf_ends.set()
    await asyncio.sleep(0)


async def test_every_failure_is_in_one_report() -> None:
    """Whoever has three mistakes hears of three; secrets in what a library raised are masked."""
    made = Startup(Log())

    async def bad() -> None:
        raise ValueError("no route to postgres://me:hunter22222@db/x\nand more")

    async def worse() -> None:
        raise StartError("cannot start: two agents are named 'a'")

    assert not await made.run("store", bad, limit_s=1)
    assert not await made.run("tools", worse, limit_s=1)
    with pytest.raises(StartError) as caught:
        made.check()
    said = str(caught.value)
    assert said.startswith("cannot start: 2 phases failed")
    assert "two agents are named 'a'" in said
    assert "hunter22222" not in said
    assert len(table(made)) == 3
    assert caught.value.report is made


async def test_what_a_phase_began_ends_with_a_start_that_is_cut_short() -> None:
    """A signal cancels the start: the phase at work is part of it, and must not load agents on behind its back."""
    made, ended = Startup(Log()), asyncio.Event()

    async def works() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    running = asyncio.ensure_future(made.run("tools", works, limit_s=60))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait([running], timeout=5)
    assert running.cancelled()
    assert ended.is_set()


def test_check_judges_a_place_that_serve_would_make(tmp_path: Path) -> None:
    """It says what `serve` would come to, and leaves nothing behind: neither the directory nor the file."""
    settings = Settings(store=f"sqlite:///{tmp_path}/new/deep/h.db", in_process=True)
    report = check(settings, ["tests.startup.agents:good"], Log())
    assert {found.phase: found.outcome for found in report.findings}["store"] is Outcome.OK, table(report)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    report = check(Settings(store=f"sqlite:///{tmp_path}/file/h.db"), ["tests.startup.agents:good"], Log())
    assert [found.phase for found in report.broken] == ["store"]


# real processes


@pytest.fixture
def ended() -> Iterator[list[Process]]:
    """Whatever a test started ends with it."""
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.end()


def serve(
    ended: list[Process], directory: Path, port: int, *arguments: str, env: dict[str, str] | None = None
) -> Process:
    (directory / "app.py").write_text('async def agent(ctx):\n    yield "hello"\n')
    process = Process(f"serve-{len(ended)}", ["serve", "app:agent", "--port", str(port), *arguments], directory, env)
    ended.append(process)
    return process


def status(http: Http, path: str) -> int:
    with suppress(OSError):
        return http.ask("GET", path, limit_s=5)[0]
    return 0


@pytest.mark.slow
def test_in_dev_everybody_is_refused_until_the_store_is_there(tmp_path: Path, ended: list[Process]) -> None:
    """Never simulated, never silent; and when the store comes, no restart is needed."""
    store = RedisServer(tmp_path)
    with closing(store):
        http = Http(free_port())
        server = serve(ended, tmp_path, http.port, "--store", store.url)
        until(lambda: status(http, "/livez") == 200, "it answers", 30)
        for method, path, body in (("GET", "/readyz", None), ("GET", "/startupz", None), ("GET", "/api/runs", None)):
            code, said = http.ask(method, path, body)
            assert code == 503
            assert "check that Redis runs" in json.dumps(said)
        assert http.ask("POST", "/api/runs", {"input": "x"})[1]["code"] == "not_ready"
        asked = {"messages": [{"role": "user", "content": "x"}]}
        code, said = http.ask("POST", "/v1/chat/completions", asked)
        assert (code, said["error"]["type"]) == (503, "server_error")
        store.start()
        until(lambda: status(http, "/readyz") == 200, "it has started by itself", 30)
        assert http.ask("POST", "/api/runs", {"input": "x"})[0] == 201
        server.signal(signal.SIGTERM)
        assert server.wait(30) == 0
    assert server.log().count("check that Redis runs") <= 40, "it says so once for each try, and no more"


@pytest.mark.slow
def test_in_dev_a_start_that_is_tried_again_is_refused_all_the_while(tmp_path: Path, ended: list[Process]) -> None:
    """Half of the time nobody listened: what probes /livez would have killed it, and nobody was told why."""
    http = Http(free_port())
    server = serve(ended, tmp_path, http.port, "tests.startup.no_such:agent")
    until(lambda: status(http, "/livez") == 200, "it answers", 30)
    tries = server.log().count("start_failed")
    asked: list[int] = []

    def tried_again() -> bool:
        asked.append(status(http, "/livez"))
        return server.log().count("start_failed") > tries

    until(tried_again, "the start is tried again", 30, every_s=0.05)
    assert set(asked) == {200}
    assert status(http, "/readyz") == 503


@pytest.mark.slow
def test_production_exits_with_the_report(tmp_path: Path, ended: list[Process]) -> None:
    """1, and every failure with its remedy, within the limits of the phases."""
    server = serve(
        ended, tmp_path, free_port(), "--profile", "production", "--store", "redis://127.0.0.1:9",
        "--model", "m", "--model-url", "http://127.0.0.1:9/v1", env={"HOLDFAST_API_KEYS": "alice:a-key"},
    )  # fmt: skip
    assert server.wait(40) == 1
    log = server.log()
    assert "cannot start: 2 phases failed" in log
    assert "check that Redis runs" in log
    assert "start it there, or correct --model-url" in log
    assert "Traceback" not in log


@pytest.mark.slow
def test_a_signal_ends_a_start_that_waits(tmp_path: Path, ended: list[Process]) -> None:
    """One of the five systems could not be stopped by SIGTERM; this one can while its store is silent, too."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        kept: list[socket.socket] = []
        threading.Thread(target=lambda: kept.append(silent.accept()[0]), daemon=True).start()
        server = serve(ended, tmp_path, free_port(), "--store", f"redis://127.0.0.1:{silent.getsockname()[1]}")
        until(lambda: kept, "it waits for its store", 30)
        server.signal(signal.SIGTERM)
        assert server.wait(20) == 0
        kept[0].close()


@pytest.mark.slow
def test_a_signal_ends_a_start_whose_agents_hang_in_their_import(tmp_path: Path, ended: list[Process]) -> None:
    """What it began ends with it: the process that loads them hears nothing, and is killed."""
    (tmp_path / "hangs.py").write_text("import time\n\ntime.sleep(600)\n")
    server = Process("hanging", ["serve", "hangs:agent", "--port", str(free_port())], tmp_path)
    ended.append(server)
    loads = until(
        lambda: [p for p in psutil.Process(server.pid).children() if "app.child" in " ".join(p.cmdline())], ""
    )
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0
    until(lambda: all(map(gone, loads)), "nothing is left behind", 10)


@pytest.mark.slow
def test_a_model_that_comes_late_is_found(tmp_path: Path, ended: list[Process]) -> None:
    """In dev: refused until it is there, then served; `check` says the same from outside."""
    http, model = Http(free_port()), free_port()
    where = ["--model", "m", "--model-url", f"http://127.0.0.1:{model}/v1"]
    serve(ended, tmp_path, http.port, *where)
    until(lambda: status(http, "/startupz") == 503, "it answers", 30)
    assert "no model at" in http.ask("POST", "/api/runs", {"input": "x"})[1]["detail"]
    checking = Process("check", ["check", "app:agent", *where, "--json"], tmp_path)
    ended.append(checking)
    assert checking.wait(40) == 1
    report = json.loads(checking.log().splitlines()[-1])
    assert [found["phase"] for found in report["phases"] if not found["ok"]] == ["models"]
    ended.append(Process("model", ["rehearse", "--port", str(model)], tmp_path))
    until(lambda: status(http, "/readyz") == 200, "the model is found", 30)
    assert status(http, "/startupz") == 200
    assert http.ask("POST", "/api/runs", {"input": "x"})[0] == 201
