"""The first dashboard: are sessions being created, and what becomes of them?"""

from __future__ import annotations

from .board import FACTORY, MEDIAN, MOST, RATE, Board, chosen, quantile, quantiles, rate
from .panel import (
    AMBER,
    FELT,
    GREEN,
    NONE_IS_WELL,
    RED,
    SUCCESS,
    SUCCESS_DECIMALS,
    Panel,
    Query,
)


def _creations(by: str = "", window: str = RATE) -> str:
    """The success rate of creation: successes over successes and failures.

    Where there were neither there is none: NaN would be shown, and in red.
    """
    rates = f"rate(sqlalchemy_session_creations_total{{{FACTORY},outcome{{}}}}[{window}])"
    group = f" by ({by})" if by else ""
    success = rates.replace("{}", '="success"')
    tried = rates.replace("{}", '=~"success|failure"')
    return f"sum{group} ({success}) / (sum{group} ({tried}) > 0)"


# Factories of several services may have one name: most have the default's.
_EACH, _NAME = "job, factory", "{{job}} {{factory}}"
_DO = "See failures by error type, then the dashboard Pools and statements."

SESSIONS = Board(
    uid="session-metrics-sessions",
    title="SQLAlchemy sessions",
    says="Are sessions being created, what becomes of them, and which are left open?",
    empty="no session so far",
    variables=chosen("job", "instance", "factory"),
    rows={
        "Creation": [
            Panel(
                "Session creation success rate",
                "Of the sessions that asked for a first connection, how many had one, over the time "
                f"shown. Below 99.9 % users see errors. {_DO}",
                [Query(_creations(window="$__range"))],
                kind="stat",
                unit="percentunit",
                width=6,
                decimals=SUCCESS_DECIMALS,
                steps=SUCCESS,
                empty="no session asked for a connection",
            ),
            Panel(
                "Success rate over time, by factory",
                f"A dip is an outage of the database or an exhausted pool. {_DO}",
                [Query(_creations(_EACH), _NAME)],
                unit="percentunit",
                width=10,
                decimals=SUCCESS_DECIMALS,
                steps=SUCCESS,
                low=None,
                high=1,
                empty="no session asked for a connection",
            ),
            Panel(
                "Success rate by instance",
                "One instance below the others is its own trouble, its pool or its network: take it "
                "out of rotation and look there. All below is the database's.",
                [Query(_creations("instance"), "{{instance}}")],
                unit="percentunit",
                decimals=SUCCESS_DECIMALS,
                steps=SUCCESS,
                low=None,
                high=1,
                empty="no session asked for a connection",
            ),
            Panel(
                "Failed creations by error type",
                "TimeoutError is an exhausted pool: look who holds the connections. OperationalError "
                "is the database's refusal. Nothing here is what one wants.",
                [
                    Query(
                        "sum by (error_type) (rate(sqlalchemy_session_creations_total"
                        f'{{{FACTORY},outcome="failure"}}[{RATE}])) > 0',
                        "{{error_type}}",
                    )
                ],
                unit="cps",
                empty="no failures",
            ),
            Panel(
                "Creations by outcome",
                "Success, failure, and unused: closed having done nothing. Many unused are sessions "
                "opened for requests that need none: they cost nothing of the pool, but time.",
                [rate("outcome", "sqlalchemy_session_creations_total", FACTORY)],
                unit="cps",
                stacked=True,
            ),
            Panel(
                "Time to the first connection",
                "From a session's creation to its first connection; 10 s is 10 s or more. Growth is "
                "waiting for the pool or slow connecting (see Pools); work done before the first "
                "statement counts as well.",
                quantiles("sqlalchemy_session_creation_duration_seconds", FACTORY, MEDIAN, MOST),
                unit="s",
                steps=FELT,
            ),
        ],
        "Sessions": [
            Panel(
                "Open sessions by state",
                "What open sessions do. A growing active or idle band is sessions that are not given "
                "back: see the oldest, and leaks. Those in error may hold a connection until they "
                "are rolled back or closed: some line catches the exception and does neither.",
                [Query(f"sum by (state) (sqlalchemy_sessions{{{FACTORY}}})", "{{state}}")],
                stacked=True,
                width=12,
            ),
            Panel(
                "Oldest open session",
                "A line that only climbs is a session that is never closed: the watchdog's report "
                "says where it was made. Batch jobs may be long on purpose.",
                [
                    Query(
                        f"max by ({_EACH}) (sqlalchemy_session_oldest_age_seconds{{{FACTORY}}})",
                        _NAME,
                    )
                ],
                unit="s",
                width=6,
                steps=[(GREEN, None), (RED, 300)],
            ),
            Panel(
                "Most open at once",
                "Since each process started. At the pool's limit or above, requests wait at peak "
                "times: let fewer run at once, or a larger pool if the database has room.",
                [Query(f"max by ({_EACH}) (sqlalchemy_session_peak{{{FACTORY}}})", _NAME)],
                width=6,
            ),
            Panel(
                "Duration of sessions",
                "From creation to close. A second band that appears is work held across something "
                "slow: find out by what. The dots are exemplars: each opens the trace of a session in "
                "that bucket.",
                [rate("le", "sqlalchemy_session_duration_seconds_bucket", FACTORY)],
                kind="heatmap",
                unit="s",
                width=12,
                low=None,
            ),
            Panel(
                "Leaks by reason",
                "Sessions overdue, idle in their transaction, or collected unclosed while they held a "
                "connection. Anything lasting here empties the pool: the log names the line.",
                [
                    Query(
                        "sum by (reason) (increase(sqlalchemy_session_leaks_total"
                        f"{{{FACTORY}}}[{RATE}])) > 0",
                        "{{reason}}",
                    )
                ],
                width=12,
                steps=NONE_IS_WELL,
                empty="no leaks",
            ),
        ],
        "Work": [
            Panel(
                "Transactions by outcome",
                "Committed, rolled back, or closed with neither, as reading sessions are all day. A "
                "rise of rolled_back is errors, or requests given up: see errors by type below.",
                [rate("outcome", "sqlalchemy_session_transactions_total", FACTORY)],
                unit="cps",
                stacked=True,
            ),
            Panel(
                "Duration of transactions, 95 %",
                "Long transactions hold locks and connections. Look at the slowest outcome first: "
                "committed ones do too much at once or wait between; rolled_back ones wait for locks.",
                [
                    quantile(
                        0.95, "sqlalchemy_session_transaction_duration_seconds", FACTORY, "outcome"
                    )
                ],
                unit="s",
                steps=[(GREEN, None), (AMBER, 1), (RED, 30)],
                empty="no transaction so far",
            ),
            Panel(
                "Statements per session",
                "A 95 % line that climbs with the data is an N+1 query: turn repeated_statements on, "
                "and the span of the session names the statement.",
                quantiles("sqlalchemy_session_queries_per_session", FACTORY, MEDIAN, MOST),
                steps=[(GREEN, None), (AMBER, 20), (RED, 100)],
            ),
            Panel(
                "Errors by type",
                "Exceptions from the database inside sessions. IntegrityError is often the caller's; "
                "OperationalError is the database's or the network's; a type that is new since a "
                "deployment is the deployment's.",
                [rate("error_type", "sqlalchemy_session_errors_total", FACTORY)],
                unit="cps",
                width=6,
                empty="no errors",
            ),
            Panel(
                "Objects written",
                "ORM objects inserted, updated and deleted by flushes, each second. A rise with no "
                "more traffic is a loop that writes one by one: see whether a bulk statement does it.",
                [rate("operation", "sqlalchemy_session_entities_total", FACTORY)],
                unit="cps",
                width=6,
                empty="nothing was written by the ORM",
            ),
            Panel(
                "Optimistic lock failures",
                "Flushes refused as the row had changed meanwhile. A few are what version_id_col is "
                "for; many are the same rows wanted by all: read them later, or lock them.",
                [rate(_EACH, "sqlalchemy_session_optimistic_lock_failures_total", FACTORY)],
                unit="cps",
                width=6,
            ),
            Panel(
                "Sessions with repeated statements",
                "Sessions that sent one statement over and over: N+1 queries, where repeated_statements "
                "is on. The session's span names the statement: load it with selectinload or a join.",
                [rate(_EACH, "sqlalchemy_session_repeated_statements_total", FACTORY)],
                unit="cps",
                width=6,
                empty="none, or not looked for",
            ),
        ],
    },
)
