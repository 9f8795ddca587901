"""The fleet: many services and instances at a glance, worst first, from recorded series."""

from __future__ import annotations

from .board import JOB, Board
from .panel import AMBER, GREEN, RED, Panel, Query
from .rules import ERRORS, FILL, LEAKS, OPEN, SUCCESS_5M, TIMEOUTS, WAIT_P95

FLEET = Board(
    uid="session-metrics-fleet",
    title="SQLAlchemy fleet",
    says="Many services and instances at a glance, the worst first. Needs the recording rules.",
    variables=("job",),
    rows={
        "Worst first": [
            Panel(
                "Lowest creation success rates",
                "The ten services and factories whose sessions fail most. Open Sessions for one.",
                [Query(f"bottomk(10, {SUCCESS_5M}{{{JOB}}})", "{{job}} {{factory}}")],
                kind="stat",
                unit="percentunit",
                width=12,
                steps=[(RED, None), (AMBER, 0.99), (GREEN, 0.999)],
                low=None,
                empty="no session was created, or the recording rules are not loaded",
            ),
            Panel(
                "Fullest pools",
                "The ten fullest, by instance. Red ones have requests waiting or soon will.",
                [
                    Query(
                        f"topk(10, {FILL}{{{JOB}}})",
                        "{{job}} {{instance}} {{db_client_connection_pool_name}}",
                    )
                ],
                kind="stat",
                unit="percentunit",
                width=12,
                steps=[(GREEN, None), (AMBER, 0.8), (RED, 0.95)],
            ),
            Panel(
                "Longest waits for a connection, 95 %",
                "By service. What users wait before the database is even asked.",
                [Query(f"topk(10, {WAIT_P95}{{{JOB}}})", "{{job}}")],
                unit="s",
            ),
            Panel(
                "Most errors in sessions",
                "Each second, by service.",
                [Query(f"topk(10, {ERRORS}{{{JOB}}})", "{{job}}")],
                unit="cps",
            ),
            Panel(
                "Open sessions by service",
                "A service that only climbs leaks.",
                [Query(f"topk(10, {OPEN}{{{JOB}}})", "{{job}}")],
            ),
            Panel(
                "Pool time-outs",
                "Each second, by service: requests that had no connection.",
                [Query(f"topk(10, {TIMEOUTS}{{{JOB}}} > 0)", "{{job}}")],
                unit="cps",
                width=12,
                quiet=True,
                empty="no time-outs",
            ),
            Panel(
                "Leaks",
                "Each second, by service.",
                [Query(f"topk(10, {LEAKS}{{{JOB}}} > 0)", "{{job}}")],
                unit="cps",
                width=12,
                quiet=True,
                empty="no leaks",
            ),
        ],
    },
)
