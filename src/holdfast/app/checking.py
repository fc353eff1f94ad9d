"""`holdfast check`: everything that a start looks at, looked at without serving."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from holdfast.app.entry import make_access
from holdfast.app.observing import end, look_at_sinks, observe
from holdfast.app.runtime import refuse_lonely
from holdfast.app.startup import MODELS_S, SHORT_S, STORE_S, Startup
from holdfast.app.trial import LOAD_S, try_agents
from holdfast.app.upstream import find_model
from holdfast.config import Settings
from holdfast.stores.opening import StoreError, open_store
from holdfast.stores.sqlite.connect import MEMORY, file_of
from holdfast.telemetry import Log


def check(settings: Settings, specs: Sequence[str], log: Log) -> Startup:
    """Look at settings, store, models, tools and telemetry; beside a server that runs, too.

    Args:
        settings: As `serve` would have them.
        specs: Agents as `[name=]module:attr`.
        log: Told what is degraded or failed.
    """
    return asyncio.run(_check(settings, specs, log))


async def _check(settings: Settings, specs: Sequence[str], log: Log) -> Startup:
    startup = Startup(log)
    await startup.run("settings", partial(_settings, settings, log), limit_s=SHORT_S)
    await startup.run("store", partial(_store, settings.store), limit_s=STORE_S, tries=3)
    await startup.run("models", partial(find_model, settings), limit_s=MODELS_S, tries=2)
    if settings.worker:
        await startup.run("tools", partial(try_agents, settings, specs), limit_s=LOAD_S + SHORT_S)
    await startup.run("telemetry", partial(_telemetry, settings, log), limit_s=SHORT_S)
    return startup


async def _settings(settings: Settings, log: Log) -> None:
    make_access(settings, log)
    refuse_lonely(settings)


async def _store(url: str) -> None:
    """Open it as a second process does; where SQLite's file is not there yet, see whether `serve` could make it."""
    path = Path(file_of(url)) if urlsplit(url).scheme == "sqlite" else None
    if path is None or str(path) == MEMORY or path.exists():
        store = await open_store(url)
        await store.close()
        return
    place = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryDirectory(dir=place, prefix=".holdfast-check-") as directory:
            store = await open_store(f"sqlite:///{directory}/{path.name}", own=True)
            await store.close()
    except OSError as error:
        raise StoreError(f"cannot make {path} in {place}: {error}; give another --store") from error


async def _telemetry(settings: Settings, log: Log) -> str:
    telemetry = observe(settings, log, works=True)
    try:
        return await look_at_sinks(log)
    finally:
        await end(telemetry)
