"""The fleet: many services and instances at a glance, worst first, from recorded series alone."""

from __future__ import annotations

from .board import FACTORY_OF_JOB, INSTANCE, JOB, Board
from .panel import AMBER, FELT, GREEN, RED, SUCCESS, SUCCESS_DECIMALS, Panel, Query
from .rules import (
    ERRORS,
    FILL,
    LEAKS,
    OPEN,
    SUCCESS_5M,
    SUCCESS_OF_INSTANCE,
    TIMEOUTS,
    WAIT_P95,
)

_NO_SESSION = "no session was created, or the recording rules are not loaded"

FLEET = Board(
    uid="session-metrics-fleet",
    title="SQLAlchemy fleet",
    says="Many services and instances at a glance, the worst first. Needs the recording rules.",
    empty="no data: are the recording rules loaded?",
    variables={
        "job": f"label_values({OPEN}, job)",
        "instance": f"label_values({SUCCESS_OF_INSTANCE}{{{JOB}}}, instance)",
        "factory": f"label_values({SUCCESS_5M}{{{JOB}}}, factory)",
    },
    rows={
        "Worst first": [
            Panel(
                "Lowest creation success rates, by service",
                "The ten services and factories whose sessions fail most, over five minutes. Below "
                "99.9 % users see errors: open Sessions for that service.",
                # What is NaN had no session: there is no rate to be low.
                [
                    Query(
                        f"bottomk(10, {SUCCESS_5M}{{{FACTORY_OF_JOB}}} >= 0)", "{{job}} {{factory}}"
                    )
                ],
                kind="stat",
                unit="percentunit",
                decimals=SUCCESS_DECIMALS,
                steps=SUCCESS,
                low=None,
                empty=_NO_SESSION,
            ),
            Panel(
                "Lowest creation success rates, by instance",
                "The ten instances whose sessions fail most, over five minutes. One of a service far "
                "below its others is its own trouble, its network or its pool: take it out of "
                "rotation. All of them alike is the database's.",
                [
                    Query(
                        f"bottomk(10, {SUCCESS_OF_INSTANCE}{{{INSTANCE}}} >= 0)",
                        "{{job}} {{instance}}",
                    )
                ],
                kind="stat",
                unit="percentunit",
                decimals=SUCCESS_DECIMALS,
                steps=SUCCESS,
                low=None,
                empty=_NO_SESSION,
            ),
            Panel(
                "Fullest pools",
                "The ten fullest, by instance. Red ones have requests waiting or soon will: open Pools "
                "for that instance, and Routes for who holds the connections.",
                [
                    Query(
                        f"topk(10, {FILL}{{{INSTANCE}}})",
                        "{{job}} {{instance}} {{db_client_connection_pool_name}}",
                    )
                ],
                kind="stat",
                unit="percentunit",
                steps=[(GREEN, None), (AMBER, 0.8), (RED, 0.95)],
                empty="no pool with a limit, or the recording rules are not loaded",
            ),
            Panel(
                "Longest waits for a connection, 95 %",
                "What users wait before the database is even asked, by service; 10 s is 10 s or more, "
                "and those that gave up are in Pool time-outs alone. Tenths of a second are a pool at "
                "its limit or slow connecting: open Pools for that service.",
                [Query(f"topk(10, {WAIT_P95}{{{JOB}}} >= 0)", "{{job}}")],
                unit="s",
                steps=FELT,
            ),
            Panel(
                "Most errors in sessions",
                "Each second, by service. Compare a line with itself: a jump after a deployment, or of "
                "many services at once, wants a look at Sessions, Errors by type.",
                [Query(f"topk(10, {ERRORS}{{{JOB}}})", "{{job}}")],
                unit="cps",
                empty="no error so far, or the recording rules are not loaded",
            ),
            Panel(
                "Open sessions by service",
                "The ten services with most. One that only climbs, with no more traffic, leaks: see "
                "Leaks here, and Oldest open session in Sessions.",
                [Query(f"topk(10, {OPEN}{{{JOB}}})", "{{job}}")],
            ),
            Panel(
                "Pool time-outs",
                "Each second, by service: requests that had no connection, an error for somebody each. "
                "The log of the instance names who held the pool; open Pools for which instance.",
                [Query(f"topk(10, {TIMEOUTS}{{{JOB}}} > 0)", "{{job}}")],
                unit="cps",
                width=12,
                empty="no time-outs",
            ),
            Panel(
                "Leaks",
                "Each second, by service: sessions overdue, idle in their transaction, or dropped "
                "unclosed. Anything that lasts empties a pool: the log names the line of code.",
                [Query(f"topk(10, {LEAKS}{{{JOB}}} > 0)", "{{job}}")],
                unit="cps",
                width=12,
                empty="no leaks",
            ),
        ],
    },
)
