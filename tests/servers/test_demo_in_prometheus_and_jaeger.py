"""The main job end to end: the demo, scraped by a real Prometheus and traced into a real Jaeger."""

from __future__ import annotations

import time
import urllib.request
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from servers.demo_process import Demo, demo_running
from servers.prometheus_server import Prometheus, prometheus_scraping

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.jaeger_server import Jaeger, Span

REQUESTS = 400
SERVICE = "order-service"
SUCCESS_RATE = (
    'sum(sqlalchemy_session_creations_total{outcome="success"})'
    ' / sum(sqlalchemy_session_creations_total{outcome=~"success|failure"})'
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, jaeger: Jaeger) -> Iterator[Demo]:
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": jaeger.otlp,
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }
    folder = tmp_path_factory.mktemp("demo")
    with demo_running(folder, requests=REQUESTS, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory, demo: Demo) -> Iterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus")
    with prometheus_scraping({"demo": demo.metrics}, folder) as server:
        yield server


@pytest.fixture(scope="module")
def truth(demo: Demo, prometheus: Prometheus) -> dict[str, int]:
    """The service's own books, once they are closed; Prometheus has looked on."""
    assert prometheus
    return demo.truth()


@pytest.fixture(scope="module")
def scraped(prometheus: Prometheus, truth: dict[str, int]) -> float:
    """A time at which Prometheus has scraped what the last entry of the books is of."""
    assert truth
    return prometheus.scraped_after(time.time())


@pytest.fixture(scope="module")
def spans(jaeger: Jaeger, truth: dict[str, int]) -> list[Span]:
    """The spans in Jaeger, once those of all the sessions are there, and those above them."""
    expected = {
        "session orders": truth["orders.success"],
        "session reports": truth["reports.success"] + truth["reports.failure"],
    }

    def are_there(spans: list[Span]) -> bool:
        sessions = [span for span in spans if span.name.startswith("session ")]
        above = {span.parent_id for span in sessions if span.parent_id}
        return Counter(span.name for span in sessions) == expected and above <= {
            span.span_id for span in spans
        }

    return jaeger.wait_for_spans(SERVICE, are_there)


def test_prometheus_answers_the_success_rate_that_the_service_counted(
    prometheus: Prometheus, truth: dict[str, int], scraped: float
) -> None:
    success = truth["orders.success"] + truth["reports.success"]
    failure = truth["reports.failure"]
    assert failure > 0
    assert prometheus.value(SUCCESS_RATE, scraped) == success / (success + failure)


def test_every_count_in_prometheus_is_the_services_own(
    prometheus: Prometheus, truth: dict[str, int], scraped: float
) -> None:
    creations = "sum by (factory, outcome) (sqlalchemy_session_creations_total)"
    rows = prometheus.query(creations, scraped)
    counted = {f"{row['factory']}.{row['outcome']}": value for row, value in rows}
    assert counted == {
        "orders.success": truth["orders.success"],
        "orders.failure": 0,
        "orders.unused": truth["orders.unused"],
        "reports.success": truth["reports.success"],
        "reports.failure": truth["reports.failure"],
        "reports.unused": 0,
    }
    leaks = 'sqlalchemy_session_leaks_total{factory="orders",reason="garbage_collected"}'
    assert prometheus.value(leaks, scraped) == truth["orders.leak"]
    assert prometheus.value("sum(sqlalchemy_sessions)", scraped) == 0


def test_promtool_finds_nothing_to_say_of_the_metrics(demo: Demo, truth: dict[str, int]) -> None:
    import shutil
    import subprocess

    from servers.processes import needs

    assert truth
    promtool = needs("promtool", shutil.which("promtool"))
    with urllib.request.urlopen(f"http://{demo.metrics}/metrics", timeout=10) as response:
        text = response.read()
    ours = b"".join(
        line
        for line in text.splitlines(keepends=True)
        if line.removeprefix(b"# HELP ").removeprefix(b"# TYPE ").startswith(b"sqlalchemy_")
    )
    assert b"sqlalchemy_session_creations_total" in ours
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=ours, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_jaeger_has_one_span_for_each_session_that_did_something(
    spans: list[Span], truth: dict[str, int]
) -> None:
    sessions = Counter(span.name for span in spans if span.name.startswith("session "))
    assert sessions == {
        "session orders": truth["orders.success"],
        "session reports": truth["reports.success"] + truth["reports.failure"],
    }


def test_a_placed_order_in_jaeger_has_its_attributes_events_and_parent(spans: list[Span]) -> None:
    by_id = {span.span_id: span for span in spans}
    sessions = [span for span in spans if span.name == "session orders" and span.parent_id]
    placed = [s for s in sessions if by_id[s.parent_id or ""].name == "POST /orders"]
    assert placed
    for span in placed:
        parent = by_id[span.parent_id or ""]
        assert span.trace_id == parent.trace_id
        assert parent.attributes["span.kind"] == "server"
        assert span.attributes["span.kind"] == "internal"
        assert span.attributes["sqlalchemy.session.factory"] == "orders"
        assert span.attributes["sqlalchemy.session.state"] == "closed"
        # The INSERT; and after the commit, which expires the order, a SELECT for its id.
        assert span.attributes["sqlalchemy.session.query_count"] == 2
        assert span.attributes["sqlalchemy.session.error_count"] == 0
        assert span.attributes["sqlalchemy.session.request_id"].startswith("request-")
        moves = [(e.attributes["from"], e.attributes["to"]) for e in span.events]
        assert moves == [
            ("created", "active"),
            ("active", "committed"),
            ("committed", "active"),
            ("active", "closing"),
            ("closing", "closed"),
        ]


def test_a_refused_connection_in_jaeger_is_an_error_with_its_exception(
    spans: list[Span], truth: dict[str, int]
) -> None:
    refused = [
        span
        for span in spans
        if span.name == "session reports" and span.attributes.get("error") is True
    ]
    assert len(refused) == truth["reports.failure"]
    for span in refused:
        assert span.attributes["otel.status_code"] == "ERROR"
        exception, *moves = span.events
        assert exception.name == "exception"
        assert exception.attributes["exception.type"] == "sqlite3.OperationalError"
        assert [event.attributes["to"] for event in moves] == ["error", "closing", "closed"]


def test_an_exemplar_in_prometheus_leads_to_its_trace_in_jaeger(
    prometheus: Prometheus, scraped: float, jaeger: Jaeger, spans: list[Span]
) -> None:
    assert scraped
    assert spans
    now = time.time()
    found = prometheus.exemplars("sqlalchemy_session_duration_seconds_bucket", now - 3600, now)
    exemplars = [exemplar for series in found for exemplar in series["exemplars"]]
    assert exemplars
    for exemplar in exemplars:
        labels = exemplar["labels"]
        trace = {span.span_id: span for span in jaeger.trace(labels["trace_id"])}
        assert trace[labels["span_id"]].name.startswith("session ")
