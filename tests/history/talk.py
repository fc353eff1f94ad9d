"""A session played prompt by prompt, each cut somewhere, and what must hold of every request its model received."""

import json
from typing import Any, NamedTuple

from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, UserPromptPart

from holdfast.agents.history import CUT, NO_ANSWER, history_of
from holdfast.domain.digest import Digest
from holdfast.domain.events import EventType
from holdfast.domain.messages import HistoryEntry
from holdfast.ports.store import RunRecord
from tests.agents.rules import problems
from tests.history import anthropic
from tests.history.cutting import Cut
from tests.history.site import Site

INTERRUPTED = "interrupted"


class Prompt(NamedTuple):
    """One prompt: its script, and how and where its run is cut; "none" lets it run."""

    script: str
    how: str = "none"
    at: int = 0


class Turn(NamedTuple):
    """One run that was played."""

    mark: str
    text: str
    record: RunRecord
    events: list[dict[str, Any]]
    prompt: Prompt

    def story(self) -> str:
        types = [f"{e['seq']}:{e['type']}" for e in self.events]
        return f"{self.prompt.how}@{self.prompt.at} -> {self.record.state}/{self.record.reason} {' '.join(types)}"


async def converse(site: Site, prompts: list[Prompt], *, chat: bool = False) -> list[Turn]:
    """Play the prompts in one new session, each cut as it says; `chat` through /v1/chat/completions."""
    session = site.name()
    texts = [f"Find kelp #{session}.{n}#\n{p.script}" for n, p in enumerate(prompts)]
    started: dict[int, str] = {}

    async def start(n: int) -> None:
        prompt = prompts[n]
        body: dict[str, Any] = {}
        match prompt.how:
            case "supersede":
                if n + 1 < len(prompts):
                    cut = Cut(prompt.at, "told", lambda _: start(n + 1))
                    body["metadata"] = site.cutter.add(cut)
            case "agent":
                body["metadata"] = {"fail_after": prompt.at}
            case "none":
                pass
            case how:
                body["metadata"], _ = site.cut(prompt.at, how)
                if how == "deadline":
                    body["deadline_s"] = 1.0
        begin = site.complete if chat else site.start
        started[n] = await begin(session, texts[n], **body)

    turns = []
    for n, prompt in enumerate(prompts):
        if n not in started:
            await start(n)
        record = await site.end(started[n])
        turns.append(Turn(f"#{session}.{n}#", texts[n], record, await site.log_of(started[n]), prompt))
    return turns


def check(site: Site, turns: list[Turn]) -> None:
    """Every request of the session is valid for both providers and tells all that happened before it."""
    for n, turn in enumerate(turns):
        for messages in site.requests(turn.mark):
            told = "\n".join(t.story() for t in turns[: n + 1]) + "\n" + json.dumps(messages)
            assert not problems(messages), f"{problems(messages)}\n{told}"
            assert not anthropic.problems(messages), f"{anthropic.problems(messages)}\n{told}"
            users = [m["content"] for m in messages if m["role"] == "user"]
            assert users == [t.text for t in turns[: n + 1]], told
            for earlier, section in zip(turns[:n], _sections(messages), strict=False):
                wrong = _missing(earlier, section)
                assert not wrong, f"{wrong}\nof {earlier.story()}\n{told}"
        if turn.record.started_at is not None and turn.prompt.how == "none":
            assert site.requests(turn.mark), f"no request for {turn.story()}"


def check_pairs(site: Site, turns: list[Turn]) -> None:
    """What the worker wrote of a run, and what the store would have derived from its log, say the same."""
    for turn in turns:
        pair = site.cutter.pairs.get(turn.record.key.run)
        if pair is None:
            continue
        written, derived = pair
        assert written.messages == derived.messages, turn.story()
        one, two = content([written]), content([derived])
        plain = content([HistoryEntry(written.run, written.state, written.messages)])
        for other in (two, plain):
            told = f"{turn.story()}\nwritten {one}\nof the log {other}"
            if turn.record.state == "completed":
                assert one == other, told
            assert agrees(one, other), told


def content(entries: list[HistoryEntry]) -> list[tuple[Any, ...]]:
    """What a model would read, without reasoning, ids and how text is cut into parts."""
    return [item for message in history_of(entries) for item in _items(message)]


def agrees(told: list[tuple[Any, ...]], log: list[tuple[Any, ...]]) -> bool:
    """Whether a history tells all that its log tells, in order, and beyond it only what was on its way there.

    The worker may know a little more than its log when a run breaks: text, calls and results that were produced and
    not yet written. Then the log's last text is the beginning of the history's, and its last results are missing.
    """
    rest = list(told)
    for kind, *values in log:
        while rest:
            found, *others = rest.pop(0)
            if kind == found and _covers(kind, others, values):
                break
            if found == "user":
                return False
        else:
            return kind == "assistant" and values[0] == NO_ANSWER
    return all(item[0] != "user" for item in rest)


def _covers(kind: str, told: list[Any], log: list[Any]) -> bool:
    if told == log:
        return True
    if kind == "assistant":
        return told[0].startswith(log[0].removesuffix(CUT.strip()).strip())
    return kind == "tool" and told[0] == log[0] and log[1] == "interrupted"


def _items(message: ModelMessage) -> list[tuple[Any, ...]]:
    if isinstance(message, ModelRequest):
        return [
            ("user", part.content) if isinstance(part, UserPromptPart) else ("tool", part.tool_name, *_result(part))
            for part in message.parts
        ]
    assert isinstance(message, ModelResponse)
    text = "".join(p.content for p in message.parts if isinstance(p, TextPart)).strip()
    calls = [("call", p.tool_name, _args(p)) for p in message.parts if isinstance(p, ToolCallPart)]
    return [*([("assistant", text)] if text else []), *calls]


def _args(part: ToolCallPart) -> Any:
    """The arguments; those that are no JSON are put into an object by whoever sends them, each in its way."""
    args = part.args_as_dict()
    return args.get("INVALID_JSON", args.get("text", args))


def _result(part: Any) -> tuple[str, Any]:
    """The outcome and the result; of an interrupted call only that it was."""
    outcome = getattr(part, "outcome", "retried")
    if outcome == "interrupted":
        return outcome, None
    if outcome == "success":
        return outcome, part.content
    return "failed", str(part.content)


def _sections(messages: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """What stands between each prompt and the next."""
    found: list[list[dict[str, Any]]] = []
    for message in messages:
        if message["role"] == "user":
            found.append([])
        elif found:
            found[-1].append(message)
    return found


def _missing(turn: Turn, section: list[dict[str, Any]]) -> list[str]:
    """What of an ended run its part of the history does not tell."""
    fold = Digest(turn.events)
    said = "".join(_text(m) for m in section if m["role"] == "assistant")
    times = {text: said.count(text) for text in _texts(turn.events)}
    found = [f"the text {text!r} is there {count} times" for text, count in times.items() if count != 1]
    results = [_text(m) for m in section if m["role"] == "tool"]
    live = set(fold.calls())
    ended = [e for e in turn.events if e["type"] == EventType.TOOL_FINISHED and e["call"] in live]
    finished = [(e["result"], e["outcome"]) for e in ended if e["outcome"] in ("success", "failed")]
    for result, outcome in finished:
        count = sum(_same(result, outcome, told) for told in results)
        if count != finished.count((result, outcome)):
            found.append(f"the result {result!r} is there {count} times in {results}")
    last = _text(section[-1]) if section and section[-1]["role"] == "assistant" else ""
    if turn.record.state == "completed":
        if turn.record.output not in last:
            found.append(f"the answer {turn.record.output!r} is not the last word, {last!r} is")
    elif INTERRUPTED not in last and not _whole(turn.events):
        found.append(f"the last word does not say that it was interrupted: {last!r}")
    return found


def _whole(events: list[dict[str, Any]]) -> bool:
    """Whether the run broke after its whole answer: then there is nothing to mark."""
    types = [e["type"] for e in events]
    asked = max((at for at, kind in enumerate(types) if kind == EventType.MODEL_REQUESTED), default=0)
    since = types[asked:]
    said = EventType.MODEL_RESPONDED in since or EventType.TEXT_DONE in since
    return said and not {EventType.TOOL_ARGS, EventType.TOOL_CALLED} & set(since)


def _same(result: Any, outcome: str, told: str) -> bool:
    """Whether a tool message tells this result; pydantic-ai puts a failure into an object."""
    try:
        found = json.loads(told)
    except ValueError:
        found = told
    if outcome == "failed":
        return str(result) in told or (isinstance(found, dict) and str(result) in str(found.get("error")))
    return result in (found, told)


def _texts(events: list[dict[str, Any]]) -> list[str]:
    """Each undiscarded text part, without the blanks around it."""
    fold = Digest(events)
    live = set(fold.parts())
    texts: dict[int, str] = {}
    for event in events:
        if event["type"] == EventType.TEXT_DELTA and event["part"] in live:
            texts[event["part"]] = texts.get(event["part"], "") + event["text"]
    return [text.strip() for text in texts.values() if text.strip()]


def _text(message: dict[str, Any]) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)
