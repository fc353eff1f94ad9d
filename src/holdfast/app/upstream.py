"""Whether a model's server is there, and what it is. Imports no agent library, so that the gateway stays small."""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple

import httpx2

PROBE_S: Final = 3.0
REHEARSAL_HEADER: Final = "x-holdfast-rehearsal"


class Reached(NamedTuple):
    """What answered at a model's URL.

    Attributes:
        reachable: Whether a server answered at all, with whatever status.
        rehearsal: Whether it says that it is the rehearsal model.
        detail: What happened, in one line.
    """

    reachable: bool
    rehearsal: bool
    detail: str


async def probe_model(url: str, key: str = "") -> Reached:
    """Ask the server at `url` for its models, for at most 3 s: is it there, and is it the rehearsal model?"""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with asyncio.timeout(PROBE_S), httpx2.AsyncClient(timeout=PROBE_S) as client:
            response = await client.get(f"{url.rstrip('/')}/models", headers=headers)
    except TimeoutError:
        return Reached(False, False, f"nothing answered at {url} in {PROBE_S:g} s")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return Reached(False, False, f"cannot reach {url}: {type(error).__name__}: {error}")
    return Reached(True, REHEARSAL_HEADER in response.headers, f"{url} answered {response.status_code}")
