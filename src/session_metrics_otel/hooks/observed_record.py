"""The record of a session that hooks watch.

Its session's doings are noted as readings of the monotonic clock, each in as few steps as there can
be. Dates, and whatever else follows from what is noted, are worked out when somebody asks.
"""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from time import perf_counter, time_ns
from typing import TYPE_CHECKING, Any

from session_metrics_otel.catalog import SessionState
from session_metrics_otel.session_metrics import DatabaseSessionMetrics

if TYPE_CHECKING:
    from types import CodeType

    from opentelemetry.context import Context
    from opentelemetry.util.types import AttributeValue

    from session_metrics_otel.tracing import SpanMirror

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_CLOSED = SessionState.CLOSED


class ObservedSessionMetrics(DatabaseSessionMetrics):
    """A record that hooks made, and keep; without a call of its constructor.

    Attributes:
        route: The route of the request it serves, or "".
        context: The OpenTelemetry context it was created in; None where it is not to be traced.
        born_at: Where in the application its session was made.
        transaction_began: ``time.perf_counter()`` at the beginning of its transaction, if it is in
            one.
        statement_ended: The same at the end of its last statement; None while one is executed.
        last_statement: What it sent last: a compiled statement, or text.
        statement_spans: What its statements are traced with; None where they are not.
        repeats: Its count of statements of one shape; None where that is not asked for.
    """

    __slots__ = (
        "_created_ns",
        "_dates",
        "born_at",
        "context",
        "last_statement",
        "repeats",
        "route",
        "statement_ended",
        "statement_spans",
        "transaction_began",
    )

    _started: float
    _created_ns: int | None
    _dates: dict[str, datetime | None] | None
    born_at: tuple[CodeType, int] | None
    context: Context | None
    last_statement: Any
    repeats: Any
    route: str
    statement_ended: float | None
    statement_spans: Any
    transaction_began: float | None

    def __new__(cls, *args: Any, **fields: Any) -> Any:
        """Constructed, as by ``dataclasses.replace``, it is a plain record: no hook keeps it."""
        return DatabaseSessionMetrics(*args, **fields)

    def _date(self, name: str) -> datetime | None:
        return self._dates.get(name) if self._dates is not None else None

    def _set_date(self, name: str, value: datetime | None) -> None:
        self._dates = {**(self._dates or {}), name: value}

    @property
    def created_at(self) -> datetime:
        """When it was created, by the wall clock as it goes when this is first asked."""
        said = self._date("created_at")
        return self._at(self._started) if said is None else said

    @created_at.setter
    def created_at(self, value: datetime) -> None:
        self._set_date("created_at", value)

    def _at(self, reading: float) -> datetime:
        """The date of a reading of the monotonic clock, whatever ``created_at`` was set to."""
        nanoseconds = self.created_ns() + int((reading - self._started) * 1e9)
        return _EPOCH + timedelta(microseconds=nanoseconds // 1000)

    def created_ns(self) -> int:
        """The same in nanoseconds since the epoch, as its span begins."""
        if self._created_ns is None:
            self._created_ns = time_ns() - int((perf_counter() - self._started) * 1e9)
        return self._created_ns

    def ended_ns(self) -> int:
        """Now, as far from its creation as the monotonic clock says: the wall clock may jump."""
        return self.created_ns() + int((perf_counter() - self._started) * 1e9)

    @property
    def last_activity_at(self) -> datetime:
        """When it was created, last had an answer from the database, was changed or was closed."""
        closed = self.closed_at
        if closed is not None:
            return closed
        last = self.statement_ended
        if last is None:  # it waits for an answer just now, or has asked for nothing yet
            last = self._started if self.transaction_began is None else perf_counter()
        answered = self._at(last)
        said = self._date("last_activity_at")
        if isinstance(said, datetime) and said.tzinfo is not None:
            return max(answered, said)
        return said or answered  # set to something else, such as a string, it stays that

    @last_activity_at.setter
    def last_activity_at(self, value: datetime) -> None:
        self._set_date("last_activity_at", value)

    @property
    def closed_at(self) -> datetime | None:
        """When it was closed; None before."""
        said = self._date("closed_at")
        if said is None and self._stage.state is _CLOSED:
            return self._at(self._started + self.total_time_ms / 1000)
        return said

    @closed_at.setter
    def closed_at(self, value: datetime | None) -> None:
        self._set_date("closed_at", value)

    def _date_closing(self) -> None:
        """Nothing: it follows from ``total_time_ms``."""

    def idle_seconds(self) -> float:
        """Seconds since its last statement ended, while it holds a connection; else 0."""
        if self.transaction_began is None or self.statement_ended is None:
            return 0.0
        return perf_counter() - self.statement_ended

    def mirror_on(self, mirror: SpanMirror | None, statement_spans: Any) -> None:
        """Mirror onto this span from here on.

        Args:
            mirror: The span; None where it is not recorded.
            statement_spans: What the hooks trace its statements with; None where they do not.
        """
        self._mirror = mirror
        self.statement_spans = statement_spans

    def span_attributes(self) -> dict[str, AttributeValue]:
        """The record as span attributes, and the statement that it sent too often."""
        attributes = super().span_attributes()
        if self.repeats is not None and self.repeats.summary:
            attributes["sqlalchemy.session.repeated_statement"] = self.repeats.summary
            attributes["sqlalchemy.session.repeated_statement.count"] = self.repeats.count
        return attributes

    def flushed(self, *, inserted: int, updated: int, deleted: int) -> None:
        """Count one flush and the ORM objects it wrote."""
        factory = self._stage.factory
        factory.flushes.hit()
        for operation, n in (("insert", inserted), ("update", updated), ("delete", deleted)):
            if n:
                factory.entities(operation).add(n)

    def lost_optimistic_lock(self, error: BaseException) -> None:
        """Count a flush that was refused because a row had been changed by someone else."""
        self._stage.factory.optimistic_lock_failures.hit()
        self.record_error(error)

    def ended_transaction(self, outcome: str) -> None:
        """Count the transaction that began at ``transaction_began``; it ended with ``outcome``."""
        began, self.transaction_began = self.transaction_began, None
        hit, duration = self._stage.factory.transaction_ends[outcome]
        hit()
        self._transactions += 1
        if began is not None:
            self.observe(duration, perf_counter() - began)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is a plain record: no hook keeps it."""
        make, (_, *rest) = super().__reduce__()
        return make, (DatabaseSessionMetrics, *rest)
