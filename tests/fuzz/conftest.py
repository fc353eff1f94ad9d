"""One server for all of it: what one bad request breaks, the next good one sees."""

from collections.abc import Iterator

import httpx2
import pytest

from tests.history.site import Site
from tests.system.support import until


@pytest.fixture(scope="package")
def site() -> Iterator[Site]:
    with Site(specs=("tests.fuzz.agent:quick", "tests.fuzz.agent:hold"), queued_behind=4) as made:
        yield made


@pytest.fixture(scope="package")
def http(site: Site) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=site.url, timeout=10.0) as client:
        yield client


@pytest.fixture(scope="package")
def active(http: httpx2.Client) -> str:
    """A run that works in session `busy`, and that no refused request may disturb."""
    made = http.post("/api/runs", json={"input": "work", "session": "busy", "agent": "hold"})
    assert made.status_code == 201, made.text
    path = f"/api/runs/{made.json()['id']}"
    until(lambda: http.get(path).json()["state"] == "running", "it works")
    return made.json()["id"]
