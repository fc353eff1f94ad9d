"""Runs a command for a tool: no shell, bounded output that is shown while it comes, and nothing left behind."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath

from holdfast.tools.limits import process_limits
from holdfast.tools.output import Kept, Shown
from holdfast.tools.process import Program, start_group
from holdfast.tools.reports import progress


@dataclass(frozen=True)
class CommandResult:
    """How a command ended and what it wrote; of long output the beginning and the end, with a mark between them."""

    code: int  # minus the number of a signal
    stdout: str
    stderr: str
    truncated: bool  # whether something is left out of either


class CommandTimeout(TimeoutError):
    """A command took longer than `timeout_s` and was killed; `result` has what it wrote until then."""

    def __init__(self, message: str, result: CommandResult) -> None:
        """Take what happened."""
        super().__init__(message)
        self.result = result


async def command(
    argv: Sequence[str | PathLike[str]],
    *,
    input: str | bytes | None = None,
    cwd: str | PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    output_bytes: int | None = None,
) -> CommandResult:
    """Run a command to its end; a cancellation, as Stop and the tool's time limit are one, kills all that it started.

    Args:
        argv: The program, found on PATH, and its arguments. No shell: nothing in them is interpreted.
        input: What it reads from standard input; nothing by default.
        cwd: Where it runs; the worker's directory by default.
        env: Its environment, all of it; the worker's by default.
        timeout_s: When to kill it; else the tool's own time limit holds.
        output_bytes: How much of each stream is kept and shown; `tool_output_bytes` by default.

    Returns:
        Its exit code and output. A code other than 0 is no exception: the model should see it.

    Raises:
        CommandTimeout: After `timeout_s`, with what it wrote.
        FileNotFoundError: There is no such program, or no such directory.
        ToolQueueTimeout: Too many processes of tools ran at once.
    """
    words = [fspath(word) for word in argv]
    if not words:
        raise ValueError("a command needs at least the name of a program")
    bound = output_bytes if output_bytes is not None else process_limits().output_bytes
    kept = Kept(bound), Kept(bound)
    shown = Shown(progress, bound), Shown(progress, bound)

    def take(stream: int, data: bytes) -> None:
        kept[stream].add(data)
        shown[stream].add(data)

    program = Program(
        words,
        lambda data: take(0, data),
        lambda data: take(1, data),
        stdin=input.encode() if isinstance(input, str) else input,
        directory=None if cwd is None else fspath(cwd),
        env=env,
    )
    group, pipes = await start_group(program)
    late = False
    try:
        async with asyncio.timeout(timeout_s):
            await group.finish()
    except TimeoutError:
        late = True
    finally:
        for pipe in pipes:
            pipe.finish()
    if group.problem is not None:
        _raise_problem(group.problem, words[0])
    code = group.code if group.code is not None else -9
    result = CommandResult(code, kept[0].text(), kept[1].text(), any(k.left_out for k in kept))
    if late:
        raise CommandTimeout(f"{words[0]} did not end within {timeout_s:g} s and was killed", result)
    return result


def _raise_problem(problem: OSError, name: str) -> None:
    if problem.errno == errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, "no such program", name) from problem
    raise OSError(problem.errno, problem.strerror, name) from problem
