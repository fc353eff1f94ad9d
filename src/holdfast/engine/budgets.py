"""Budgets: what a run may use before it is ended, for every kind of agent.

They are looked at where an agent's events pass, between what is finished and what would begin next: a run over its
budget ends before its next model or tool call, and an answer that was its last is kept. What was used is the fold of
the log, so that a resumed attempt goes on counting where the one before it stopped. Wall time has no budget here: that
is the deadline.

Tokens and cost are what providers report. Of a response whose usage nobody knows only the text that was streamed can
be counted, about four characters to a token; a `degraded` event says that this was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from holdfast.config.settings import Price, Settings
from holdfast.domain.digest import Digest
from holdfast.domain.errors import RunEnded
from holdfast.domain.runs import Reason
from holdfast.domain.usage import COST, reported
from holdfast.ports.agent import Degraded, ModelResponded, ToolResponded

_CHARACTERS_A_TOKEN: Final = 4
_MILLION: Final = 1_000_000


class Budget:
    """The budgets of one claim, counted in its fold."""

    def __init__(self, settings: Settings, fold: Digest) -> None:
        """Hold both; nothing is counted here that the fold does not have."""
        self._settings = settings
        self._fold = fold
        self._said: set[str] = set()

    def before_model(self, attempt: int) -> None:
        """A model call would begin; a repetition of one is no further step.

        Raises:
            RunEnded: A budget does not allow it.
        """
        self._check_spent()
        limit, steps = self._settings.budget_steps, self._fold.spent.steps
        if limit and attempt <= 1 and steps >= limit:
            raise _over("budget_steps", f"{steps} model calls are made, and one more was asked for", limit)

    def after_call(self) -> None:
        """The model asked for a tool call, which is in the fold and has not begun.

        Raises:
            RunEnded: A budget does not allow it.
        """
        self._check_spent()
        limit = self._settings.budget_tool_calls
        if limit and (calls := self._fold.tool_calls) > limit:
            raise _over("budget_tool_calls", f"tool call {calls} was asked for", limit)

    def priced(self, event: ModelResponded | ToolResponded) -> dict[str, Any]:
        """The usage of a response, with its cost where there is a price and the agent did not tell one."""
        usage = dict(event.usage)
        price = self._price(event.model)
        if price is not None and COST not in usage and reported(usage):
            usage[COST] = _cost(price, usage)
        return usage

    def blind_to(self, event: ModelResponded | ToolResponded, usage: Mapping[str, Any]) -> list[Degraded]:
        """What a budget cannot count of this response; each is said once."""
        found = []
        settings = self._settings
        if settings.budget_tokens and not reported(usage):
            why = f"model {event.model} reports no usage: its output counts by its length, its input not at all"
            found.append(Degraded("budget_tokens", why))
        if settings.budget_cost and COST not in usage:
            what = "reports no usage" if self._price(event.model) is not None else "has no price in the setting prices"
            found.append(Degraded("budget_cost", f"model {event.model} {what}: its cost is not counted"))
        fresh = [each for each in found if each.what not in self._said]
        self._said.update(each.what for each in fresh)
        return fresh

    def _price(self, model: str) -> Price | None:
        """By the name that answered, else the name that was asked for: providers add a date to it."""
        prices = self._settings.prices
        return prices.get(model) or prices.get(self._fold.spent.model)

    def _check_spent(self) -> None:
        settings, spent = self._settings, self._fold.spent
        guessed = -(-spent.unreported_characters // _CHARACTERS_A_TOKEN)
        tokens = spent.tokens + guessed
        if settings.budget_tokens and tokens >= settings.budget_tokens:
            how = f", {guessed} of them by the length of what was streamed" if guessed else ""
            raise _over("budget_tokens", f"{tokens} tokens are used{how}", settings.budget_tokens)
        if settings.budget_cost and spent.cost >= settings.budget_cost:
            raise _over("budget_cost", f"{spent.cost:g} is spent", settings.budget_cost)


def _cost(price: Price, usage: Mapping[str, Any]) -> float:
    told = (price.input * (usage.get("input_tokens") or 0), price.output * (usage.get("output_tokens") or 0))
    return sum(told) / _MILLION


def _over(code: str, what: str, limit: float) -> RunEnded:
    return RunEnded(
        Reason.BUDGET,
        code,
        f"{what}, and {code} is {limit:g}",
        remedy=f"raise {code} (0 is no limit), or ask for less",
    )
