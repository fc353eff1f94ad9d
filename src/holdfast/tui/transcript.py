"""What was said, on the screen: one `RunView` for each run, fed with the events of its log.

Text grows in blocks, because a terminal page lays out a whole widget for each addition; and it is written a few times
a second, however fast it comes. Nothing that a model, a tool or a user says is markup, or a control character.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rich.text import Text
from textual.containers import Vertical
from textual.widgets import Static

from holdfast.domain.events import EventType
from holdfast.domain.words import answer_words, clean, duration, end_words, one_line
from holdfast.tui.liveness import Liveness

_BLOCK: Final = 1000
_BLOCK_MAX: Final = 2000
_OUTPUT_LINES: Final = 6
_OUTPUT_CHARACTERS: Final = 4000


class _Prose:
    """One part of an answer, in blocks."""

    def __init__(self, view: RunView, kind: str) -> None:
        self._view = view
        self._kind = kind
        self._open: tuple[Static, str] | None = None
        self._waits = ""
        self.blocks: list[Static] = []

    def add(self, text: str) -> None:
        self._waits += text

    def write(self) -> None:
        rest, self._waits = clean(self._waits), ""
        while rest:
            block, has = self._open or (self._begin(), "")
            cut, full = _cut(rest, len(has))
            self._open = None if full else (block, has + rest[:cut])
            block.update((has + rest[:cut]).removesuffix("\n") if full else has + rest[:cut])
            rest = rest[cut:]

    def _begin(self) -> Static:
        block = Static("", markup=False, classes=self._kind)
        after = self.blocks[-1] if self.blocks else None
        _ = self._view.mount(block, after=after)
        self.blocks.append(block)
        return block


def _cut(text: str, has: int) -> tuple[int, bool]:
    """How much of `text` a block with `has` characters takes, and whether it is full then."""
    line = text.find("\n", max(0, _BLOCK - has))
    cut = len(text) if line < 0 else line + 1
    if has + cut <= _BLOCK_MAX:
        return cut, line >= 0
    most = max(1, _BLOCK_MAX - has)
    return text.rfind(" ", 0, most) + 1 or most, True


class _Tool(Static):
    """A call of a tool: its arguments, the last lines of its output, its result."""

    def __init__(self, name: str) -> None:
        super().__init__("", markup=False, classes="tool")
        self._title = one_line(name)
        self.brief = ""
        self.state = "is being asked for"
        self.output = ""
        self.result: str | None = None

    def draw(self) -> None:
        """Show what is known."""
        lines = Text.assemble((self._title, "bold"), " ", (self.brief, "dim"), f"  {self.state}")
        shown = clean(self.output).rstrip("\n").split("\n")[-_OUTPUT_LINES:] if self.output else []
        for line in [*shown, *([] if self.result is None else [self.result])]:
            lines.append(f"\n  {line}", "dim")
        self.update(lines)


class RunView(Vertical):
    """One run."""

    DEFAULT_CSS = """
    RunView { height: auto; margin-bottom: 1; }
    RunView Static { width: 100%; height: auto; }
    RunView .said { background: $boost; border-left: thick $accent; padding: 0 1; margin-bottom: 1; }
    RunView .thought { color: $text-muted; text-style: italic; padding-left: 2; }
    RunView .tool { border-left: solid $primary; padding-left: 1; margin: 1 0; }
    RunView .note { color: $text-muted; }
    RunView .bad { color: $text-error; margin-top: 1; }
    RunView .warn { color: $text-warning; margin-top: 1; }
    """

    def __init__(self, run: str, text: str | None = None) -> None:
        """A view of `run`; without its prompt, that of its log is shown."""
        super().__init__()
        self.run = run
        self.live = Liveness(time.time())
        self.requests: Sequence[Mapping[str, Any]] = ()
        self.wish = False  # a stop that the server has not heard yet
        self._text = text
        self._prompt: Static | None = None
        self._parts: dict[int, _Prose] = {}
        self._tools: dict[str, _Tool] = {}
        self._drawn: set[_Tool] = set()

    def on_mount(self) -> None:
        """Show the prompt."""
        if self._text is not None:
            self.say(self._text)

    def say(self, text: str) -> None:
        """What a user said."""
        said = self._line(clean(text), "said")
        self._prompt = self._prompt or said

    def note(self, text: str, kind: str = "note") -> None:
        """Something that is not the answer."""
        self._line(text, kind)

    def clear(self) -> None:
        """Forget all that was shown: the log follows from its start."""
        _ = self.remove_children()
        self._prompt = None
        self._parts, self._tools = {}, {}
        self.live = Liveness(time.time())

    def write(self) -> None:
        """Put on the screen what came since the last time."""
        for part in self._parts.values():
            part.write()
        for tool in self._drawn:
            tool.draw()
        self._drawn.clear()

    def remember(self, message: Mapping[str, Any]) -> None:
        """One message of the history of a run that has ended."""
        match message.get("role"):
            case "user":
                self.say(message.get("text", ""))
            case "assistant":
                if message.get("text"):
                    self._part(-1 - len(self._parts), "answer").add(message["text"])
                for call in message.get("calls") or ():
                    self._tool(call).brief = one_line(call.get("args"))
                self.write()
                if message.get("interrupted"):
                    self.note("interrupted", "warn")
            case "tool":
                self._finished(message)
            case _:
                pass

    def show(self, event: Mapping[str, Any]) -> None:
        """One event of the log, in order."""
        self.live.take(event, time.time())
        match event["type"]:
            case EventType.RUN_CREATED if self._prompt is None:
                self.say(event["input"])
            case EventType.RUN_EDITED if self._prompt is not None:
                self._prompt.update(clean(event["input"]))
            case EventType.TEXT_DELTA:
                self._part(event["part"], "answer").add(event["text"])
            case EventType.REASONING_DELTA:
                self._part(event["part"], "thought").add(event["text"])
            case EventType.TOOL_ARGS:
                self._tool(event)
            case EventType.TOOL_CALLED:
                tool = self._tool(event)
                tool.brief, tool.state = one_line(event.get("args")), "running"
            case EventType.TOOL_PROGRESS:
                tool = self._tool(event)
                tool.output = (tool.output + event.get("text", ""))[-_OUTPUT_CHARACTERS:]
            case EventType.TOOL_FINISHED:
                self._finished(event)
            case EventType.ATTEMPT_DISCARDED:
                self._discard(event)
            case EventType.STEERED:
                self.say(event["input"])
            case EventType.RUN_WAITING:
                self.requests = event["requests"]
                self._pause((each["call"], "needs a decision") for each in self.requests)
            case EventType.RUN_DECIDED:
                self.requests = [each for each in self.requests if each["call"] in event["open"]]
                self._pause((each["call"], _how(each)) for each in event["decisions"])
            case EventType.RUN_RESUMED:
                self.requests = ()
                how = {each["call"]: _how(each) for each in event["decisions"]}
                denied = sum(each == "denied" for each in how.values())
                self._pause(how.items())
                self.note(f"decided: {len(how) - denied} approved, {denied} denied")
            case EventType.RUN_COMPLETED | EventType.RUN_FAILED | EventType.RUN_CANCELLED:
                self._end(event)
            case "resync":
                self.clear()
                self.note("the server's log began anew: reading it from its start")
            case _:
                if words := _words(event):
                    self.note(words)

    def _end(self, event: Mapping[str, Any]) -> None:
        self.requests = ()
        for tool in self._tools.values():
            if tool.result is None:
                tool.state = "did not finish"
                self._drawn.add(tool)
        if event["type"] == EventType.RUN_COMPLETED and not self._parts and event.get("output"):
            self._part(0, "answer").add(str(event["output"]))
        self.write()
        if words := end_words(event):
            kind = "bad" if event["type"] == EventType.RUN_FAILED else "warn"
            self.note("\n".join(words), kind)
        elif spent := answer_words(event, 1000 * (self.live.queued_s or 0.0)):
            self.note(spent)

    def _pause(self, calls: Iterable[tuple[str, str]]) -> None:
        """Calls that were asked for, and have not begun."""
        for call, how in calls:
            if tool := self._tools.get(call):
                tool.state = how
                self._drawn.add(tool)

    def _finished(self, event: Mapping[str, Any]) -> None:
        tool = self._tool(event)
        took = "" if event.get("duration_ms") is None else f" after {duration(event['duration_ms'])}"
        tool.state, tool.result = f"{event.get('outcome')}{took}", one_line(event.get("result"))

    def _discard(self, event: Mapping[str, Any]) -> None:
        for number in event.get("parts", ()):
            for block in self._parts[number].blocks if number in self._parts else ():
                _ = block.remove()
            self._parts.pop(number, None)
        for call in event.get("calls", ()):
            if tool := self._tools.pop(call, None):
                self._drawn.discard(tool)
                _ = tool.remove()
        self.note(f"started over: {one_line(event.get('reason', ''))}")

    def _part(self, number: int, kind: str) -> _Prose:
        if number not in self._parts:
            self.write()  # so that blocks stand in the order in which their parts began
            self._parts[number] = _Prose(self, kind)
        return self._parts[number]

    def _tool(self, event: Mapping[str, Any]) -> _Tool:
        tool = self._tools.get(event["call"])
        if tool is None:
            self.write()
            tool = self._tools[event["call"]] = _Tool(event.get("name") or "tool")
            _ = self.mount(tool)
        self._drawn.add(tool)
        return tool

    def _line(self, text: str, kind: str) -> Static:
        self.write()
        line = Static(text, markup=False, classes=kind)
        _ = self.mount(line)
        return line


def _words(event: Mapping[str, Any]) -> str:
    match event["type"]:
        case EventType.RUN_STARTED if event.get("attempt", 1) > 1:
            return f"attempt {event['attempt']}, on worker {one_line(event.get('worker'))}"
        case EventType.MODEL_RETRIED:
            return f"the model did not answer ({one_line(event.get('reason'))}); again in {duration(event['wait_ms'])}"
        case EventType.DEGRADED:
            return f"degraded: {one_line(event.get('what'))}: {one_line(event.get('why'))}"
        case _:
            return ""


def _how(decision: Mapping[str, Any]) -> str:
    return "approved" if decision.get("approve", True) else "denied"
