"""Recording rules, which dashboards of fleets are built on, and alerts.

Recorded series are named ``level:metric:operations`` (Prometheus, "Recording rules"). The success
rate burns its budget by several windows at once (Google, The Site Reliability Workbook, chapter 5):
a fast burn is told in minutes, a slow one in hours, and both end when the trouble does.
"""

from __future__ import annotations

from typing import Any

GROUP = "session-metrics"
RUNBOOKS = "docs/runbooks"
BUDGET = 0.001
"""Creations that may fail: the objective is 99.9 %."""

_CREATIONS = "sqlalchemy_session_creations_total"
_SUCCESSES = f'{_CREATIONS}{{outcome="success"}}'
_POOL = "job, instance, db_client_connection_pool_name"
_FAULTS = "sqlalchemy_session_telemetry_faults_total"


def _success(window: str) -> str:
    return f"job_factory:sqlalchemy_session_creation_success:ratio_rate{window}"


SUCCESS_5M = _success("5m")
SUCCESS_OF_INSTANCE = "job_instance:sqlalchemy_session_creation_success:ratio_rate5m"
FILL = "job_instance_pool:db_client_connection_used:ratio"
WAIT_P95 = "job:db_client_connection_wait_time_seconds:p95_rate5m"
ERRORS = "job:sqlalchemy_session_errors:rate5m"
OPEN = "job:sqlalchemy_sessions:sum"
TIMEOUTS = "job:db_client_connection_timeouts:rate5m"
LEAKS = "job:sqlalchemy_session_leaks:rate5m"
CLOSED = "job:sqlalchemy_session_closed:rate5m"
# The mean of an hour, of which a service that had no error has no series: its hour is that of CLOSED.
_ERRORS_SUM = f"sum_over_time({ERRORS}[1h] offset 10m)"
_ERRORS_BEFORE = f"{_ERRORS_SUM} / count_over_time({CLOSED}[1h] offset 10m)"


def _success_expr(by: str, window: str) -> str:
    return (
        f"sum by ({by}) (rate({_SUCCESSES}[{window}])) "
        f'/ sum by ({by}) (rate({_CREATIONS}{{outcome=~"success|failure"}}[{window}]))'
    )


RECORDED = {
    **{
        _success(window): _success_expr("job, factory", window)
        for window in ("5m", "30m", "1h", "6h")
    },
    SUCCESS_OF_INSTANCE: _success_expr("job, instance", "5m"),
    FILL: f'sum by ({_POOL}) (db_client_connection_count{{db_client_connection_state="used"}}) '
    f"/ sum by ({_POOL}) (db_client_connection_max)",
    WAIT_P95: "histogram_quantile(0.95, sum by (job, le) "
    "(rate(db_client_connection_wait_time_seconds_bucket[5m])))",
    ERRORS: "sum by (job) (rate(sqlalchemy_session_errors_total[5m]))",
    OPEN: "sum by (job) (sqlalchemy_sessions)",
    TIMEOUTS: "sum by (job) (rate(db_client_connection_timeouts_total[5m]))",
    LEAKS: "sum by (job) (rate(sqlalchemy_session_leaks_total[5m]))",
    CLOSED: "sum by (job) (rate(sqlalchemy_session_duration_seconds_count[5m]))",
}


def _burns(factor: float, long: str, short: str) -> str:
    limit = f"{factor:g} * {BUDGET:g}"
    return f"(1 - {_success(long)}) > ({limit}) and (1 - {_success(short)}) > ({limit})"


def _alert(name: str, expr: str, severity: str, summary: str, *, wait: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {"alert": name, "expr": expr}
    if wait:
        made["for"] = wait
    made["labels"] = {"severity": severity}
    made["annotations"] = {"summary": summary, "runbook_url": f"{RUNBOOKS}/{name}.md"}
    return made


ALERTS = [
    _alert(
        "SessionCreationFailingFast",
        _burns(14.4, "1h", "5m"),
        "page",
        "Sessions of {{ $labels.factory }} in {{ $labels.job }} have no connection: the month's "
        "budget of failures is gone in two days at this rate.",
    ),
    _alert(
        "SessionCreationFailingSlowly",
        _burns(6, "6h", "30m"),
        "ticket",
        "Sessions of {{ $labels.factory }} in {{ $labels.job }} fail to be created now and then: "
        "the month's budget is gone in five days at this rate.",
    ),
    _alert(
        "ConnectionPoolNearLimit",
        f"{FILL} > 0.9",
        "ticket",
        "{{ $labels.db_client_connection_pool_name }} of {{ $labels.instance }} has been over 90 % "
        "in use for five minutes.",
        wait="5m",
    ),
    _alert(
        "ConnectionPoolTimeouts",
        # A single one is over before the wait is: it is an error for somebody, and wakes nobody.
        f"sum by ({_POOL}) (increase(db_client_connection_timeouts_total[5m])) > 0",
        "page",
        "Requests have given up waiting for {{ $labels.db_client_connection_pool_name }} of "
        "{{ $labels.instance }} for five minutes; its log names who holds the connections.",
        wait="5m",
    ),
    _alert(
        "ConnectionPoolNestedTimeouts",
        f"sum by ({_POOL}) (increase(sqlalchemy_pool_nested_timeouts_total[15m])) > 0",
        "ticket",
        "Requests of {{ $labels.instance }} wait for themselves: they gave up waiting for "
        "{{ $labels.db_client_connection_pool_name }} with a connection of their own in hand.",
    ),
    _alert(
        "ConnectionPoolsMultiply",
        # Workers are many pools and no fault: they come once, or one by one.
        f"sum by ({_POOL}) (max_over_time(sqlalchemy_pools[30m]) "
        "- min_over_time(sqlalchemy_pools[30m])) >= 10 "
        f"and sum by ({_POOL}) (changes(sqlalchemy_pools[30m])) >= 10",
        "ticket",
        "{{ $labels.instance }} makes pools for {{ $labels.db_client_connection_pool_name }} all "
        "the time: an engine for each request.",
    ),
    _alert(
        "SessionLeaks",
        "sum by (job, factory, reason) (increase(sqlalchemy_session_leaks_total[15m])) > 0",
        "ticket",
        "Sessions of {{ $labels.factory }} in {{ $labels.job }} leak ({{ $labels.reason }}); the "
        "log says where they were made.",
        wait="15m",
    ),
    _alert(
        "SessionsIdleInTransaction",
        'sum by (job, instance, factory) (sqlalchemy_sessions{state="idle"}) > 0',
        "ticket",
        "Sessions of {{ $labels.factory }} in {{ $labels.instance }} keep a transaction open and "
        "send nothing.",
        wait="5m",
    ),
    _alert(
        "SessionErrorSpike",
        # A service that had no error has no series of errors to be compared with.
        f"{ERRORS} / {CLOSED} > 0.05 and ({ERRORS} > 3 * {_ERRORS_BEFORE} "
        f"or {ERRORS} unless {_ERRORS_SUM})",
        "ticket",
        "{{ $labels.job }} has more than one error to twenty sessions: three times as many as in the "
        "last hour, or more.",
        wait="5m",
    ),
    _alert(
        "SessionTelemetryGone",
        # A counter: in multi-process mode, gauges go with the last worker that had a session.
        f"count by (job) (present_over_time({_SUCCESSES}[6h])) "
        f"unless count by (job) ({_SUCCESSES})",
        "ticket",
        "{{ $labels.job }} had session metrics in the last six hours and has none now.",
        wait="5m",
    ),
    _alert(
        "SessionCountersReset",
        # A deployment resets them once. Whichever worker answers shows less at every other scrape.
        f"max by (job, instance) (resets({_CREATIONS}[15m])) >= 5",
        "ticket",
        "The counters of {{ $labels.instance }} in {{ $labels.job }} go back again and again: one "
        "worker at random answers each scrape, or the process keeps restarting. No rate is right.",
    ),
    _alert(
        "SessionTelemetryFaults",
        # The series is new with the first fault: no increase tells of that one.
        f"sum by (job, component) (increase({_FAULTS}[1h])) > 0 "
        f"or sum by (job, component) ({_FAULTS} unless {_FAULTS} offset 1h) > 0",
        "ticket",
        "The instrumentation itself failed in {{ $labels.job }} ({{ $labels.component }}); the "
        "application is not touched, some of its numbers may be.",
    ),
]


def rules() -> dict[str, Any]:
    """The file of rules, as Prometheus takes it."""
    recorded = [{"record": name, "expr": expr} for name, expr in RECORDED.items()]
    return {
        "groups": [
            {"name": f"{GROUP}.recorded", "rules": recorded},
            {"name": f"{GROUP}.alerts", "rules": ALERTS},
        ]
    }
