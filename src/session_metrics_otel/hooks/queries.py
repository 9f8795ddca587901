"""What a statement is: its operation, its collection, its summary, its text.

Worked out once for each compiled statement and kept with it: SQLAlchemy caches and reuses these.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy.sql.ddl import DDL, ExecutableDDLElement
from sqlalchemy.sql.dml import UpdateBase
from sqlalchemy.sql.elements import (
    ReleaseSavepointClause,
    RollbackToSavepointClause,
    SavepointClause,
    TextClause,
)
from sqlalchemy.sql.selectable import (
    AliasedReturnsRows,
    CompoundSelect,
    Join,
    Select,
    SelectStatementGrouping,
    TableClause,
    TextualSelect,
)

from session_metrics_otel.faults import caught

from .query_text import TEXT_LIMIT, sanitised, summary_of

if TYPE_CHECKING:
    from collections.abc import Iterator

KEPT = "_session_metrics_query"
"""Where a compiled statement keeps its ``Query``."""

KEPT_BATCH = "_session_metrics_batch"
"""Where it keeps the one of a batch: of executing it with several sets of parameters."""


class Query(NamedTuple):
    """A statement, in the terms of OpenTelemetry's database conventions; "" is not known.

    Attributes:
        operation: ``db.operation.name``. Known from how SQLAlchemy made the statement, never from
            its text: so not of ``text()``.
        collection: ``db.collection.name``: the one table it is about; not where it is about more.
        summary: ``db.query.summary``: ``SELECT orders items``.
        text: ``db.query.text``: without literals, comments and bound values.
    """

    operation: str
    collection: str
    summary: str
    text: str


_SAVEPOINTS = (SavepointClause, ReleaseSavepointClause, RollbackToSavepointClause)

UNKNOWN = Query("", "", "", "")


def batch_size(context: Any) -> int:
    """``db.operation.batch.size``: sets of parameters; 0 where there is but one, which is none."""
    if not context.executemany:
        return 0
    size = len(context.parameters)
    return size if size > 1 else 0


def describe(context: Any) -> Query:
    """The statement that SQLAlchemy's ``ExecutionContext`` executes. Never raises.

    One that is sent with several sets of parameters is a batch: ``BATCH INSERT orders``.
    """
    compiled = context.compiled
    try:
        if compiled is None:  # a text that goes to the driver as it is
            return _read(context.dialect, context.statement or "", "", "")
        kept = KEPT_BATCH if context.executemany and len(context.parameters) > 1 else KEPT
        found: Query | None = compiled.__dict__.get(kept)
        if found is None:
            query = _query_of(compiled)
            found = compiled.__dict__[kept] = query if kept is KEPT else _batch_of(query)
    except Exception as fault:  # noqa: BLE001 - never the statement's trouble
        caught("queries", fault)
        return UNKNOWN
    else:
        return found


def _batch_of(query: Query) -> Query:
    operation = f"BATCH {query.operation}" if query.operation else ""
    return query._replace(operation=operation, summary=f"BATCH {query.summary}".rstrip())


def summary_of_sent(sent: Any) -> str:
    """The summary of ``sent``: a compiled statement, or the text of one that was not compiled."""
    try:
        if isinstance(sent, str):
            return summary_of(sanitised(sent[:TEXT_LIMIT], '"'))
        if sent is None:
            return ""
        found: Query | None = sent.__dict__.get(KEPT)
        return (found or _query_of(sent)).summary
    except Exception as fault:  # noqa: BLE001 - the report is worth more than this line of it
        caught("queries", fault)
        return ""


def _query_of(compiled: Any) -> Query:
    statement = compiled.statement
    if isinstance(statement, (TextClause, TextualSelect, DDL)):
        return _read(compiled.dialect, compiled.string, "", "")
    read = _read(compiled.dialect, compiled.string, "", _collection_of(statement))
    return read._replace(operation=_operation_of(statement, read.summary))


def _read(dialect: Any, text: str, operation: str, collection: str) -> Query:
    text = sanitised(text[:TEXT_LIMIT], dialect.identifier_preparer.initial_quote)
    return Query(operation, collection, summary_of(text), text)


def _operation_of(statement: Any, summary: str) -> str:
    if isinstance(statement, UpdateBase):
        return statement.__visit_name__.upper()
    if isinstance(statement, (Select, CompoundSelect, SelectStatementGrouping)):
        return "SELECT"
    if isinstance(statement, ExecutableDDLElement):  # SQLAlchemy's own words: CREATE TABLE
        return " ".join(summary.split(" ", 2)[:2])
    if isinstance(statement, _SAVEPOINTS):
        return summary
    return ""


def _collection_of(statement: Any) -> str:
    if isinstance(statement, UpdateBase):
        tables = set(_tables(statement.table))
    elif isinstance(statement, ExecutableDDLElement):
        element = getattr(statement, "element", None)
        tables = set(_tables(getattr(element, "table", element)))
    else:
        tables = set(_tables(statement))
    return tables.pop() if len(tables) == 1 else ""


def _tables(clause: Any) -> Iterator[str]:
    """The names of the tables that rows of ``clause`` come from."""
    if isinstance(clause, TableClause):
        yield clause.fullname
    elif isinstance(clause, Join):
        yield from _tables(clause.left)
        yield from _tables(clause.right)
    elif isinstance(clause, Select):
        for source in clause.get_final_froms():
            yield from _tables(source)
    elif isinstance(clause, CompoundSelect):
        for select in clause.selects:
            yield from _tables(select)
    elif isinstance(clause, (AliasedReturnsRows, SelectStatementGrouping)):
        yield from _tables(clause.element)
