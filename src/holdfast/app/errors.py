"""Why a server cannot start."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from holdfast.app.startup import Startup


class StartError(Exception):
    """The server cannot start; the text says why and what to do.

    Attributes:
        report: The phases of the start, where it got as far as having some.
    """

    def __init__(self, text: str, report: Startup | None = None) -> None:
        """Say it."""
        super().__init__(text)
        self.report = report
