"""Statements sent over and over by one session: the N+1 query."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_metrics_otel import catalog
from session_metrics_otel.ledger import LEDGER

from .queries import describe

if TYPE_CHECKING:
    from .observed_record import ObservedSessionMetrics


MAX_SHAPES = 1000
"""Different statements of one session that are looked for again; later ones are not: their texts
would pile up in a session that lives long and writes values into them."""


class Repeats:
    """How often one session sent each of its statements, told apart by their shape.

    Attributes:
        summary: The summary of the statement that was sent most often past the limit, or "".
        count: How often it was.
    """

    __slots__ = ("_counts", "_limit", "count", "summary")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._counts: dict[str, int] = {}
        self.summary = ""
        self.count = 0

    def sent(self, context: Any, record: ObservedSessionMetrics) -> None:
        """Count the statement that ``context`` sends; the session, where it passes the limit."""
        # Not the compiled statement itself: one that cannot be cached is compiled anew each time.
        shape = context.compiled.string if context.compiled else context.statement
        times = self._counts.get(shape, 0) + 1
        if times > 1 or len(self._counts) < MAX_SHAPES:
            self._counts[shape] = times
        if times > self._limit and times > self.count:
            if not self.summary:
                LEDGER.tally(catalog.SESSION_REPEATED_STATEMENTS, record.factory).hit()
            self.summary = describe(context).summary or "unknown"
            self.count = times
