"""Real outages, reproduced: the log, /metrics, the alerts and the live page name who is to blame.

Every incident runs broken and mended at once, with one Prometheus that scrapes them all by the
rules as users load them, except that no alert waits before it fires.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from sqlalchemy import make_url

from servers.incident_process import Incident, incident_running, rows_under
from servers.pgbouncer_server import pgbouncer_running
from servers.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.conftest import StartPrometheus
    from servers.postgres_server import Postgres
    from servers.prometheus_server import Prometheus

RULES = Path(__file__).parent.parent.parent / "grafana" / "rules" / "session-metrics.yaml"
SECONDS = 600  # of traffic: more than the tests take on any machine, which then end it


class Expected(NamedTuple):
    """What is said first of an incident, and the alerts that fire."""

    route: str
    state: str
    words: tuple[str, ...]
    alerts: frozenset[str]


IDLE, TIMEOUTS = "SessionsIdleInTransaction", "ConnectionPoolTimeouts"
NEAR_LIMIT, FAILING = "ConnectionPoolNearLimit", "SessionCreationFailingFast"
NESTED, MULTIPLY = "ConnectionPoolNestedTimeouts", "ConnectionPoolsMultiply"
INCIDENTS = {
    "dependency_without_finally": Expected(
        "/orders/{order_id}", "idle", ("leaks (idle_in_transaction)", "made at {culprit}broken"),
        frozenset({IDLE, TIMEOUTS}),
    ),
    "cancelled_in_rollback": Expected(
        "/orders/{order_id}/follow", "idle",
        ("leaks (idle_in_transaction)", "made at {culprit}follow"),
        frozenset({IDLE, NEAR_LIMIT}),
    ),
    "second_connection": Expected(
        "/orders/{order_id}/bill", "idle",
        ("waits for a connection", "in a session made at {culprit}price", "holds 1 already"),
        frozenset({IDLE, TIMEOUTS, NESTED}),
    ),
    "held_across_slow_call": Expected(
        "/orders/{order_id}/ship", "idle",
        ("leaks (idle_in_transaction)", "connection taken at {culprit}ship"),
        frozenset({IDLE, TIMEOUTS}),
    ),
    "null_pool": Expected(
        "/orders/{order_id}/ship", "idle",
        ("leaks (idle_in_transaction)", "connection taken at {culprit}ship"),
        frozenset({IDLE, FAILING}),
    ),
    "engine_per_request": Expected(
        "/orders/{order_id}", "10 pools", ("where one engine would do", "made at {culprit}broken"),
        frozenset({MULTIPLY}),
    ),
}  # fmt: skip
LEFT = {"cancelled_in_rollback": {"SessionErrorSpike"}}
ON_POSTGRESQL = {"cancelled_in_rollback": "asyncpg", "null_pool": "psycopg"}
PROXY = 10  # connections of the PgBouncer that null_pool is behind
CANCELLED_POOL = 15  # SQLAlchemy's default: 5 connections, and 10 more


def database_for(postgres: Postgres, name: str, how: str, servers: ExitStack) -> str:
    """The URL of a database of its own, where the program needs PostgreSQL."""
    if name not in ON_POSTGRESQL:
        return ""
    own = f"{name}_{how}"
    postgres.execute(f"DROP DATABASE IF EXISTS {own} WITH (FORCE)", database="postgres")
    postgres.execute(f"CREATE DATABASE {own}", database="postgres")
    url = make_url(postgres.url(ON_POSTGRESQL[name])).set(database=own)
    if name == "null_pool":
        proxy = pgbouncer_running(postgres, own, connections=PROXY)
        url = url.set(port=servers.enter_context(proxy))
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, postgres_cluster: Postgres
) -> Iterator[dict[tuple[str, str], Incident]]:
    folder = tmp_path_factory.mktemp("incidents")
    postgres_cluster.start()
    with ExitStack() as programs:
        yield {
            (name, how): programs.enter_context(
                incident_running(
                    name, how, folder, seconds=SECONDS,
                    database=database_for(postgres_cluster, name, how, programs),
                )
            )
            for name in INCIDENTS
            for how in ("broken", "mended")
        }  # fmt: skip


@pytest.fixture(scope="module")
def prometheus(
    running: dict[tuple[str, str], Incident],
    prometheus_server: StartPrometheus,
    tmp_path_factory: pytest.TempPathFactory,
) -> Prometheus:
    rules = tmp_path_factory.mktemp("rules") / "at-once.yaml"
    rules.write_text(re.sub(r"\bfor: \d+m\b", "for: 0s", RULES.read_text()))
    targets = {f"{name}-{how}": incident.target for (name, how), incident in running.items()}
    return prometheus_server(targets, rule_files=[rules])


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """One for each incident, written to the terminal at the end."""
    heading = "incident | route | state | line to blame | signals, and after how many seconds"
    yield from rows_under(heading, request)


def firing(prometheus: Prometheus, job: str) -> dict[str, float]:
    """The alerts that fire, and since when, in seconds since the epoch."""
    return {
        alert["labels"]["alertname"]: datetime.strptime(
            alert["activeAt"][:19] + "+0000", "%Y-%m-%dT%H:%M:%S%z"
        ).timestamp()
        for alert in prometheus.alerts()
        if alert["state"] == "firing" and alert["labels"].get("job") == job
    }


@pytest.mark.parametrize("name", INCIDENTS)
def test_the_culprit_is_named(
    name: str,
    running: dict[tuple[str, str], Incident],
    prometheus: Prometheus,
    rows: list[str],
) -> None:
    broken, expected = running[name, "broken"], INCIDENTS[name]
    words = [word.format(culprit=broken.culprit) for word in expected.words]
    said = broken.wait_for_log(expected.route, expected.state, *words)
    job = f"{name}-broken"
    since = wait_for(lambda: firing(prometheus, job), expected.alerts.issubset, f"alerts of {job}")
    line = Path(broken.culprit).name.removesuffix(" in ")
    signals = [f"report in the log {said.seconds} s"]
    signals += [f"{alert} {since[alert] - broken.began:.0f} s" for alert in sorted(expected.alerts)]
    rows.append(f"{name} | {expected.route} | {expected.state} | {line} | {', '.join(signals)}")


def named_on(page: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Route, state and line of each that the page's reports name; who waits has no state."""
    for leak in page["leaks"]:
        yield leak["route"], leak["state"], leak["place"]
        yield leak["route"], leak["state"], leak["taken_at"]
    for report in page["exhaustions"]:
        yield report["waiting"]["route"], "waits", report["waiting"]["made_at"]
        for holder in report["holders"]:
            yield holder["route"], holder["state"], holder["taken_at"]


# An engine for each request leaves no session open: the page has its pools' name alone.
@pytest.mark.parametrize("name", sorted(INCIDENTS.keys() - {"engine_per_request"}))
def test_the_live_page_names_the_culprit(
    name: str, running: dict[tuple[str, str], Incident]
) -> None:
    broken, expected = running[name, "broken"], INCIDENTS[name]
    state = "waits" if name == "second_connection" else expected.state
    wait_for(
        lambda: [
            named
            for named in named_on(broken.live_page())
            if named[:2] == (expected.route, state) and named[2].startswith(broken.culprit)
        ],
        bool, f"the culprit on the live page of {name}",
    )  # fmt: skip
    assert not list(named_on(running[name, "mended"].live_page()))


def test_backends_sit_idle_in_transaction_where_clean_up_is_cancelled(
    running: dict[tuple[str, str], Incident], prometheus: Prometheus, postgres_cluster: Postgres
) -> None:
    assert running

    def idle_in_transaction(how: str) -> int:
        ((count,),) = postgres_cluster.execute(
            "select count(*) from pg_stat_activity where state = 'idle in transaction'"
            f" and datname = 'cancelled_in_rollback_{how}'",
            database="postgres",
        )
        return int(count)

    wait_for(lambda: idle_in_transaction("broken"), CANCELLED_POOL.__eq__, "the pool to be gone")
    done = 'sum(sqlalchemy_session_creations_total{job="cancelled_in_rollback-mended"})'
    prometheus.wait_for(done, lambda n: n is not None and n > CANCELLED_POOL)
    # The one whose client is there just now, and the one whose clean-up is under way: there may be
    # more for a moment, and they go.
    wait_for(lambda: idle_in_transaction("mended"), lambda n: n <= 2, "clean-ups to come to an end")


def test_every_connection_is_counted_where_no_pool_keeps_any(
    running: dict[tuple[str, str], Incident], prometheus: Prometheus, postgres_cluster: Postgres
) -> None:
    assert running

    def held_by_the_proxy() -> int:
        """Connections that it shares only once their transactions end."""
        ((count,),) = postgres_cluster.execute(
            "select count(*) from pg_stat_activity where state = 'idle in transaction'"
            " and datname = 'null_pool_broken'",
            database="postgres",
        )
        return int(count)

    wait_for(held_by_the_proxy, PROXY.__eq__, "the proxy to have no connection left")
    used = 'db_client_connection_count{job="null_pool-broken",db_client_connection_state="used"}'
    prometheus.wait_for(f"max_over_time({used}[5m])", lambda n: n == PROXY)
    created = 'db_client_connection_create_time_seconds_count{{job="null_pool-{}"}}'
    prometheus.wait_for(created.format("broken"), lambda n: n is not None and n > 20)
    refused = 'sum(sqlalchemy_session_creations_total{{job="null_pool-{}",outcome="failure"{}}})'
    prometheus.wait_for(refused.format("broken", ',error_type="OperationalError"'), bool)

    done = 'sqlalchemy_session_creations_total{job="null_pool-mended",outcome="success"}'
    prometheus.wait_for(done, lambda n: n is not None and n > 20)
    prometheus.wait_for(created.format("mended"), lambda n: n == 5)  # its pool's size
    assert not prometheus.value(refused.format("mended", ""))


def test_an_exhausted_pool_names_the_holders_that_wait_and_those_that_leak(
    running: dict[tuple[str, str], Incident], prometheus: Prometheus
) -> None:
    leaking = running["dependency_without_finally", "broken"]
    said = leaking.wait_for_log("No connection available")
    assert said.text.count(f"session made at {leaking.culprit}broken") > 10
    nested = "sqlalchemy_pool_nested_timeouts_total"
    prometheus.wait_for(f'{nested}{{job="second_connection-broken"}}', bool)
    prometheus.wait_for(f'{nested}{{job="held_across_slow_call-broken"}}', lambda n: n == 0)


def test_pools_multiply_with_an_engine_for_each_request(
    running: dict[tuple[str, str], Incident], prometheus: Prometheus
) -> None:
    assert running
    pools = "sum by (job) (sqlalchemy_pools{{job='engine_per_request-{}'}})"
    prometheus.wait_for(pools.format("broken"), lambda n: n is not None and n > 20)
    prometheus.wait_for(pools.format("mended"), lambda n: n == 1)


@pytest.mark.parametrize("name", INCIDENTS)
def test_nothing_is_said_once_it_is_mended(
    name: str, running: dict[tuple[str, str], Incident], prometheus: Prometheus
) -> None:
    job = f"{name}-mended"
    done = f'sum(sqlalchemy_session_creations_total{{job="{job}",outcome="success"}})'
    prometheus.wait_for(done, lambda n: n is not None and n > 10)
    assert [said.text.split(":")[0] for said in running[name, "mended"].log()] == ["mended"]
    # Alerts only where it lasts: a pool may be full for a moment, and on a slow machine a client
    # leave in the middle of a statement, whose cancellation is an error.
    assert firing(prometheus, job).keys() <= {NEAR_LIMIT} | LEFT.get(name, set())
