"""Reads the script in a user's message: directive lines in, segments of typed steps out; pure.

A line that starts with `!name` is a directive, every other line is ignored beside one. Lines run in order. The
options below show their defaults, except that `!status` sends no Retry-After and never stops unless told, and that
a fault with `after` takes `times` too: after so many times its line is passed over.

    !say text...              the text, word by word; `rate=N` as its first or last word sets the rate
    !tokens n=200 rate=50     `t1 t2 t3 `, one chunk each; numbers continue over all lines of one response
    !think n=20 rate=50       reasoning tokens `r1 r2 r3 `
    !tool name {"json": 1}    a tool call; the arguments are `{}` when absent
    !tool_raw name text       a tool call whose arguments are the text as it is, JSON or not
    !tool_part name {"json": 1}              half of a tool call; the next line happens inside its arguments
    !first_token delay=5      silence after the headers
    !slow_headers for=5       silence before the headers
    !stall after=10 for=999   tokens, then silence
    !comments after=3 for=999 every=0.1      tokens, then SSE comments only
    !close after=10           tokens, then the connection is dropped
    !truncate after=10        tokens, then a clean end without finish_reason and [DONE]
    !bad_json after=5         tokens, then a chunk that is not JSON; the script goes on
    !error_in_stream after=5 error=word      tokens, then an error chunk; `error` is its code
    !status code=429 retry_after=2 times=1   an HTTP error, the first `times` times these messages are seen
    !status code=400 error=word above=500    the same with this code, where the messages have more words than that
    !usage prompt=10 completion=20           the usage to report

Every line that emits tokens takes `rate`. Consecutive `!tool` lines are parallel calls of one response; whatever
follows them is performed once their results are there. A script that emits nothing answers with ten tokens, so that
`!first_token delay=5` alone is a slow answer. `!slow_headers` and `!status` come before anything that needs headers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from holdfast.rehearsal.steps import (
    BadJson,
    Comments,
    Cut,
    Fault,
    FirstToken,
    Say,
    Segment,
    SlowHeaders,
    Stall,
    Status,
    Step,
    StreamError,
    Think,
    Tokens,
    Tool,
    ToolPart,
    Usage,
)

__all__ = ["DIRECTIVES", "RATE", "TOKENS_ALONE", "ScriptError", "parse", "says_nothing"]

RATE = 50.0
TOKENS_MAX = 1_000_000
DELAY_S_MAX = 3600.0
ANSWER_S_MAX = 7200.0
LINES_MAX = 1000
TOKENS_ALONE = 10

_DIRECTIVE = re.compile(r"!([A-Za-z_]\S*)")
_WORD = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class ScriptError(ValueError):
    """A line of the script that cannot be performed, and why."""

    def __init__(self, line: int, text: str, problem: str) -> None:
        """Name the line by number and content."""
        shown = text.strip()
        shown = shown if len(shown) <= 100 else shown[:100] + "..."
        super().__init__(f"line {line}: {problem} (in {shown!r})")
        self.line = line
        self.problem = problem


class _Problem(Exception):
    """A note from the reader of one line to `parse`, which adds the line."""


@dataclass(frozen=True, slots=True)
class _Option:
    """A number that a directive takes; without a default it may be absent."""

    default: float | None
    low: float
    high: float
    whole: bool = False

    def read(self, name: str, text: str) -> float:
        """The value of `text`, or the problem with it."""
        try:
            value = float(int(text)) if self.whole else float(text)
        except (ValueError, OverflowError):
            value = math.nan
        if not self.low <= value <= self.high:
            kind = "a whole number" if self.whole else "a number"
            raise _Problem(f"{name}={text} is not {kind} from {self.low:g} to {self.high:.7g}")
        return value


@dataclass(frozen=True, slots=True)
class _Word:
    """A word that a directive takes, such as an error's code."""

    default: str | None

    def read(self, name: str, text: str) -> str:
        """The word itself, or the problem with it."""
        if not _WORD.fullmatch(text):
            raise _Problem(f"{name}={text[:40]} is not a word of letters, digits, _, . and -")
        return text


_Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Form:
    options: Mapping[str, _Option | _Word]
    build: Callable[[_Values], Step]


def _tokens(default: int) -> _Option:
    return _Option(default, 0, TOKENS_MAX, whole=True)


def _delay(default: float) -> _Option:
    return _Option(default, 0, DELAY_S_MAX)


_RATE = _Option(RATE, 0.001, 1_000_000)
_TIMES = _Option(None, 0, 1_000_000, whole=True)


def _times(values: _Values) -> int | None:
    return _int(values.get("times"))


def _fault(
    after: int, build: Callable[[int, float, _Values], Step], more: Mapping[str, _Option | _Word] | None = None
) -> _Form:
    """The form of a fault: it comes after some tokens at some rate, and may pass after some times."""
    options = {"after": _tokens(after), **(more or {}), "rate": _RATE, "times": _TIMES}
    return _Form(options, lambda v: build(int(v["after"]), v["rate"], v))


_FORMS: Mapping[str, _Form] = {
    "tokens": _Form({"n": _tokens(200), "rate": _RATE}, lambda v: Tokens(int(v["n"]), v["rate"])),
    "think": _Form({"n": _tokens(20), "rate": _RATE}, lambda v: Think(int(v["n"]), v["rate"])),
    "first_token": _Form({"delay": _delay(5)}, lambda v: FirstToken(v["delay"])),
    "slow_headers": _Form({"for": _delay(5)}, lambda v: SlowHeaders(v["for"])),
    "stall": _fault(10, lambda n, rate, v: Stall(n, v["for"], rate, _times(v)), {"for": _delay(999)}),
    "comments": _fault(
        3,
        lambda n, rate, v: Comments(n, v["for"], v["every"], rate, _times(v)),
        {"for": _delay(999), "every": _Option(0.1, 0.001, 3600)},
    ),
    "close": _fault(10, lambda n, rate, v: Cut(n, "close", rate, _times(v))),
    "truncate": _fault(10, lambda n, rate, v: Cut(n, "truncate", rate, _times(v))),
    "bad_json": _fault(5, lambda n, rate, v: BadJson(n, rate, _times(v))),
    "error_in_stream": _fault(
        5, lambda n, rate, v: StreamError(n, rate, v["error"], _times(v)), {"error": _Word("rehearsal_error")}
    ),
    "status": _Form(
        {
            "code": _Option(429, 400, 599, whole=True),
            "retry_after": _Option(None, 0, DELAY_S_MAX),
            "times": _TIMES,
            "error": _Word("rehearsal_status"),
            "above": _Option(None, 0, 1_000_000_000, whole=True),
        },
        lambda v: Status(int(v["code"]), v.get("retry_after"), _times(v), 0, v["error"], _int(v.get("above"))),
    ),
    "usage": _Form(
        {
            "prompt": _Option(10, 0, 1_000_000_000, whole=True),
            "completion": _Option(20, 0, 1_000_000_000, whole=True),
        },
        lambda v: Usage(int(v["prompt"]), int(v["completion"])),
    ),
}

DIRECTIVES: tuple[str, ...] = ("say", "tool", "tool_raw", "tool_part", *_FORMS)


def parse(message: str) -> tuple[Segment, ...] | None:
    """Read the script in `message`; None when it has no directive.

    Returns:
        One segment for each response the script asks for: the calls of one segment are answered before the next.

    Raises:
        ScriptError: A line is unknown, malformed, out of bounds or can never run.
    """
    segments: list[list[Step]] = [[]]
    directives = 0
    for number, line in enumerate(message.split("\n"), start=1):  # no other character ends a line: it may be text
        stripped = line.strip()
        found = _DIRECTIVE.match(stripped)
        if found is None:
            continue
        directives += 1
        if directives > LINES_MAX:
            raise ScriptError(number, line, f"a script has at most {LINES_MAX} lines")
        try:
            step = _read(found[1], stripped[found.end() :].lstrip())
            if isinstance(step, Status) or (isinstance(step, Fault) and step.times is not None):
                step = replace(step, line=number)
            _admit(segments, step)
        except _Problem as problem:
            raise ScriptError(number, line, str(problem)) from None
        segments[-1].append(step)
    if not directives:
        return None
    _check_size(segments, message)
    return tuple(_finish(steps) for steps in segments)


def _int(value: float | None) -> int | None:
    return None if value is None else int(value)


def _read(name: str, rest: str) -> Step:
    if name == "say":
        return _read_say(rest)
    if name in {"tool", "tool_raw", "tool_part"}:
        tool = _read_tool(rest, raw=name == "tool_raw")
        return ToolPart(tool.name, tool.args) if name == "tool_part" else tool
    form = _FORMS.get(name)
    if form is None:
        raise _Problem(f"unknown directive !{name[:40]}; known are !" + ", !".join(DIRECTIVES))
    values: dict[str, Any] = {key: opt.default for key, opt in form.options.items() if opt.default is not None}
    for word in rest.split():
        key, equals, text = word.partition("=")
        if not equals or key not in form.options:
            raise _Problem(f"!{name} does not take {word!r}; it takes {_takes(form)}")
        values[key] = form.options[key].read(key, text)
    return form.build(values)


def _takes(form: _Form) -> str:
    return ", ".join(f"{key}=<{'word' if isinstance(opt, _Word) else 'number'}>" for key, opt in form.options.items())


def _read_say(rest: str) -> Say:
    rate = RATE
    first, *others = rest.split(maxsplit=1) or [""]
    last = rest.rsplit(maxsplit=1)[-1] if rest else ""
    if first.startswith("rate="):
        rate = _RATE.read("rate", first.removeprefix("rate="))
        rest = others[0] if others else ""
    elif last.startswith("rate="):
        rate = _RATE.read("rate", last.removeprefix("rate="))
        rest = rest[: -len(last)].rstrip()
    if not rest:
        raise _Problem("!say needs a text: !say hello")
    return Say(rest, rate)


def _read_tool(rest: str, *, raw: bool) -> Tool:
    name, *tail = rest.split(maxsplit=1) or [""]
    args = tail[0] if tail else "{}"
    if not _TOOL_NAME.fullmatch(name):
        raise _Problem('!tool needs the name of a tool: !tool search {"q": "kelp"}')
    if raw:
        return Tool(name, args)
    try:
        value = msgspec.json.decode(args)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Problem(f"the arguments of {name} are not JSON: {error}; !tool_raw sends any text") from None
    if not isinstance(value, dict):
        raise _Problem(f"the arguments of {name} must be a JSON object; !tool_raw sends any text")
    return Tool(name, args)


def _admit(segments: list[list[Step]], step: Step) -> None:
    """Check that `step` may follow, and open a new segment where the calls of the last one end."""
    last = segments[-1]
    if last and isinstance(last[-1], Tool) and not isinstance(step, Tool):
        segments.append([])
        last = segments[-1]
    if any(isinstance(before, Cut | StreamError) and before.times is None for before in last):
        raise _Problem("this line can never run: a line before it ends the answer")
    if isinstance(step, SlowHeaders | Status) and not all(
        isinstance(before, SlowHeaders | Status | Usage) for before in last
    ):
        raise _Problem("too late: the headers are out by then; put it before the lines that answer")


def _check_size(segments: Sequence[Sequence[Step]], message: str) -> None:
    for steps in segments:
        costs = [_cost(step) for step in steps]
        tokens, seconds = sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)
        if tokens > TOKENS_MAX or seconds > ANSWER_S_MAX:
            raise ScriptError(
                1,
                message,
                f"an answer has at most {TOKENS_MAX} tokens and takes at most {ANSWER_S_MAX:g} s, "
                f"this one has {tokens} and takes {seconds:.7g} s",
            )


def _cost(step: Step) -> tuple[int, float]:
    """How many tokens a step emits and how many seconds it takes."""
    match step:
        case Tokens(n=n, rate=rate) | Think(n=n, rate=rate):
            return n, n / rate
        case Say(text=text, rate=rate):
            words = len(text.split())
            return words, words / rate
        case Stall(after=n, seconds=seconds, rate=rate) | Comments(after=n, seconds=seconds, rate=rate):
            return n, n / rate + seconds
        case Cut(after=n, rate=rate) | BadJson(after=n, rate=rate) | StreamError(after=n, rate=rate):
            return n, n / rate
        case FirstToken(seconds=seconds) | SlowHeaders(seconds=seconds):
            return 0, seconds
        case Tool() | ToolPart() | Status() | Usage():
            return 0, 0.0


def says_nothing(body: Sequence[Step]) -> bool:
    """Whether these steps emit nothing, so that ten tokens are the answer."""
    return all(isinstance(step, FirstToken | Usage) for step in body)


def _finish(steps: Sequence[Step]) -> Segment:
    """Split the opening off, keep texts apart, and give a segment that emits nothing its ten tokens."""
    opening = tuple(step for step in steps if isinstance(step, SlowHeaders | Status))
    body = [step for step in steps if not isinstance(step, SlowHeaders | Status)]
    if says_nothing(body):
        body.append(Tokens(TOKENS_ALONE, RATE))
    texts = [at for at, step in enumerate(body) if not isinstance(step, Think | Tool | ToolPart | Usage | FirstToken)]
    for at in texts[:-1]:
        step = body[at]
        if isinstance(step, Say):
            body[at] = Say(step.text + "\n", step.rate)
    return Segment(opening, tuple(body))
