"""What each attribute of metrics and spans says, as data: the reference is made from it."""

from __future__ import annotations

from .catalog import OPERATION_DURATION

METRIC_ATTRIBUTES: dict[str, str] = {
    "factory": "The name that `instrument(name=...)` gave: one per sessionmaker.",
    "state": "What the session is doing: any of its states but `closed`.",
    "from_state": "The state that was left.",
    "to_state": "The state that was entered.",
    "outcome": "Of a creation: `success`, `failure`, `unused`. Of a transaction: `committed`, "
    "`rolled_back`, `closed`, `unspecified`.",
    "reason": "Why a session is said to leak: `overdue`, `idle_in_transaction`, "
    "`garbage_collected`.",
    "operation": "What a flush did with an object: `insert`, `update`, `delete`.",
    "error.type": "Of a session: the exception's class, at most 32 of them per factory, then "
    "`_OTHER`. Of a statement: the driver's code (SQLSTATE), or its exception's class.",
    "db.client.connection.pool.name": "The engine's `pool_logging_name`, or "
    "`server.address:server.port/db.namespace`.",
    "db.client.connection.state": "`used` (checked out) or `idle`.",
    "http.route": "The template of the route that the session's request matched, never the path.",
    "db.system.name": "The database, as the conventions call it: `postgresql`, `mysql`, `sqlite`.",
    "db.namespace": "The database's name, from the engine's URL.",
    "db.operation.name": "What kind of statement SQLAlchemy built: `SELECT`, `INSERT`. Absent for "
    "`text()`.",
    "db.collection.name": "The table, if the statement has exactly one. Absent for `text()`.",
    "server.address": "The host, from the engine's URL.",
    "server.port": "The port, if the engine's URL has one.",
    "name": "The name that `SystemSessionMetrics(name=...)` was given.",
    "component": "The part of this package that the fault was in.",
}
"""Those of metrics, and the values that they take."""

SPAN_ATTRIBUTES: dict[str, str] = {
    "sqlalchemy.session.id": "The session's id, which is unique.",
    "sqlalchemy.session.request_id": "The id of the request that it served, if one was bound.",
    "sqlalchemy.session.factory": METRIC_ATTRIBUTES["factory"],
    "sqlalchemy.session.state": "The state at the end of the span.",
    "sqlalchemy.session.query_count": "Statements sent, failed ones too.",
    "sqlalchemy.session.transaction_count": "Transactions ended.",
    "sqlalchemy.session.error_count": "Errors recorded.",
    "sqlalchemy.session.last_error": "The first line of the last error.",
    "sqlalchemy.session.total_time_ms": "Milliseconds from creation to close.",
    "sqlalchemy.session.leak": "Why the session leaked, if it did.",
    "sqlalchemy.session.repeated_statement": "The statement that was sent over and over.",
    "sqlalchemy.session.repeated_statement.count": "How often it was sent.",
    "user.id": 'The user\'s id, with `user_id="plain"`.',
    "user.hash": 'Its SHA-256 in hexadecimal, with `user_id="hashed"`.',
    "db.query.summary": "Operations and tables, `SELECT orders items`; the name of the span too.",
    "db.query.text": "The statement with `?` for every literal, and never a parameter.",
    "db.operation.batch.size": "The number of parameter sets, if there are two or more.",
    "db.response.status_code": "The driver's SQLSTATE, or MySQL's or Oracle's error number.",
    **{name: METRIC_ATTRIBUTES[name] for name in OPERATION_DURATION.attributes},
    # On a metric it may be that of a session; on a span it is that of a statement.
    "error.type": "The status code, or else the class of the driver's exception.",
}
"""Those of spans."""
