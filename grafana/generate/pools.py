"""Pools and statements: how full, how long one waits, how slow the database is."""

from __future__ import annotations

from .board import (
    INSTANCE,
    MEDIAN,
    MOST,
    NEARLY_ALL,
    POOL,
    RATE,
    Board,
    chosen,
    quantile,
    quantiles,
    rate,
)
from .panel import AMBER, FELT, GREEN, NONE_IS_WELL, RED, Panel, Query

_BY = "db_client_connection_pool_name"
_NAME = f"{{{{{_BY}}}}}"


def _sum(metric: str) -> str:
    return f"sum by ({_BY}) ({metric}{{{POOL}}})"


def _with_text(query: Query) -> Query:
    """The same by operation, with a name for what has none: a line is else called "Value"."""
    label = "db_operation_name"
    return Query(f'label_replace({query.expr}, "{label}", "text()", "{label}", "")', query.legend)


_SPREAD = (MEDIAN, MOST, NEARLY_ALL)
_OPERATION = "db_client_operation_duration_seconds"
_EACH = f"sum by (job, instance, {_BY})"
_FILL = (
    f'{_EACH} (db_client_connection_count{{{POOL},db_client_connection_state="used"}}) '
    f"/ {_EACH} (db_client_connection_max{{{POOL}}})"
)

POOLS = Board(
    uid="session-metrics-pools",
    title="SQLAlchemy pools and statements",
    says="How full are the pools, how long does one wait, and how slow is the database?",
    empty="no pool is observed so far",
    variables=chosen("job", "instance", "pool"),
    rows={
        "Pools": [
            Panel(
                "Fill against the limit, in the fullest instance",
                "Connections that are out, of the most that the pool opens, where that is most: Fleet "
                "says in which instance. At 100 % requests wait. Look at Routes for who holds them; "
                "pools without a limit are not shown.",
                # One instance that is full is not helped by the others: no sum over them.
                [Query(f"max by ({_BY}) ({_FILL})", _NAME)],
                unit="percentunit",
                steps=[(GREEN, None), (AMBER, 0.8), (RED, 0.95)],
                high=1,
                empty="no pool with a limit so far",
            ),
            Panel(
                "Connections by state",
                "Used are out of the pool, idle are kept open in it. Used ones that stay when traffic "
                "goes are not given back: see leaks in Sessions. Idle ones of all instances take up "
                "the database's max_connections too: keep fewer (pool_size) where they add up.",
                [
                    Query(
                        "sum by (db_client_connection_state) "
                        f"(db_client_connection_count{{{POOL}}})",
                        "{{db_client_connection_state}}",
                    )
                ],
                stacked=True,
            ),
            Panel(
                "Requests waiting",
                "Requests for a connection that wait for one now. Above 0 for long is an exhausted "
                "pool: the log's report names who holds the connections.",
                [Query(_sum("db_client_connection_pending_requests"), _NAME)],
                steps=NONE_IS_WELL,
            ),
            Panel(
                "Time-outs",
                "Requests for a connection that gave up. Each was an error for somebody; the report "
                "in the log and on the live page names the holders.",
                [
                    Query(
                        f"sum by ({_BY}) (increase(db_client_connection_timeouts_total"
                        f"{{{POOL}}}[{RATE}])) > 0",
                        _NAME,
                    )
                ],
                width=6,
                steps=NONE_IS_WELL,
                empty="no time-outs",
            ),
            Panel(
                "Time-outs of nested sessions",
                "Those of a request that held a connection already: it waits for itself. Any at all "
                "is a session opened inside another; the report names the line. Pass the session on.",
                [
                    Query(
                        f"sum by ({_BY}) (increase(sqlalchemy_pool_nested_timeouts_total"
                        f"{{{POOL}}}[{RATE}])) > 0",
                        _NAME,
                    )
                ],
                width=6,
                steps=NONE_IS_WELL,
                empty="no session inside another",
            ),
            Panel(
                "Wait for a connection",
                "Time to have a connection, opening one included; 10 s is 10 s or more, and those that "
                "gave up are in Time-outs alone. Growth here is felt by every request. As long as the "
                "time to open one: connections are not kept. Longer: the pool is full, see who holds "
                "it in Routes.",
                quantiles("db_client_connection_wait_time_seconds", POOL, *_SPREAD),
                unit="s",
                width=6,
                steps=FELT,
            ),
            Panel(
                "Connections held",
                "Time between checkout and return. A long tail is work held across something slow: "
                "Routes says whose. Past 30 s, others time out by SQLAlchemy's default.",
                quantiles("db_client_connection_use_time_seconds", POOL, *_SPREAD),
                unit="s",
                width=6,
                steps=[(GREEN, None), (AMBER, 1), (RED, 30)],
            ),
            Panel(
                "Time to open a connection",
                "Slow opening is the database's, the network's or TLS's. It is waited for by whoever "
                "finds no idle connection: keep more of them open (pool_size), or a proxy nearby.",
                quantiles("db_client_connection_create_time_seconds", POOL, *_SPREAD),
                unit="s",
                steps=FELT,
            ),
            Panel(
                "Connections opened",
                "Each second. As many as requests is a pool that keeps none (NullPool), or an engine "
                "made per request: make one engine when the process starts. Bursts are overflow: a "
                "pool_size that is too small for the usual load.",
                [rate(_BY, "db_client_connection_create_time_seconds_count", POOL)],
                unit="cps",
            ),
            Panel(
                "Pools, invalidated and detached connections",
                "A growing number of pools is an engine made per request: the log has the line that "
                "makes it. Many invalidations at once are a restarted database; a few all the time, "
                "connections cut between: set pool_recycle. Detached connections are under no limit: "
                "any that stay are to be closed by who detached them.",
                [
                    Query(_sum("sqlalchemy_pools"), f"pools, {_NAME}"),
                    Query(
                        f"sum by ({_BY}) (increase(sqlalchemy_pool_invalidations_total"
                        f"{{{POOL}}}[{RATE}]))",
                        f"invalidated, {_NAME}",
                    ),
                    Query(_sum("sqlalchemy_pool_detached"), f"detached, {_NAME}"),
                ],
            ),
        ],
        "Statements": [
            Panel(
                "Statements by operation",
                "Statements answered each second, those of all pools; the operation of text() is not "
                "known. A rise with no more sessions is more statements for each: see Statements per "
                "session in Sessions.",
                [_with_text(rate("db_operation_name", f"{_OPERATION}_count", INSTANCE))],
                unit="cps",
                empty="no statement so far",
            ),
            Panel(
                "Latency by operation, 95 %",
                "From sending a statement to its answer; 10 s is 10 s or more. One operation that "
                "climbs is a lock or a missing index; all of them, the database's load.",
                [_with_text(quantile(0.95, _OPERATION, INSTANCE, "db_operation_name"))],
                unit="s",
                steps=FELT,
                empty="no statement so far",
            ),
            Panel(
                "Slowest tables, 95 %",
                "The five tables whose statements take longest. One that leaves the others behind "
                "lacks an index or is locked: take a statement from its traces and explain it.",
                [
                    Query(
                        "topk(5, histogram_quantile(0.95, sum by (le, db_collection_name) (rate("
                        "db_client_operation_duration_seconds_bucket"
                        f'{{{INSTANCE},db_collection_name!=""}}[{RATE}]))))',
                        "{{db_collection_name}}",
                    )
                ],
                unit="s",
                steps=FELT,
                empty="no statement of one table so far",
            ),
            Panel(
                "Statements that failed",
                "By the driver's exception or SQLSTATE: none is what one wants. In PostgreSQL 40001 "
                "and 40P01 are transactions in each other's way (try again, write in one order), "
                "57014 is a statement cancelled, 08... a connection lost.",
                [rate("error_type", f"{_OPERATION}_count", f'{INSTANCE},error_type!=""')],
                unit="cps",
                empty="none failed",
            ),
            Panel(
                "Rows returned",
                "By drivers that say so at once (not SQLite). A long tail, or a 99 % that grows with "
                "the data, is a missing LIMIT: page it, or stream with yield_per.",
                quantiles("db_client_response_returned_rows", INSTANCE, *_SPREAD),
                width=16,
                empty="the driver does not say",
            ),
        ],
    },
)
