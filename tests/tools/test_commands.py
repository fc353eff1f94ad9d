"""Commands as tools run them: what they give back, and that a stop ends all that they started."""

import asyncio
import sys
import time
from pathlib import Path

import psutil
import pytest

from holdfast.ports.probe import Probe, enter
from holdfast.tools import CommandTimeout, CurrentCall, command, in_call
from tests.tools.test_isolated import DEAD_S, STEP_S, alive, cancelled, noted, shown, until

pytestmark = pytest.mark.timeout(60)


async def test_code_output_and_input(tmp_path: Path) -> None:
    """A code other than 0 is a result, for the model to read."""
    result = await command(["sh", "-c", "cat; echo oh >&2; pwd; echo $A; exit 3"], input="in\n", cwd=tmp_path)
    assert result.code == 3
    assert result.stdout == f"in\n{tmp_path}\n\n"
    assert result.stderr == "oh\n"
    assert not result.truncated
    result = await command([sys.executable, "-c", "import os; print(os.environ['A'])"], env={"A": "b"})
    assert (result.code, result.stdout) == (0, "b\n")
    assert (await command(["sh", "-c", "kill -9 $$"])).code == -9


async def test_a_command_inherits_no_ignored_signal() -> None:
    """The interpreter ignores SIGPIPE, and the shim SIGTERM: a command that did would not end."""
    status = (await command(["cat", "/proc/self/status"])).stdout
    ignored = next(line.split()[1] for line in status.splitlines() if line.startswith("SigIgn"))
    assert int(ignored, 16) & (1 << 12 | 1 << 14) == 0, ignored


async def test_no_such_program_or_directory_is_said() -> None:
    """And nothing else is tried."""
    with pytest.raises(FileNotFoundError, match=r"no such program.*holdfast-nothing"):
        await command(["holdfast-nothing"])
    with pytest.raises(FileNotFoundError, match="holdfast-nowhere"):
        await command(["true"], cwd="/holdfast-nowhere")
    with pytest.raises(ValueError, match="at least"):
        await command([])


async def test_long_output_keeps_both_ends_and_says_what_is_missing() -> None:
    """The end of a log is where the error is."""
    with shown() as told:
        result = await command(["sh", "-c", "echo first; seq 200000; echo last"], output_bytes=2000)
    assert result.truncated
    assert result.stdout.startswith("first\n1\n")
    assert result.stdout.endswith("200000\nlast\n")
    assert len(result.stdout) < 2100
    assert "bytes are left out here]" in result.stdout
    assert "".join(told).startswith("first\n1\n")
    assert len("".join(told)) < 2100


async def test_a_flood_costs_other_tasks_nothing() -> None:
    """A command that writes without end is read no faster than the loop can bear."""
    worst = 0.0
    task = asyncio.ensure_future(command(["yes"], timeout_s=1.0))
    while not task.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        worst = max(worst, time.monotonic() - before)
    with pytest.raises(CommandTimeout, match="killed") as late:
        await task
    assert late.value.result.truncated
    assert worst < 1.0


async def test_a_stop_ends_a_pipeline_and_what_it_put_aside(tmp_path: Path) -> None:
    """The shell, its children, and what `setsid` and `&` took out of its sight."""
    probe, journal = Probe(), tmp_path / "pids"
    enter(probe)
    script = f"trap '' TERM; echo $$ >> {journal}; setsid sleep 60 & echo $! >> {journal}; sleep 60 | cat"
    with in_call(CurrentCall("r", "c", 1)):
        task = asyncio.ensure_future(command(["sh", "-c", script]))
    await until(lambda: len(noted(journal)) == 2, "it has started")
    assert await cancelled(task) < DEAD_S
    assert not alive(noted(journal))
    assert probe.processes_killed() == {"c"}


async def test_many_commands_leave_nothing() -> None:
    """Descriptors and children return to where they were."""
    me = psutil.Process()

    def held() -> tuple[int, int]:
        return me.num_fds(), len(me.children())

    await command(["true"])
    before = held()
    async with asyncio.timeout(STEP_S * 2):
        for _ in range(5):
            await asyncio.gather(*(command(["true"]) for _ in range(4)))
    await until(lambda: held() <= before, f"back at {before}")
