"""Calls an isolated function: request and answer as JSON, output as progress, one process each."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FunctionType
from typing import Any, Final

from holdfast.tools.calls import current_call
from holdfast.tools.isolation import ToolDied, ToolRaised
from holdfast.tools.limits import process_limits
from holdfast.tools.output import Kept, Shown
from holdfast.tools.process import Program, start_group
from holdfast.tools.reports import progress

RUNNER: Final = Path(__file__).with_name("runner.py")
REQUEST_BYTES_MAX: Final = 1_048_576
ANSWER_BYTES_MAX: Final = 1_048_576
LAST_WORDS_BYTES: Final = 2048  # of standard error, for a process that died


async def call_isolated(function: FunctionType, awaits: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the function returns, in a process of its own.

    Raises:
        ToolRaised: What it raised, by name.
        ToolDied: Its process ended without an answer.
        ToolQueueTimeout: There was no place for a process in time.
        TypeError: The arguments are no JSON.
    """
    answer = bytearray()
    words = Kept(LAST_WORDS_BYTES)
    shown = process_limits().output_bytes
    out, err = Shown(progress, shown), Shown(progress, shown)

    def error_output(data: bytes) -> None:
        words.add(data)
        err.add(data)

    def more(data: bytes) -> None:
        if len(answer) <= ANSWER_BYTES_MAX:
            answer.extend(data)

    argv = [sys.executable, "-P", str(RUNNER)]
    request = _request(function, awaits, args, kwargs)
    program = Program(argv, out.add, error_output, request=request, result=more)
    group, pipes = await start_group(program)
    try:
        await group.finish()
    finally:
        for pipe in pipes:
            pipe.finish()
    if group.problem is not None:
        raise group.problem
    if not answer:
        raise _died(function, group.code, words.text())
    return _value(json.loads(answer))


def _request(function: FunctionType, awaits: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    call = current_call()
    main = sys.modules.get("__main__") if function.__module__ == "__main__" else None
    if main is not None and not getattr(main, "__file__", None):
        raise TypeError(f"another process cannot find {function.__qualname__}: it was typed in; put it into a module")
    request = {
        "path": sys.path,
        "module": function.__module__,
        "file": str(getattr(main, "__file__", None) or ""),
        "name": function.__qualname__,
        "awaits": awaits,
        "call": None if call is None else list(call),
        "bytes_max": ANSWER_BYTES_MAX,
        "args": args,
        "kwargs": kwargs,
    }
    try:
        data = json.dumps(request, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"the arguments of the isolated tool {function.__qualname__} are no JSON: {error}; they go to another "
            "process, so take str, int, float, bool, None, lists and dicts"
        ) from error
    if len(data) > REQUEST_BYTES_MAX:
        raise ValueError(
            f"the arguments of the isolated tool {function.__qualname__} are {len(data)} bytes of JSON; at most "
            f"{REQUEST_BYTES_MAX} go to another process: write them to a file and pass its name"
        )
    return data


def _value(answer: dict[str, Any]) -> Any:
    error = answer.get("error")
    if error is None:
        return answer["value"]
    named = type(str(error["type"]), (ToolRaised,), {"__module__": error["module"]})
    raise named(f"{error['module']}.{error['type']}", error["message"], error["trace"])


def _died(function: FunctionType, code: int | None, words: str) -> ToolDied:
    how = "was killed with its shim" if code is None else f"ended with code {code}" if code >= 0 else _by_signal(-code)
    said = f"; its last words: {words.strip()}" if words.strip() else ""
    return ToolDied(f"the process of {function.__qualname__} {how} before it had an answer{said}", code)


def _by_signal(number: int) -> str:
    import signal

    return f"was ended by {signal.Signals(number).name}"
