"""Decides what one request is answered with: which part of the script is next, or the plain word that there is none.

The script is that of the last user message. Each tool result after it marks a call as answered, so the next part is
the one behind those calls. Where some results of parallel calls are missing, the part counts as answered all the same:
the model was asked to go on.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.rehearsal.script import RATE, parse
from holdfast.rehearsal.steps import Say, Segment
from holdfast.rehearsal.wire import Message

__all__ = ["next_segment"]

ECHO_CHARS_MAX = 1000
ECHO_RATE = 2 * RATE

NO_SCRIPT = (
    "This is the Holdfast rehearsal model, not a language model: it answers from a script. "
    "Script it by lines such as !tokens n=200 or !say hello. "
)


def next_segment(messages: Sequence[Message]) -> Segment:
    """What the next response to `messages` performs.

    Raises:
        ScriptError: The last user message has a line that cannot be performed.
    """
    last = max((at for at, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        return _plain(NO_SCRIPT + "There was no user message.")
    prompt = messages[last].text
    script = parse(prompt)
    if script is None:
        return _plain(NO_SCRIPT + "You said: " + _cut(prompt))
    results = [message for message in messages[last:] if message.role == "tool"]
    answered = 0
    for segment in script:
        if answered >= len(results):
            return segment
        answered += segment.calls
        if not segment.calls:
            return segment
    return _plain(
        "This is the Holdfast rehearsal model; its script ends here. "
        "The last tool result was: " + _cut(results[-1].text if results else "")
    )


def _plain(text: str) -> Segment:
    return Segment((), (Say(text, ECHO_RATE),))


def _cut(text: str) -> str:
    if len(text) <= ECHO_CHARS_MAX:
        return text
    return f"{text[:ECHO_CHARS_MAX]}... ({len(text)} characters)"
