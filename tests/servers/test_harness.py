"""Each server of the harness does, for real, what the tests lean on it for."""

from __future__ import annotations

import os
import subprocess
from threading import Thread
from typing import TYPE_CHECKING

import psycopg
import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from servers.pgbouncer_server import pgbouncer_running
from servers.postgres_server import DATABASE, USER
from servers.processes import HOST, PATIENCE, needs, running, wait_for, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.chromium_browser import Chromium
    from servers.conftest import StartPrometheus
    from servers.jaeger_server import Jaeger
    from servers.postgres_server import Postgres
    from servers.prometheus_server import Promtool

RULES = """
groups:
  - name: harness
    rules:
      - record: harness:orders:doubled
        expr: 2 * orders_total
      - alert: OrdersSeen
        expr: orders_total > 0
"""


@pytest.fixture
def target() -> Iterator[str]:
    """A /metrics with three orders, one of them with an exemplar."""
    registry = CollectorRegistry()
    Counter("orders", "Orders placed.", registry=registry).inc(3)
    size = Histogram("order_size", "Items in an order.", buckets=[1, 10], registry=registry)
    size.observe(4, {"trace_id": "abc"})
    server, thread = start_http_server(0, addr=HOST, registry=registry)
    assert isinstance(thread, Thread)
    yield f"{HOST}:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_prometheus_scrapes_evaluates_rules_and_keeps_exemplars(
    prometheus_server: StartPrometheus, target: str, tmp_path: Path
) -> None:
    rules = tmp_path / "rules.yml"
    rules.write_text(RULES)
    prometheus = prometheus_server({"shop": [target]}, rule_files=[rules])

    assert prometheus.wait_for("harness:orders:doubled", lambda value: value == 6) == 6
    labels = {"__name__": "orders_total", "instance": target, "job": "shop"}
    scraped = prometheus.scraped_after(0)
    assert prometheus.query("orders_total", scraped) == [(labels, 3.0)]
    assert prometheus.query("orders_total", time=scraped - 3600) == []
    assert prometheus.wait_for('ALERTS{alertstate="firing"}', bool) == 1
    assert [alert["labels"]["alertname"] for alert in prometheus.alerts()] == ["OrdersSeen"]
    assert [(rule["name"], rule["health"]) for rule in prometheus.rules()] == [
        ("harness:orders:doubled", "ok"),
        ("OrdersSeen", "ok"),
    ]
    (series,) = prometheus.exemplars("order_size_bucket", scraped - 60, scraped + 60)
    assert [exemplar["labels"] for exemplar in series["exemplars"]] == [{"trace_id": "abc"}]


def test_promtool_accepts_good_metrics_and_refuses_bad_ones(promtool: Promtool) -> None:
    good = "# HELP orders_total Orders placed.\n# TYPE orders_total counter\norders_total 3\n"
    accepted = promtool("check", "metrics", given=good)
    assert (accepted.returncode, accepted.stdout, accepted.stderr) == (0, "", "")
    refused = promtool("check", "metrics", given=good.replace("orders_total", "orders"))
    assert refused.returncode != 0
    assert 'counter metrics should have "_total" suffix' in refused.stdout + refused.stderr


def test_jaeger_gives_back_the_span_it_was_sent(jaeger: Jaeger) -> None:
    provider = TracerProvider(resource=Resource({"service.name": "harness"}))
    exporter = OTLPSpanExporter(f"{jaeger.otlp}/v1/traces")
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("harness")
    with (
        tracer.start_as_current_span("checkout"),
        tracer.start_as_current_span("reserve", attributes={"items": 2}) as sent,
    ):
        sent.add_event("first")
        sent.add_event("second", {"shelf": "B"})
        sent.set_status(StatusCode.ERROR)
    provider.shutdown()

    jaeger.wait_for_spans("harness", lambda spans: len(spans) == 2)
    (trace,) = jaeger.wait_for_traces("harness", 1)
    parent, span = trace
    assert (parent.name, span.name) == ("checkout", "reserve")
    assert parent.parent_id is None
    assert span.parent_id == parent.span_id
    assert span.attributes["items"] == 2
    assert [event.name for event in span.events] == ["first", "second"]
    assert span.events[1].attributes == {"shelf": "B"}
    assert span.status == "ERROR"
    assert (parent.status, parent.attributes["span.kind"]) == ("UNSET", "internal")
    assert parent.start_us <= span.start_us
    assert parent.duration_us >= span.duration_us
    assert "harness" in jaeger.services()
    assert jaeger.traces("harness", operation="reserve", attributes={"items": "2"}) == [trace]
    assert jaeger.traces("harness", operation="reserve", attributes={"items": "3"}) == []


def test_postgres_answers_is_stopped_refuses_and_answers_again(postgres: Postgres) -> None:
    postgres.execute("CREATE TABLE orders (id int)")
    postgres.execute("INSERT INTO orders VALUES (7)")
    assert postgres.execute("SELECT id FROM orders") == [(7,)]
    port = postgres.port

    postgres.stop()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        postgres.execute("SELECT 1")

    postgres.start()
    assert postgres.port == port
    assert postgres.execute("SELECT id FROM orders") == [(7,)]
    postgres.stop("immediate")  # and is left so: the next test finds it running and empty


def test_postgres_is_running_and_empty_for_each_test(postgres: Postgres) -> None:
    tables = postgres.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert tables == []


@pytest.mark.parametrize("unix_socket", [False, True])
def test_sqlalchemy_reaches_postgres_by_its_url(postgres: Postgres, unix_socket: bool) -> None:
    from sqlalchemy import create_engine, text

    engine = create_engine(postgres.url("psycopg", unix_socket=unix_socket))
    with engine.connect() as connection:
        came_from = connection.scalar(text("SELECT host(inet_client_addr())"))
    engine.dispose()
    assert came_from == (None if unix_socket else HOST)


def test_a_restart_throws_off_the_clients_of_postgres(postgres: Postgres) -> None:
    with psycopg.connect(postgres.url().replace("+psycopg", "")) as connection:
        connection.execute("SELECT 1")
        postgres.restart()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    assert postgres.execute("SELECT 1") == [(1,)]


def test_pgbouncer_shares_a_connection_and_refuses_a_client_too_many(postgres: Postgres) -> None:
    with pgbouncer_running(postgres, DATABASE, connections=1) as port:
        address = f"host={HOST} port={port} user={USER} dbname={DATABASE}"

        def first() -> psycopg.Connection | None:
            """A client, once PgBouncer has taken note that the one that looked for it is gone."""
            try:
                return psycopg.connect(address)
            except psycopg.OperationalError:
                return None

        with wait_for(first, bool, "a client to be taken") as connection:
            assert connection.execute("SELECT 1").fetchall() == [(1,)]
            with pytest.raises(psycopg.OperationalError, match="max_client_conn"):
                psycopg.connect(address)


def test_chromium_runs_the_script_of_a_page(chromium: Chromium) -> None:
    page = "data:text/html,<p id=a>before</p><script>a.textContent='af'+'ter'</script>"
    shown = subprocess.run(
        chromium.command("--dump-dom", page),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=True,
    )
    assert '<p id="a">after</p>' in shown.stdout


def test_a_missing_server_skips_the_test_and_fails_it_in_ci(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="tests/servers/install"):
        needs("Oracle", None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="tests/servers/install"):
        needs("Oracle", None)


def test_a_server_that_cannot_start_fails_the_test_with_what_it_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        running(["sh", "-c", "echo port is taken; exit 3"], log) as process,
        pytest.raises(pytest.fail.Exception, match=r"(?s)ended with 3 .*port is taken"),
    ):
        wait_until_ready(process, log, lambda: False, "The server")


def test_a_server_is_gone_when_its_test_is_over(tmp_path: Path) -> None:
    with running(["sleep", "600"], tmp_path / "log") as process:
        pass
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
