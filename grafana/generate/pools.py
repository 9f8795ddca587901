"""Pools and statements: how full, how long one waits, how slow the database is."""

from __future__ import annotations

from .board import INSTANCE, MEDIAN, MOST, NEARLY_ALL, POOL, RATE, Board, quantile, quantiles, rate
from .panel import AMBER, GREEN, RED, Panel, Query

_BY = "db_client_connection_pool_name"
_NAME = f"{{{{{_BY}}}}}"


def _sum(metric: str) -> str:
    return f"sum by ({_BY}) ({metric}{{{POOL}}})"


_SPREAD = (MEDIAN, MOST, NEARLY_ALL)
_OPERATION = "db_client_operation_duration_seconds"
_USED = f'sum by ({_BY}) (db_client_connection_count{{{POOL},db_client_connection_state="used"}})'

POOLS = Board(
    uid="session-metrics-pools",
    title="SQLAlchemy pools and statements",
    says="How full are the pools, how long does one wait, and how slow is the database?",
    variables=("job", "instance", "pool"),
    rows={
        "Pools": [
            Panel(
                "Fill against the limit",
                "Connections that are out, of the most that the pool opens. At 100 % requests wait. "
                "Look at Routes for who holds them; pools without a limit are not shown.",
                [Query(f"{_USED} / {_sum('db_client_connection_max')}", _NAME)],
                unit="percentunit",
                steps=[(GREEN, None), (AMBER, 0.8), (RED, 0.95)],
                high=1,
            ),
            Panel(
                "Connections by state",
                "Used are out of the pool, idle are kept open in it.",
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
                steps=[(GREEN, None), (RED, 1)],
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
                quiet=True,
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
                quiet=True,
                empty="no session inside another",
            ),
            Panel(
                "Wait for a connection",
                "Time to have a connection, opening one included. Growth here is felt by every "
                "request; compare with the time to open one.",
                quantiles("db_client_connection_wait_time_seconds", POOL, *_SPREAD),
                unit="s",
                width=6,
            ),
            Panel(
                "Connections held",
                "Time between checkout and return. A long tail is work held across something slow.",
                quantiles("db_client_connection_use_time_seconds", POOL, *_SPREAD),
                unit="s",
                width=6,
            ),
            Panel(
                "Time to open a connection",
                "Slow opening is the database's, the network's or TLS's.",
                quantiles("db_client_connection_create_time_seconds", POOL, *_SPREAD),
                unit="s",
            ),
            Panel(
                "Connections opened",
                "As many as requests is a pool that keeps none (NullPool), or one made per request.",
                [rate(_BY, "db_client_connection_create_time_seconds_count", POOL)],
                unit="cps",
            ),
            Panel(
                "Pools, invalidated and detached connections",
                "A growing number of pools is an engine made per request. Invalidations at once are "
                "a restarted database. Detached connections are under no limit.",
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
                "Statements answered each second; text() has no operation.",
                [rate("db_operation_name", f"{_OPERATION}_count", INSTANCE)],
                unit="cps",
            ),
            Panel(
                "Latency by operation, 95 %",
                "From sending a statement to its answer. One operation that climbs is a lock or a "
                "missing index; all of them, the database's load.",
                [quantile(0.95, _OPERATION, INSTANCE, "db_operation_name")],
                unit="s",
            ),
            Panel(
                "Slowest tables, 95 %",
                "The five tables whose statements take longest: where to look for an index.",
                [
                    Query(
                        "topk(5, histogram_quantile(0.95, sum by (le, db_collection_name) (rate("
                        "db_client_operation_duration_seconds_bucket"
                        f'{{{INSTANCE},db_collection_name!=""}}[{RATE}]))))',
                        "{{db_collection_name}}",
                    )
                ],
                unit="s",
            ),
            Panel(
                "Statements that failed",
                "By the driver's exception or SQLSTATE.",
                [rate("error_type", f"{_OPERATION}_count", f'{INSTANCE},error_type!=""')],
                unit="cps",
                quiet=True,
                empty="none failed",
            ),
            Panel(
                "Rows returned",
                "By drivers that say so at once (not SQLite). A long tail is a missing LIMIT.",
                quantiles("db_client_response_returned_rows", INSTANCE, *_SPREAD),
                width=16,
                quiet=True,
                empty="the driver does not say",
            ),
        ],
    },
)
