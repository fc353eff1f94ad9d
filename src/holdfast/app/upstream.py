"""Whether a model's server is there, and what it is. Imports no agent library, so that the gateway stays small."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

import httpx2

from holdfast.app.errors import StartError
from holdfast.config import Settings, model_key, upstream_url
from holdfast.domain.secrets import mask

PROBE_S: Final = 3.0
_LOOK_S: Final = 2.0  # between two looks for a model that was missing at the start
_REFUSED: Final = (401, 403)
REHEARSAL_HEADER: Final = "x-holdfast-rehearsal"


class Reached(NamedTuple):
    """What answered at a model's URL.

    Attributes:
        reachable: Whether a server answered at all, with whatever status.
        rehearsal: Whether it says that it is the rehearsal model.
        refused: Whether it does not take our key.
        detail: What happened, in one line, without the password that a URL may have.
    """

    reachable: bool
    rehearsal: bool
    detail: str
    refused: bool = False

    def problem(self, url: str) -> str:
        """Why no request would be answered there, with the remedy; "" where one may be."""
        url = mask(url)
        if not self.reachable:
            return f"no model at {url}: {self.detail}; start it there, or correct --model-url"
        if self.refused:
            return f"the model's server at {url} refuses the key: {self.detail}; set HOLDFAST_MODEL_KEY"
        return ""


async def probe_model(url: str) -> Reached:
    """Ask the server at `url` for its models, for at most 3 s: is it there, does it take the key, is it rehearsing?"""
    headers = {"Authorization": f"Bearer {model_key()}", "Accept-Encoding": "identity"}
    try:
        async with (
            asyncio.timeout(PROBE_S),
            httpx2.AsyncClient(timeout=PROBE_S) as client,
            client.stream("GET", f"{url.rstrip('/')}/models", headers=headers) as response,
        ):
            pass  # its head says it all, and nobody has to hold a body of whatever size
    except TimeoutError:
        return Reached(False, False, f"nothing answered at {mask(url)} in {PROBE_S:g} s")
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        return Reached(False, False, mask(f"cannot reach {url}: {type(error).__name__}: {error}"))
    detail, refused = f"{mask(url)} answered {response.status_code}", response.status_code in _REFUSED
    return Reached(True, REHEARSAL_HEADER in response.headers, detail, refused)


async def find_model(settings: Settings) -> str:
    """See that the model's server is there; nothing to do where a provider's own client knows where it is.

    Raises:
        StartError: It cannot be reached, or refuses the key.
    """
    url = upstream_url(settings)
    if url and settings.worker and (why := (await probe_model(url)).problem(url)):
        raise StartError(why)
    return ""


async def until_model(settings: Settings, missing: Callable[[str], None]) -> None:
    """Return once a model that was missing at the start is there; until then `missing` hears why it is not."""
    while True:
        try:
            await find_model(settings)
        except StartError as error:
            missing(str(error))
        else:
            return
        await asyncio.sleep(_LOOK_S)
