"""A rehearsal model for each test, with limits short enough to be waited for."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from holdfast.config.settings import Settings
from holdfast.rehearsal import RehearsalServer
from tests.agents.support import Rig


@pytest.fixture
def settings() -> Settings:
    return Settings(
        model_connect_s=0.5,
        model_first_content_s=1.0,
        model_idle_s=1.0,
        model_request_s=3.0,
        tool_timeout_s=2.0,
        tool_queue_s=0.3,
        tool_threads=4,
        quarantine=2,
        stop_grace_s=0.2,
    )


@pytest_asyncio.fixture
async def rig(settings: Settings) -> AsyncIterator[Rig]:
    async with RehearsalServer() as server:
        rig = Rig(server, settings)
        yield rig
        await rig.close()
