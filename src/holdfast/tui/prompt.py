"""The box that one types into: Enter sends, a paste keeps its lines, Up brings back what was sent before."""

from __future__ import annotations

from typing import Final

from textual import events
from textual.message import Message
from textual.widgets import TextArea

_NEW_LINE: Final = frozenset({"shift+enter", "ctrl+j", "alt+enter"})


class Prompt(TextArea):
    """A text of one or more lines."""

    DEFAULT_CSS = """
    Prompt { height: auto; min-height: 3; max-height: 10; border: round $primary; }
    """

    class Sent(Message):
        """Enter was pressed on a text that says something."""

        def __init__(self, text: str) -> None:
            """This text."""
            super().__init__()
            self.text = text

    def __init__(self, text: str = "") -> None:
        """A box with this text."""
        super().__init__(
            text,
            soft_wrap=True, show_line_numbers=False, highlight_cursor_line=False, tab_behavior="focus",
            placeholder="Ask something",
        )  # fmt: skip
        self._sent: list[str] = []
        self._back = 0

    async def _on_key(self, event: events.Key) -> None:
        row = self.cursor_location[0]
        if event.key == "enter":
            event.prevent_default()
            event.stop()
            if text := self.text.strip():
                self._sent.append(text)
                self._back = 0
                self.post_message(self.Sent(text))
        elif event.key in _NEW_LINE:  # no binding: that would come after the keys that follow
            event.prevent_default()
            event.stop()
            self.insert("\n")
        elif event.key == "up" and row == 0 and self._back < len(self._sent):
            event.prevent_default()
            event.stop()
            self._recall(self._back + 1)
        elif event.key == "down" and self._back and row == self.document.line_count - 1:
            event.prevent_default()
            event.stop()
            self._recall(self._back - 1)
        else:
            await super()._on_key(event)

    def _recall(self, back: int) -> None:
        self._back = back
        self.text = self._sent[-back] if back else ""
        self.move_cursor(self.document.end)
