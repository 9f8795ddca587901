"""Statements' durations and rows, by OpenTelemetry's ``db.client.*`` metrics.

The series a statement belongs to is kept with the compiled statement, which SQLAlchemy caches and
reuses: so a statement costs one look-up and one measurement.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_metrics_otel import catalog
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.series import Bounded

from .queries import describe
from .servers import error_type

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import ExecutionContext

    from session_metrics_otel.series import Histogram, Labels

    from .servers import Attributes

KEPT = "_session_metrics_series"
"""Where a compiled statement keeps the series that it is measured in."""

MAX_SERIES = 500
"""Different pairs of operation and collection that are told apart; the rest is ``_OTHER``."""

MAX_DATABASES = 200
"""Different databases that are told apart, as pools are; the rest is ``_OTHER``."""

MAX_ERROR_TYPES = 32
"""Different ``error.type`` values; the rest is ``_OTHER``."""

# Their drivers know how many rows a statement has once these are fetched; Oracle's says 0 before.
_COUNT_AS_THEY_FETCH = frozenset({"sqlite", "oracle"})

_pairs = Bounded(MAX_SERIES, (catalog.OTHER, catalog.OTHER))
_DATABASE = ("db.namespace", "server.address", "server.port")
_databases: Bounded[Labels] = Bounded(MAX_DATABASES, (catalog.OTHER, "", ""))
_error_types = Bounded(MAX_ERROR_TYPES, catalog.OTHER)


class Series:
    """Where one statement is measured.

    Attributes:
        duration: Seconds that it took.
        rows: Rows that it returned, or None where the driver does not say.
    """

    __slots__ = ("_labels", "duration", "rows")

    def __init__(self, labels: Labels, *, counts_rows: bool) -> None:
        self._labels = labels
        self.duration = LEDGER.histogram(catalog.OPERATION_DURATION, *labels)
        self.rows: Histogram | None = (
            LEDGER.histogram(catalog.RETURNED_ROWS, *labels) if counts_rows else None
        )

    def failed(self, error: BaseException) -> Histogram:
        """Where the seconds are measured of one that ended in ``error``."""
        labels = (*self._labels[:-1], _error_types.admit(error_type(error)))
        return LEDGER.histogram(catalog.OPERATION_DURATION, *labels)


def series_of(context: Any, server: Attributes) -> Series:
    """The series of the statement that ``context`` executes on ``server``."""
    compiled = context.compiled
    found: Series | None = None if compiled is None else compiled.__dict__.get(KEPT)
    if found is None:
        found = _new_series(context, server)
        if compiled is not None:
            compiled.__dict__[KEPT] = found
    return found


def _new_series(context: ExecutionContext, server: Attributes) -> Series:
    query = describe(context)
    operation, collection = _pairs.admit((query.operation, query.collection))
    database = _databases.admit(tuple(str(server.get(name, "")) for name in _DATABASE))
    known = {
        "db.system.name": str(server["db.system.name"]),
        "db.operation.name": operation,
        "db.collection.name": collection,
        **dict(zip(_DATABASE, database, strict=True)),
    }
    labels = tuple(known.get(name, "") for name in catalog.OPERATION_DURATION.attributes)
    return Series(labels, counts_rows=context.dialect.name not in _COUNT_AS_THEY_FETCH)
