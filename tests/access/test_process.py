"""`holdfast serve` with keys, as an operator starts it; the commands and the page, as a user has them."""

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from holdfast.cli import main
from tests.access.support import ALICE, BOB, SECRET, bearer, keyed
from tests.gateway.browser import browser
from tests.system.support import HOLDFAST, System, clean

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]
ENV = {"HOLDFAST_API_KEYS": f"alice:{ALICE},bob:{BOB}", "HOLDFAST_JWT_SECRET": SECRET}


def holdfast(*arguments: str, directory: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(HOLDFAST), *arguments],
        cwd=directory,
        env={**clean(), **env},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--profile", "production"], {}, "profile production needs API keys or tokens"),
        (["--profile", "staging"], {}, "profile staging needs API keys or tokens"),
        (["--host", "0.0.0.0"], {}, "without API keys only loopback is served"),
        ([], {"HOLDFAST_API_KEYS": "alice"}, "api_keys, entry 1 is not name:key"),
        ([], {"HOLDFAST_API_KEYS_FILE": "none"}, "api_keys_file none cannot be read"),
        ([], {"HOLDFAST_CORS_ORIGINS": "*"}, "is not an origin"),
        (["--profile", "production"], {"HOLDFAST_JWT_SECRET": "short"}, "jwt_secret has 5 bytes, and HS256 needs 32"),
    ],
)
def test_what_would_let_in_strangers_does_not_start(
    tmp_path: Path, arguments: list[str], env: dict[str, str], says: str
) -> None:
    """F73: said with its remedy, before anything is opened; never a server that is open by mistake."""
    found = holdfast(
        "serve", "--model", "m", "--model-url", "http://127.0.0.1:9/v1", *arguments, directory=tmp_path, **env
    )
    assert found.returncode == 1
    assert says in found.stderr
    assert "Traceback" not in found.stderr
    assert not list(tmp_path.iterdir()), "nothing was opened"


def test_production_serves_whoever_has_a_key(tmp_path: Path) -> None:
    """A run from the command line; user code cannot read what lets people in."""
    system = System(tmp_path, "agents_under_test:diver", "--profile", "production", env=ENV)
    try:
        log = system.server.log()
        assert "entry   2 API keys and tokens" in log
        assert not any(secret in log for secret in (ALICE, BOB, SECRET))
        for worker in system.workers():
            assert not {"HOLDFAST_API_KEYS", "HOLDFAST_JWT_SECRET"} & set(worker.environ())
        status, _ = system.http.ask("POST", "/api/runs", {"input": "x"})
        assert status == 401
        status, body = system.http.ask("POST", "/api/runs", {"input": "!tokens n=3"}, headers=bearer(ALICE))
        assert status == 201
        run, url = body["id"], f"http://127.0.0.1:{system.http.port}"
        seen = holdfast("events", run, "--follow", "--url", url, directory=tmp_path, HOLDFAST_API_KEY=ALICE)
        assert "run.completed" in seen.stdout, seen
        for secret in (BOB, "wrong", ""):
            seen = holdfast("events", run, "--url", url, directory=tmp_path, HOLDFAST_API_KEY=secret)
            assert seen.returncode == 1
            assert "Traceback" not in seen.stderr
    finally:
        system.close()


def test_a_key_that_is_made_lets_in(tmp_path: Path) -> None:
    """Two lines: the secret for its user, its digest for the file."""
    made = CliRunner().invoke(main, ["key", "alice", "--tenant", "team", "--scope", "read"])
    assert made.exit_code == 0
    secret, line = (text.split(maxsplit=1)[1] for text in made.output.splitlines()[:2])
    assert len(secret) > 40
    assert secret not in line
    assert line.endswith("tenant=team scopes=read")
    for name in ("al/ice", "a lice", "alice:x"):
        refused = CliRunner().invoke(main, ["key", name])
        assert refused.exit_code == 2
        assert f"the name {name!r} is not 1 to 64 of" in refused.stderr


async def test_the_page_asks_for_the_key(tmp_path: Path) -> None:
    """Once, for this tab; a wrong one is said, and the right one shows the session."""
    async with keyed(tmp_path) as here, browser() as tab:
        await tab.open(here.url)
        await tab.until("!document.getElementById('entry').hidden")
        for secret in ("wrong", ALICE):
            await tab.until("!document.getElementById('entry').hidden")
            await tab.js(f"document.getElementById('secret').value = {secret!r}")
            await tab.js("document.getElementById('entry').requestSubmit()")
            if secret == "wrong":
                await tab.until("document.getElementById('refused').textContent.includes('neither a known API key')")
        await tab.until("document.getElementById('entry').hidden")
        await tab.press("What is holding?")
        holder = await here.claim()
        assert holder.key.tenant == "alice"
        await here.complete(holder, "Rocks.")
        await tab.until("document.querySelector('article:last-of-type').querySelector('.live').hidden")
        await tab.reload()
        await tab.until("document.querySelectorAll('article').length > 0")
        assert ALICE not in await tab.js("location.href + JSON.stringify(localStorage)")
