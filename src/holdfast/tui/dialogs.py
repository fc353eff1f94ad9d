"""Questions over the conversation: may this call run, which session is it to be, and what becomes of what waits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from holdfast.domain.words import clean, one_line
from holdfast.tui.prompt import Prompt

Decisions = list[dict[str, Any]]

_ARGS_CHARACTERS: Final = 2000
_LINE: Final = 70
_CSS: Final = """
{name} {{ align: center middle; }}
{name} > Vertical {{ width: 80%; max-width: 90; height: auto; max-height: 80%; }}
{name} > Vertical {{ border: round $primary; padding: 1 2; background: $surface; }}
{name} Static {{ height: auto; }}
{name} OptionList {{ height: auto; max-height: 20; border: none; }}
"""


class Decide(ModalScreen["Decisions | None"]):
    """Asks about each call of a waiting run; dismissed with all decisions, or None to leave them to later."""

    DEFAULT_CSS = _CSS.format(name="Decide")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "decide(True)", "approve"),
        Binding("n", "decide(False)", "deny"),
        Binding("escape,ctrl+c", "later", "later", priority=True),
    ]

    def __init__(self, requests: Sequence[Mapping[str, Any]]) -> None:
        """Ask about these requests, in order."""
        super().__init__()
        self._requests = list(requests)
        self._decisions: Decisions = []

    def compose(self) -> ComposeResult:
        """The question and the keys."""
        with Vertical():
            yield Static("", markup=False, id="question")
            yield Static("y approves, n denies, Esc leaves it to later", markup=False)

    def on_mount(self) -> None:
        """Ask the first."""
        self._ask()

    def action_decide(self, approve: bool) -> None:
        """One answer."""
        request = self._requests[len(self._decisions)]
        self._decisions.append({"call": request["call"], "approve": approve})
        if len(self._decisions) == len(self._requests):
            _ = self.dismiss(self._decisions)
        else:
            self._ask()

    def action_later(self) -> None:
        """No answer now: the run waits on, for somebody else or for later."""
        _ = self.dismiss(None)

    def _ask(self) -> None:
        request = self._requests[len(self._decisions)]
        args = clean(json.dumps(request.get("args"), ensure_ascii=False, indent=2))[:_ARGS_CHARACTERS]
        place = f" ({len(self._decisions) + 1} of {len(self._requests)})" if len(self._requests) > 1 else ""
        self.query_one("#question", Static).update(
            Text.assemble((f"May {one_line(request['name'])} run?{place}\n\n", "bold"), args, "\n")
        )


class Choose(ModalScreen["str | None"]):
    """The sessions, most recently used first; dismissed with one's id, or None."""

    DEFAULT_CSS = _CSS.format(name="Choose")
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,ctrl+c", "leave", "back", priority=True)]

    def __init__(self, sessions: Sequence[tuple[str, str]]) -> None:
        """Offer these: id and words."""
        super().__init__()
        self._sessions = sessions

    def compose(self) -> ComposeResult:
        """The list."""
        with Vertical():
            yield Static("Sessions: Enter opens one, Esc goes back", markup=False)
            lines = (Text(words[:_LINE], no_wrap=True, overflow="ellipsis") for _, words in self._sessions)
            yield OptionList(*map(Option, lines))

    def on_option_list_option_selected(self, chosen: OptionList.OptionSelected) -> None:
        """Open it."""
        _ = self.dismiss(self._sessions[chosen.option_index][0])

    def action_leave(self) -> None:
        """Open none."""
        _ = self.dismiss(None)


class Behind(ModalScreen["tuple[str, str | None] | None"]):
    """The prompts that wait; dismissed with one's run and its new text, None to remove it, or None for neither."""

    DEFAULT_CSS = _CSS.format(name="Behind")
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,ctrl+c", "leave", "back", priority=True),
        Binding("delete,d", "remove", "remove"),
    ]

    def __init__(self, waiting: Sequence[tuple[str, str]]) -> None:
        """Offer these: run and prompt, in their order."""
        super().__init__()
        self._waiting = list(waiting)
        self._edited = ""

    def compose(self) -> ComposeResult:
        """The list."""
        with Vertical():
            yield Static("What waits: Enter edits one, d removes it, Esc goes back", markup=False, id="keys")
            lines = (Text(one_line(prompt), no_wrap=True, overflow="ellipsis") for _, prompt in self._waiting)
            yield OptionList(*map(Option, lines))

    async def on_option_list_option_selected(self, chosen: OptionList.OptionSelected) -> None:
        """Edit it, in place of the list."""
        self._edited, prompt = self._waiting[chosen.option_index]
        self.query_one("#keys", Static).update("Enter saves, Ctrl-J begins a line, Esc leaves it as it was")
        await self.query_one(OptionList).remove()
        box = Prompt(prompt)
        await self.query_one(Vertical).mount(box)
        box.move_cursor(box.document.end)
        box.focus()

    def on_prompt_sent(self, sent: Prompt.Sent) -> None:
        """Its new text."""
        _ = sent.stop()
        _ = self.dismiss((self._edited, sent.text))

    def action_remove(self) -> None:
        """It is not to run."""
        if not self._edited and (at := self.query_one(OptionList).highlighted) is not None:
            _ = self.dismiss((self._waiting[at][0], None))

    def action_leave(self) -> None:
        """All stays as it was."""
        _ = self.dismiss(None)
