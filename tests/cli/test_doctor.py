"""``doctor``."""

from __future__ import annotations

import socket
import sys
import threading
from wsgiref.simple_server import make_server

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from session_metrics_otel import SessionMetrics, prometheus, uninstrument
from session_metrics_otel.cli import main

APPLICATION = """
from sqlalchemy import create_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from session_metrics_otel import instrument

engine = create_engine("sqlite://")
Forgotten = sessionmaker(engine)
Orders = sessionmaker(engine)
instrument(Orders, name="orders")
number = 1

observed = create_engine("sqlite://")
instrument(observed, name="observed")
ByEngine = sessionmaker(observed)
Scoped = scoped_session(ByEngine)


class Own(Session):
    pass


instrument(Own, name="own")
ByClass = sessionmaker(engine, class_=Own)
"""


@pytest.fixture
def doctor(tmp_path, monkeypatch, capsys):
    """Runs the command where the application is; its exit code, and all that it printed."""
    (tmp_path / "shop.py").write_text(APPLICATION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(target: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["doctor", target])
        return ended.value.code, "".join(capsys.readouterr())

    yield run
    shop = sys.modules.pop("shop", None)
    if shop is not None:
        for target in (shop.Orders, shop.observed, shop.Own):
            uninstrument(target)
        shop.engine.dispose()
        shop.observed.dispose()


class TestAnApplication:
    def test_instrumented(self, doctor):
        code, said = doctor("shop:Orders")
        assert code == 0
        assert "well  shop:Orders is instrumented: its series have factory='orders'" in said
        assert "note  no tracer provider is set" in said

    @pytest.mark.parametrize(
        ("target", "factory"),
        [("ByEngine", "observed"), ("Scoped", "observed"), ("ByClass", "own"), ("Own", "own")],
    )
    def test_whose_sessions_are_counted_by_their_engine_or_class(self, doctor, target, factory):
        code, said = doctor(f"shop:{target}")
        assert code == 0
        assert f"well  shop:{target} is instrumented: its series have factory={factory!r}" in said

    def test_not_instrumented(self, doctor):
        code, said = doctor("shop:Forgotten")
        assert code == 1
        assert "MEND  shop:Forgotten is not instrumented" in said
        assert "Call instrument(Forgotten, name=...) where it is made." in said
        assert "run this by it too" in said

    def test_a_provider_and_a_multi_process_directory(self, doctor, monkeypatch, tmp_path):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
        monkeypatch.setattr(trace, "get_tracer_provider", TracerProvider)
        code, said = doctor("shop:Orders")
        assert code == 0
        assert "well  a tracer provider is set" in said
        assert f"well  multi-process mode writes to {tmp_path}" in said

    def test_a_multi_process_directory_that_is_not_there(self, doctor, monkeypatch):
        monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", "none")
        code, said = doctor("shop:Orders")
        assert code == 1
        assert "PROMETHEUS_MULTIPROC_DIR is 'none'" in said

    @pytest.mark.parametrize(
        ("target", "says"),
        [
            ("shop", "neither an address nor module:attribute. Try myapp.db:Session."),
            ("shop:Nothing", "Cannot look at shop:Nothing"),
            ("nowhere:Orders", "No module named 'nowhere'"),
            ("shop:number", "Cannot instrument 1: give a sessionmaker"),
            (
                "broken:Orders",
                "importing broken ended with KeyError: 'DATABASE_URL'. Run this with",
            ),
            ("ending:Orders", "importing ending ended with SystemExit: 3. Run this with"),
            ("127.0.0.1:9464/metrics", "is no address. Give http://127.0.0.1:9464/metrics"),
            ("http://127.0.0.1:1/metrics", "cannot be read"),
            ("ftp://127.0.0.1/", "is no address of /metrics"),
            ("http://[::1/metrics", "cannot be read: Invalid IPv6 URL"),
            ("http://shop front/metrics", "cannot be read: URL can't contain control characters"),
        ],
    )
    def test_what_cannot_be_looked_at(self, doctor, tmp_path, target, says):
        (tmp_path / "broken.py").write_text("raise KeyError('DATABASE_URL')")
        (tmp_path / "ending.py").write_text("raise SystemExit(3)")
        code, said = doctor(target)
        assert code == 2
        assert says in said


class TestAnAddress:
    @pytest.fixture
    def serve(self):
        servers = []

        def start(registry: CollectorRegistry) -> str:
            server = make_server("127.0.0.1", 0, make_wsgi_app(registry))
            servers.append(server)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            return f"http://127.0.0.1:{server.server_port}/metrics"

        yield start
        for server in servers:
            server.shutdown()
            server.server_close()

    def test_with_sessions(self, serve, doctor):
        registry = CollectorRegistry()
        prometheus.register(registry)
        SessionMetrics(factory="orders").close_session()
        code, said = doctor(serve(registry))
        assert code == 0
        assert "well  sessions are counted, of the factories orders" in said
        assert "note  no pool is observed yet" in said
        assert "note  there are no exemplars" in said

    def test_with_pools_faults_and_exemplars(self, serve, doctor):
        class Ours(Collector):
            def collect(self):
                creations = CounterMetricFamily(
                    "sqlalchemy_session_creations", "", labels=["factory", "outcome"]
                )
                creations.add_metric(["orders", "success"], 3)
                yield creations
                yield GaugeMetricFamily("sqlalchemy_pools", "", 2)
                yield CounterMetricFamily("sqlalchemy_session_telemetry_faults", "", 4)
                durations = HistogramMetricFamily("sqlalchemy_session_duration_seconds", "")
                buckets = [("1.0", 1, Exemplar({"trace_id": "a" * 32}, 0.5)), ("+Inf", 1)]
                durations.add_metric([], buckets, 0.5)
                yield durations

        registry = CollectorRegistry()
        registry.register(Ours())
        code, said = doctor(serve(registry))
        assert code == 1
        # In multi-process mode, counters outlive the gauges of the workers that counted.
        assert "well  sessions are counted, of the factories orders" in said
        assert "well  2 pools are observed" in said
        assert "MEND  the instrumentation itself failed 4 times" in said
        assert "well  exemplars lead from the histograms to traces" in said

    def test_that_is_no_metrics_page_or_speaks_no_openmetrics(self, doctor):
        kind, body = "text/plain", b"sqlalchemy_pools 1\n"

        def application(_environ, start_response):
            start_response("200 OK", [("Content-Type", kind)])
            return [body]

        server = make_server("127.0.0.1", 0, application)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/metrics"
        _, said = doctor(address)
        assert "note  this address does not speak OpenMetrics" in said
        body = b"<html>"
        code, said = doctor(address)
        server.shutdown()
        server.server_close()
        assert code == 2
        assert "does not answer as /metrics does" in said

    def test_where_something_else_than_http_answers(self, doctor):
        with socket.create_server(("127.0.0.1", 0)) as database:

            def answer():
                connection, _ = database.accept()
                with connection:
                    connection.recv(1)
                    connection.sendall(b"E\0\0\0\r\n")

            threading.Thread(target=answer, daemon=True).start()
            code, said = doctor(f"http://127.0.0.1:{database.getsockname()[1]}/metrics")
        assert code == 2
        assert "cannot be read" in said

    def test_without(self, serve, doctor):
        code, said = doctor(serve(CollectorRegistry()))
        assert code == 1
        assert "MEND  no sessions are counted here" in said
