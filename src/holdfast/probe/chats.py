"""Reads a stream of chat completion chunks, and judges it: pure, of frames and the times at which they came."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

DONE: Final = "[DONE]"


class Frame(NamedTuple):
    """One server-sent event, and when it came (monotonic seconds)."""

    at: float
    event: str
    data: str
    id: str = ""


@dataclass
class ChatRead:
    """What a chat completion stream has said so far.

    Attributes:
        text: The content of its first choice.
        finish: The finish_reason, once there was one.
        done: Whether [DONE] came.
        error: The error chunk, if there was one.
        first_at: When the first content or reasoning came.
        content_at: When each piece of content, reasoning or end came.
        after_done: Frames after [DONE].
        odd: Frames that are no chunks, shortened.
    """

    text: str = ""
    finish: str | None = None
    done: bool = False
    error: dict[str, Any] | None = None
    first_at: float | None = None
    content_at: list[float] = field(default_factory=list)
    after_done: int = 0
    odd: list[str] = field(default_factory=list)

    def take(self, frame: Frame) -> None:
        """One frame more."""
        if self.done:
            self.after_done += 1
        elif frame.data.strip() == DONE:
            self.done = True
            self.content_at.append(frame.at)
        else:
            _take(self, frame)

    def silence_ms(self, began: float) -> float:
        """The longest time without anything new, from the request on."""
        return max((b - a for a, b in pairwise([began, *self.content_at])), default=0.0) * 1000


def _take(read: ChatRead, frame: Frame) -> None:
    try:
        chunk: Any = json.loads(frame.data)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        read.odd.append(frame.data[:80])
        return
    if isinstance(chunk.get("error"), dict):
        read.error = chunk["error"]
        read.content_at.append(frame.at)
    choices = chunk.get("choices")
    choice: Any = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    delta: Any = choice.get("delta")
    delta = delta if isinstance(delta, dict) else {}
    said = delta.get("content")
    if isinstance(said, str) and said:
        read.text += said
    if said or delta.get("reasoning_content") or delta.get("reasoning"):
        read.first_at = frame.at if read.first_at is None else read.first_at
        read.content_at.append(frame.at)
    elif choice.get("finish_reason"):
        read.content_at.append(frame.at)
    if choice.get("finish_reason"):
        read.finish = str(choice["finish_reason"])


def chat_problems(read: ChatRead, want: str | None = None) -> list[str]:
    """What is wrong with a stream that should have completed; `want` is its exact text, where that is known."""
    problems = [f"a frame that is no chunk: {odd!r}" for odd in read.odd[:1]]
    if read.error is not None:
        problems.append(f"it ended with the error {_short(read.error)}")
    elif read.finish is None:
        problems.append("no chunk has a finish_reason")
    if not read.done:
        problems.append("no [DONE]")
    if read.after_done:
        problems.append(f"{read.after_done} frames after [DONE]")
    if not read.text and read.error is None:
        problems.append("it has no content")
    elif want is not None and read.text.strip() != want.strip() and read.error is None:
        problems.append(f"the text is {difference(read.text.strip(), want.strip())}")
    return problems


def whole_problems(body: Any, want: str | None = None) -> list[str]:
    """What is wrong with a chat completion that was not streamed."""
    try:
        choice = body["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        return [f"the answer is no chat completion: {_short(body)}"]
    problems = [] if finish else ["it has no finish_reason"]
    if not isinstance(text, str) or not text:
        problems.append("it has no content")
    elif want is not None and text.strip() != want.strip():
        problems.append(f"the text is {difference(text.strip(), want.strip())}")
    return problems


def tokens(n: int) -> str:
    """What the rehearsal model says to `!tokens n=N`."""
    return "".join(f"t{k} " for k in range(1, n + 1))


def difference(found: str, want: str) -> str:
    """Where two texts part, in few words."""
    at = next((i for i, (a, b) in enumerate(zip(found, want, strict=False)) if a != b), min(len(found), len(want)))
    return (
        f"{len(found)} characters and not {len(want)}; from {at} on it has {found[at : at + 30]!r}, "
        f"and should have {want[at : at + 30]!r}"
    )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 200 else text[:198] + ".."
