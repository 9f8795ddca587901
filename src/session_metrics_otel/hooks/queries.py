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

    from sqlalchemy.engine.interfaces import ExecutionContext

KEPT = "_session_metrics_query"
"""Where a compiled statement keeps its ``Query``."""


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


def describe(context: ExecutionContext) -> Query:
    """The statement that ``context`` executes. Never raises."""
    compiled: Any = context.compiled
    try:
        if compiled is None:  # a text that goes to the driver as it is
            return _read(context.dialect, context.statement or "", "", "")
        found: Query | None = compiled.__dict__.get(KEPT)
        if found is None:
            found = compiled.__dict__[KEPT] = _query_of(compiled)
    except Exception as fault:  # noqa: BLE001 - never the statement's trouble
        caught("queries", fault)
        return UNKNOWN
    else:
        return found


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
