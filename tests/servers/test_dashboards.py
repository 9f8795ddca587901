"""Every query of every panel, variable, rule and runbook, asked of a real Prometheus.

It has scraped the demo, which has faults on purpose. Run with ``-s`` to see each with its result.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from grafana.expressions import DASHBOARDS, RULES, Expression, of_dashboard, of_runbook, rules
from grafana.test_dashboards import RUNBOOKS

from servers.demo_process import demo_running
from servers.processes import running, wait_for
from servers.prometheus_server import Prometheus, prometheus_scraping

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = 500
SUCCESS_RATE = "session-metrics-sessions: Session creation success rate"
WAIT = "job:db_client_connection_wait_time_seconds:p95_rate5m"
SUCCESS = "job_factory:sqlalchemy_session_creation_success:ratio_rate5m"
GRAFANAS_OWN = {"$__rate_interval": "2m", "$__range": "2m"}

NEEDS_A_FAULT = {
    # Panels that are empty where all is well, and that this demo has no such fault for.
    "session-metrics-sessions: Sessions with repeated statements",
    "session-metrics-pools: Time-outs",
    "session-metrics-pools: Time-outs of nested sessions",
    "session-metrics-pools: Rows returned",  # SQLite does not say
    "session-metrics-fleet: Pool time-outs",
}


FOR_FAULTS = {
    # Panels that have data only where something was wrong, or is looked for, or is known.
    *NEEDS_A_FAULT,
    "session-metrics-sessions: Failed creations by error type",
    "session-metrics-sessions: Leaks by reason",
    "session-metrics-sessions: Errors by type",
    "session-metrics-pools: Statements that failed",
    "session-metrics-fleet: Most errors in sessions",
    "session-metrics-fleet: Leaks",
}


def asked(expression: str) -> str:
    """The expression as Grafana sends it with All chosen everywhere."""
    for name, value in GRAFANAS_OWN.items():
        expression = expression.replace(name, value)
    return re.sub(r"\$(?:job|instance|factory|pool)\b", ".*", expression)


@pytest.fixture(scope="module")
def demo_truth(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, dict]]:
    with (
        demo_running(tmp_path_factory.mktemp("demo"), requests=REQUESTS) as demo,
        prometheus_scraping(
            {"demo": demo.metrics}, tmp_path_factory.mktemp("prometheus"), rule_files=[RULES]
        ) as prometheus,
    ):
        truth = demo.truth()
        done = truth["orders.success"] + truth["reports.success"]
        prometheus.wait_for(
            'sum(sqlalchemy_session_creations_total{outcome="success"})', lambda n: n == done
        )
        yield prometheus, truth


PANELS = [found for file in DASHBOARDS for found in of_dashboard(file)]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.where)
def test_a_panel_has_data(demo_truth: tuple[Prometheus, dict], panel: Expression):
    prometheus, _ = demo_truth
    rows = prometheus.query(asked(panel.text))
    print(f"\n{panel.where}\n  {asked(panel.text)}\n  = {[value for _, value in rows][:8]}")
    if panel.where not in NEEDS_A_FAULT:
        assert rows


def test_only_panels_for_faults_are_empty_where_all_is_well(tmp_path: Path):
    program = Path(__file__).parents[1] / "programs" / "healthy_orders.py"
    log = tmp_path / "service.log"
    with running([sys.executable, "-u", str(program)], log):
        (address,) = wait_for(
            lambda: re.findall(r"http://(\S+)/metrics", log.read_text()), bool, "the service"
        )
        with prometheus_scraping({"orders": address}, tmp_path, rule_files=[RULES]) as prometheus:
            for name in (WAIT, SUCCESS):
                prometheus.wait_for(f"min({name}) > 0", bool)
            filled = {panel.where for panel in PANELS if prometheus.query(asked(panel.text))}
            assert {panel.where for panel in PANELS} - filled == FOR_FAULTS
            firing = [alert["labels"]["alertname"] for alert in prometheus.alerts()]
            assert firing == []


def test_the_success_rate_shown_is_what_the_service_counted(
    demo_truth: tuple[Prometheus, dict],
):
    prometheus, truth = demo_truth
    (panel,) = (panel for panel in PANELS if panel.where == SUCCESS_RATE)
    success = truth["orders.success"] + truth["reports.success"]
    failure = truth["reports.failure"]
    assert success > failure > 0
    # rate() cannot see what was counted before a series' first scrape.
    assert prometheus.value(asked(panel.text)) == pytest.approx(
        success / (success + failure), abs=0.01
    )
    exact = re.sub(r"rate\(([^[]*)\[[^]]*\]\)", r"\1", asked(panel.text))
    assert prometheus.value(exact) == success / (success + failure)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_each_variable_has_choices(demo_truth: tuple[Prometheus, dict], file):
    prometheus, _ = demo_truth
    _, *choices = json.loads(file.read_text())["templating"]["list"]
    for choice in choices:
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", choice["query"]).groups()
        found = {row[label] for row, _ in prometheus.query(asked(series))}
        print(f"\n{file.stem}: ${choice['name']} = {sorted(found)}")
        assert found


def test_each_rule_is_evaluated_without_a_fault(demo_truth: tuple[Prometheus, dict]):
    prometheus, _ = demo_truth
    loaded = prometheus.rules()
    names = [rule.get("record") or rule["alert"] for rule in rules()]
    assert sorted(rule["name"] for rule in loaded) == sorted(names)
    assert {rule["health"] for rule in loaded} == {"ok"}
    for rule in rules():
        if "record" in rule:
            assert prometheus.query(rule["record"]), rule["record"]


def test_each_query_of_a_runbook_is_one(demo_truth: tuple[Prometheus, dict]):
    prometheus, _ = demo_truth
    for page in RUNBOOKS:
        for query in of_runbook(page):
            rows = prometheus.query(query.text)
            print(f"\n{query.where}\n  {query.text}\n  = {[value for _, value in rows][:8]}")
