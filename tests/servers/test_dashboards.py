"""Every query of every panel, variable, rule and runbook, asked of a real Prometheus.

It has scraped the demo, which has faults on purpose. Run with ``-s`` to see each with its result.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from grafana.expressions import DASHBOARDS, RULES, Expression, of_dashboard, of_runbook, rules
from grafana.test_dashboards import RUNBOOKS

from servers.demo_process import demo_running
from servers.processes import HOST, free_port, running, wait_for
from servers.prometheus_server import Prometheus, prometheus_scraping

if TYPE_CHECKING:
    from collections.abc import Iterator

REQUESTS = 500
SUCCESS_RATE = "session-metrics-sessions: Session creation success rate"
WAIT = "job:db_client_connection_wait_time_seconds:p95_rate5m"
SUCCESS = "job_factory:sqlalchemy_session_creation_success:ratio_rate5m"
RECORDED = [rule["record"] for rule in rules() if "record" in rule]
GRAFANAS_OWN = {"$__rate_interval": "5m", "$__range": "5m"}  # all of the traffic, however slow

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


class Looked(NamedTuple):
    """A Prometheus that has looked at the demo.

    Attributes:
        at: A time at which it had seen all that happened, and put it on record.
        truth: The demo's own books.
    """

    prometheus: Prometheus
    at: float
    truth: dict[str, int]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        return self.prometheus.query(expression, self.at)

    def value(self, expression: str) -> float | None:
        return self.prometheus.value(expression, self.at)


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looked]:
    port = free_port()
    targets = {"demo": f"{HOST}:{port}"}
    with (
        # It is there first: a rate does not have what came before the first scrape.
        prometheus_scraping(
            targets, tmp_path_factory.mktemp("prometheus"), rule_files=[RULES]
        ) as prometheus,
        demo_running(tmp_path_factory.mktemp("demo"), requests=REQUESTS, metrics_port=port) as demo,
    ):
        truth = demo.truth()
        # A rate takes two scrapes of what came last.
        prometheus.scraped_after(prometheus.scraped_after(time.time()))
        for record in RECORDED:
            prometheus.wait_for(f"count({record})", bool)
        yield Looked(prometheus, prometheus.scraped_after(time.time()), truth)


PANELS = [found for file in DASHBOARDS for found in of_dashboard(file)]


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.where)
def test_a_panel_has_data(looked: Looked, panel: Expression):
    rows = looked.query(asked(panel.text))
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
            wait_for(
                lambda: {p.where for p in PANELS if not prometheus.query(asked(p.text))},
                FOR_FAULTS.__eq__, "the other panels to have data",
            )  # fmt: skip
            firing = [alert["labels"]["alertname"] for alert in prometheus.alerts()]
            assert firing == []


def test_the_success_rate_shown_is_what_the_service_counted(looked: Looked):
    truth = looked.truth
    (panel,) = (panel for panel in PANELS if panel.where == SUCCESS_RATE)
    success = truth["orders.success"] + truth["reports.success"]
    failure = truth["reports.failure"]
    assert success > failure > 0
    # rate() cannot see what was counted before a series' first scrape.
    assert looked.value(asked(panel.text)) == pytest.approx(success / (success + failure), abs=0.01)
    exact = re.sub(r"rate\(([^[]*)\[[^]]*\]\)", r"\1", asked(panel.text))
    assert looked.value(exact) == success / (success + failure)


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda file: file.stem)
def test_each_variable_has_choices(looked: Looked, file):
    _, *choices = json.loads(file.read_text())["templating"]["list"]
    for choice in choices:
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", choice["query"]).groups()
        found = {row[label] for row, _ in looked.query(asked(series))}
        print(f"\n{file.stem}: ${choice['name']} = {sorted(found)}")
        assert found


def test_each_rule_is_evaluated_without_a_fault(looked: Looked):
    loaded = looked.prometheus.rules()
    names = [rule.get("record") or rule["alert"] for rule in rules()]
    assert sorted(rule["name"] for rule in loaded) == sorted(names)
    assert {rule["health"] for rule in loaded} == {"ok"}
    for record in RECORDED:
        assert looked.query(record), record


def test_each_query_of_a_runbook_is_one(looked: Looked):
    for page in RUNBOOKS:
        for query in of_runbook(page):
            rows = looked.query(query.text)
            print(f"\n{query.where}\n  {query.text}\n  = {[value for _, value in rows][:8]}")
