"""The OTLP way: the files in deploy/collector, run by a real Collector and a real Prometheus.

Two processes of one service push to the Collector. The same Prometheus scrapes both directly too,
and has to have the same of them by either way.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
import yaml
from grafana.expressions import DASHBOARDS, RULES, Expression, of_dashboard
from pages import write_files

from servers.collector_server import CONFIGURATION, Collector, collector_running
from servers.demo_process import Demo, demo_running
from servers.processes import PATIENCE
from servers.prometheus_server import Prometheus, prometheus_with
from servers.test_dashboards import asked
from session_metrics_otel.catalog import CATALOG, Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.jaeger_server import Jaeger, Span
    from session_metrics_otel.catalog import Metric

    Series = dict[frozenset[tuple[str, str]], float]

SERVICE = "pushing-service"
INSTANCES = ("shop-1", "shop-2")
REQUESTS = 200
PUSH_INTERVAL = 2  # seconds
# Those that differ from one look to the next.
AGES = {"sqlalchemy_session_oldest_age_seconds"}
# What the demo may end without: it has no such faults, or none by chance.
MAY_BE_MISSING = (
    "application_session",
    "db_client_response_returned_rows",  # SQLite does not say
    "sqlalchemy_session_leaks",
    "sqlalchemy_session_repeated_statements",
    "sqlalchemy_session_telemetry_faults",
)
PANELS = [found for file in DASHBOARDS for found in of_dashboard(file)]
TESTS = Path(__file__).parents[1]


class Shop(NamedTuple):
    """The two processes, and who knows of them.

    Attributes:
        at: A time at which Prometheus had all that came of their traffic, by either way.
        truths: The books of each.
    """

    collector: Collector
    prometheus: Prometheus
    at: float
    truths: dict[str, dict[str, int]]


def prometheus_configuration(collector: Collector, demos: dict[str, Demo]) -> str:
    """That of deploy/collector by the test's addresses, and beside it the direct way."""
    text = CONFIGURATION.with_name("prometheus.yml").read_text()
    configuration = yaml.safe_load(text.replace("collector:9464", collector.metrics))
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(RULES)]
    direct = [
        {"targets": [demo.metrics], "labels": {"instance": instance}}
        for instance, demo in demos.items()
    ]
    configuration["scrape_configs"].append({"job_name": "direct", "static_configs": direct})
    return yaml.safe_dump(configuration)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, jaeger: Jaeger) -> Iterator[Shop]:
    with ExitStack() as servers:
        collector = servers.enter_context(
            collector_running(tmp_path_factory.mktemp("collector"), jaeger.otlp_grpc)
        )
        demos = {}
        for instance in INSTANCES:
            environment = {
                "OTEL_EXPORTER_OTLP_ENDPOINT": collector.otlp,
                "OTEL_SERVICE_NAME": SERVICE,
                "OTEL_RESOURCE_ATTRIBUTES": f"service.instance.id={instance}",
                "OTEL_METRIC_EXPORT_INTERVAL": str(1000 * PUSH_INTERVAL),
                "OTEL_BSP_SCHEDULE_DELAY": "200",
                "PYTHONPATH": str(TESTS),
            }
            demos[instance] = servers.enter_context(
                demo_running(
                    tmp_path_factory.mktemp(instance),
                    requests=REQUESTS,
                    environment=environment,
                    program="servers.pushing_demo",
                )
            )
        prometheus = servers.enter_context(
            prometheus_with(
                prometheus_configuration(collector, demos), tmp_path_factory.mktemp("prometheus")
            )
        )
        truths = {instance: demo.truth() for instance, demo in demos.items()}
        sessions = 'sum by (instance) (sqlalchemy_session_creations_total{job="%s"})'
        for instance, truth in truths.items():
            ended = sum(count for name, count in truth.items() if name != "orders.leak")
            for job in ("direct", SERVICE):
                prometheus.wait_for(
                    f"{sessions % job} == {ended} and on (instance) "
                    f'group by (instance) (sqlalchemy_sessions{{instance="{instance}"}})',
                    lambda count, ended=ended: count == ended,
                )
        # What came last has been pushed by then, and a rate takes two scrapes of it.
        at = prometheus.scraped_after(time.time() + 2 * PUSH_INTERVAL + 2)
        yield Shop(collector, prometheus, at, truths)


def series(shop: Shop, metric: Metric, name: str, job: str) -> Series:
    """The value of each series of ``name``, by its labels except for ``job``.

    OpenTelemetry sends no histogram before its first measurement; /metrics has it, all zeros.
    """
    asked_for = f'{name}{{job="{job}"}}'
    if metric.kind is Kind.HISTOGRAM:
        measured = f'{metric.prometheus_name}_count{{job="{job}"}} > 0'
        asked_for += f" and ignoring (le) {measured}"
    rows = shop.prometheus.query(asked_for, shop.at)
    return {frozenset(row.items() - {("job", job)}): value for row, value in rows}


def test_the_collector_shows_the_names_labels_and_values_of_a_direct_scrape(shop: Shop) -> None:
    without_series = set()
    for metric in CATALOG:
        for name in metric.sample_names:
            pushed = series(shop, metric, name, SERVICE)
            scraped = series(shop, metric, name, "direct")
            assert set(pushed) == set(scraped), name
            if name not in AGES:
                assert pushed == pytest.approx(scraped), name
            if not scraped:
                without_series.add(name)
    assert {name for name in without_series if not name.startswith(MAY_BE_MISSING)} == set()


def test_every_count_behind_the_collector_is_the_services_own(shop: Shop) -> None:
    counted = {
        (row["instance"], f"{row['factory']}.{row['outcome']}"): value
        for row, value in shop.prometheus.query(
            "sum by (instance, factory, outcome) "
            f'(sqlalchemy_session_creations_total{{job="{SERVICE}"}}) > 0',
            shop.at,
        )
    }
    assert counted == {
        (instance, name): count
        for instance, truth in shop.truths.items()
        for name, count in truth.items()
        if name != "orders.leak" and count
    }


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.where)
def test_a_panel_shows_of_pushed_series_what_it_shows_of_scraped_ones(
    shop: Shop, panel: Expression
) -> None:
    # All of the traffic, however slow it was; and not only what rose between two scrapes, which
    # are not the same two by either way.
    text = re.sub(" >=? 0", "", panel.text)

    def shown(job: str) -> Series:
        rows = shop.prometheus.query(asked(text.replace("$job", job)), shop.at)
        return {frozenset(row.items() - {("job", job)}): value for row, value in rows}

    pushed, scraped = shown(SERVICE), shown("direct")
    assert set(pushed) <= set(scraped)
    # What was never measured is a line at zero of a direct scrape, and no line of a pushed one.
    missing = {labels: scraped[labels] for labels in scraped.keys() - pushed.keys()}
    assert {labels: value for labels, value in missing.items() if value > 0} == {}


def test_the_spans_reach_jaeger_through_the_collector(shop: Shop, jaeger: Jaeger) -> None:
    counted = sum((Counter(truth) for truth in shop.truths.values()), Counter[str]())
    expected = {
        "session orders": counted["orders.success"],
        "session reports": counted["reports.success"] + counted["reports.failure"],
    }

    def sessions(spans: list[Span]) -> Counter[str]:
        return Counter(span.name for span in spans if span.name.startswith("session "))

    jaeger.wait_for_spans(SERVICE, lambda spans: sessions(spans) == expected)


def test_the_program_of_the_documentation(shop: Shop, jaeger: Jaeger, tmp_path: Path) -> None:
    write_files("how-to/collector", tmp_path)
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": shop.collector.otlp, "OTEL_SERVICE_NAME": "page"}
    subprocess.run(
        [sys.executable, "app.py"],
        cwd=tmp_path,
        env=os.environ | environment,
        timeout=PATIENCE,
        check=True,
    )
    duration = "sqlalchemy_session_duration_seconds"
    shop.prometheus.wait_for(f'{duration}_count{{job="page",factory="orders"}}', lambda n: n == 1)
    spans = jaeger.wait_for_spans(
        "page", lambda spans: {"session orders", "SELECT"} <= {span.name for span in spans}
    )
    (session,) = [span for span in spans if span.name == "session orders"]
    now = time.time()
    (found,) = shop.prometheus.exemplars(f'{duration}_bucket{{job="page"}}', now - 3600, now)
    (exemplar,) = found["exemplars"]
    assert exemplar["labels"] == {"trace_id": session.trace_id, "span_id": session.span_id}
