"""``doctor``."""

from __future__ import annotations

import sys
import threading
from wsgiref.simple_server import make_server

import pytest
from prometheus_client import CollectorRegistry, make_wsgi_app

from session_metrics_otel import SessionMetrics, prometheus, uninstrument
from session_metrics_otel.cli import main

APPLICATION = """
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from session_metrics_otel import instrument

engine = create_engine("sqlite://")
Forgotten = sessionmaker(engine)
Orders = sessionmaker(engine)
instrument(Orders, name="orders")
number = 1
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
        uninstrument(shop.Orders)
        shop.engine.dispose()


class TestAnApplication:
    def test_instrumented(self, doctor):
        code, said = doctor("shop:Orders")
        assert code == 0
        assert "well  shop:Orders is instrumented: its series have factory='orders'" in said
        assert "note  no tracer provider is set" in said

    def test_not_instrumented(self, doctor):
        code, said = doctor("shop:Forgotten")
        assert code == 1
        assert "MEND  shop:Forgotten is not instrumented" in said
        assert "Call instrument(Forgotten, name=...)" in said

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
            ("http://127.0.0.1:1/metrics", "cannot be read"),
            ("ftp://127.0.0.1/", "is no address of /metrics"),
        ],
    )
    def test_what_cannot_be_looked_at(self, doctor, target, says):
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

    def test_without(self, serve, doctor):
        code, said = doctor(serve(CollectorRegistry()))
        assert code == 1
        assert "MEND  no sessions are counted here" in said
