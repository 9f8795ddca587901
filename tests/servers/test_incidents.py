"""Real outages, reproduced: the log, /metrics and the alerts name who is to blame.

Every incident runs broken and mended at once, with one Prometheus that scrapes them all by the
rules as users load them, except that no alert waits before it fires.
"""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from servers.incident_process import Incident, incident_running
from servers.processes import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.conftest import StartPrometheus
    from servers.prometheus_server import Prometheus

RULES = Path(__file__).parent.parent.parent / "grafana" / "rules" / "session-metrics.yaml"
SECONDS = 75  # of traffic: each test is over long before


class Expected(NamedTuple):
    """What is said first of an incident, and the alerts that fire."""

    route: str
    state: str
    words: tuple[str, ...]
    alerts: frozenset[str]


IDLE, TIMEOUTS = "SessionsIdleInTransaction", "ConnectionPoolTimeouts"
INCIDENTS = {
    "dependency_without_finally": Expected(
        "/orders/{order_id}", "idle", ("leaks (idle_in_transaction)", "made at {culprit}broken"),
        frozenset({IDLE, TIMEOUTS}),
    ),
    "second_connection": Expected(
        "/orders/{order_id}/bill", "idle",
        ("waits for a connection", "in a session made at {culprit}price", "holds 1 already"),
        frozenset({IDLE, TIMEOUTS}),
    ),
    "held_across_slow_call": Expected(
        "/orders/{order_id}/ship", "idle",
        ("leaks (idle_in_transaction)", "connection taken at {culprit}ship"),
        frozenset({IDLE, TIMEOUTS}),
    ),
    "engine_per_request": Expected(
        "/orders/{order_id}", "10 pools", ("where one engine would do", "made at {culprit}broken"),
        frozenset(),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[tuple[str, str], Incident]]:
    folder = tmp_path_factory.mktemp("incidents")
    with ExitStack() as programs:
        yield {
            (name, how): programs.enter_context(
                incident_running(name, how, folder, seconds=SECONDS)
            )
            for name in INCIDENTS
            for how in ("broken", "mended")
        }


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
    written: list[str] = []
    yield written
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    for line in ["", "incident | route | state | line to blame | signal | seconds", *written]:
        terminal.write_line(line)


def firing(prometheus: Prometheus, job: str) -> set[str]:
    return {
        alert["labels"]["alertname"]
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
    wait_for(lambda: firing(prometheus, job), expected.alerts.issubset, f"alerts of {job}")
    line = Path(broken.culprit).name.removesuffix(" in ")
    signal = ", ".join(["report in the log", *sorted(expected.alerts)])
    rows.append(
        f"{name} | {expected.route} | {expected.state} | {line} | {signal} | {said.seconds}"
    )


def test_an_exhausted_pool_names_the_holders_that_wait_and_those_that_leak(
    running: dict[tuple[str, str], Incident], prometheus: Prometheus
) -> None:
    leaking = running["dependency_without_finally", "broken"]
    said = leaking.wait_for_log("No connection to be had")
    assert said.text.count(f"session made at {leaking.culprit}broken") > 10
    nested = "sqlalchemy_pool_nested_timeouts_total"
    prometheus.wait_for(f'{nested}{{job="second_connection-broken"}}', bool)
    assert prometheus.value(f'{nested}{{job="held_across_slow_call-broken"}}') == 0


def test_pools_multiply_with_an_engine_for_each_request(
    running: dict[tuple[str, str], Incident], prometheus: Prometheus
) -> None:
    assert running
    pools = "sum by (job) (sqlalchemy_pools{{job='engine_per_request-{}'}})"
    prometheus.wait_for(pools.format("broken"), lambda n: n is not None and n > 20)
    assert prometheus.value(pools.format("mended")) == 1


@pytest.mark.parametrize("name", INCIDENTS)
def test_nothing_is_said_once_it_is_mended(
    name: str, running: dict[tuple[str, str], Incident], prometheus: Prometheus
) -> None:
    job = f"{name}-mended"
    done = f'sum(sqlalchemy_session_creations_total{{job="{job}",outcome="success"}})'
    prometheus.wait_for(done, lambda n: n is not None and n > 10)
    assert [said.text.split(":")[0] for said in running[name, "mended"].log()] == ["mended"]
    # A pool may be full for a moment: that is an alert only where it lasts.
    assert firing(prometheus, job) <= {"ConnectionPoolNearLimit"}
