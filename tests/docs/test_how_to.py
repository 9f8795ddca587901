"""The how-to pages: each program that a page is made of does what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pages import DOCS, blocks, run, write_files

if TYPE_CHECKING:
    from collections.abc import Iterator

SERVED = 'sqlalchemy_session_creations_total{factory="orders",outcome="success"} 1.0'
ROUTED = 'sqlalchemy_route_sessions_total{factory="orders",http_route="%s"} 1.0'


@contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """An HTTP server that takes note of what it is sent: its address, and (path, body) of each."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_PUT = do_POST  # noqa: N815 - http.server's name

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def metric_names(received: list[tuple[str, bytes]]) -> set[str]:
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
    )

    return {
        metric.name
        for path, body in received
        if path == "/v1/metrics"
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def span_names(received: list[tuple[str, bytes]]) -> list[str]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    return [
        span.name
        for path, body in received
        if path == "/v1/traces"
        for resource in ExportTraceServiceRequest.FromString(body).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_fastapi(tmp_path):
    pytest.importorskip("fastapi")
    pytest.importorskip("httpx")
    write_files("how-to/fastapi", tmp_path)
    program = """
import asyncio, httpx
from app import app, engine

async def main():
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        for path in ("/orders/7", "/ready/", "/metrics/"):
            answer = await client.get(path)
            print(answer.status_code, answer.text)
    await engine.dispose()

asyncio.run(main())
"""
    said = run(tmp_path, program)
    assert said[0] == "200 7"
    assert said[1].startswith("200 ")
    assert {SERVED, ROUTED % "/orders/{order_id}"} <= set(said)


@pytest.mark.parametrize(
    ("page", "needed"), [("flask", "flask"), ("flask-sqlalchemy", "flask_sqlalchemy")]
)
def test_flask(tmp_path, page, needed):
    pytest.importorskip(needed)
    write_files(f"how-to/{page}", tmp_path)
    program = """
from prometheus_client import generate_latest
from app import app
client = app.test_client()
print(client.get("/orders/7").text)
for path in ("/ready/", "/metrics/"):
    answer = client.get(path)
    print(answer.status_code)
print(generate_latest().decode())
"""
    said = run(tmp_path, program)
    mounted = "200" if page == "flask" else "404"
    assert said[:3] == ["7", mounted, mounted]
    assert {SERVED, ROUTED % "/orders/<int:order_id>"} <= set(said)


def test_sqlmodel(tmp_path):
    pytest.importorskip("sqlmodel")
    write_files("how-to/sqlmodel", tmp_path)
    program = """
import app
from prometheus_client import generate_latest
print(generate_latest().decode())
"""
    said = run(tmp_path, program)
    assert said[0] == "tea"
    assert SERVED in said


def test_push_gateway(tmp_path):
    write_files("how-to/scripts-and-jobs", tmp_path)
    with receiver() as (address, received):
        run(tmp_path, "import nightly", PUSHGATEWAY=address)
    ((path, body),) = received
    assert path == "/metrics/job/nightly"
    assert SERVED.replace("orders", "nightly") in body.decode().splitlines()


@pytest.mark.parametrize(
    ("page", "module", "factory"),
    [("scripts-and-jobs", "nightly_otlp", "nightly"), ("collector", "app", "orders")],
)
def test_otlp(tmp_path, page, module, factory):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    write_files(f"how-to/{page}", tmp_path)
    with receiver() as (address, received):
        run(tmp_path, f"import {module}", OTEL_EXPORTER_OTLP_ENDPOINT=address)
    assert {"sqlalchemy.session.creations", "sqlalchemy.session.duration"} <= metric_names(received)
    sessions = Counter(span_names(received))
    assert (sessions[f"session {factory}"], sessions["SELECT"]) == (1, 1)


def test_without_a_line_of_code(tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    folder = Path(sys.executable).parent
    if not (folder / "opentelemetry-instrument").exists():
        pytest.skip("opentelemetry-instrument is not installed")
    (tmp_path / "app.py").write_text(
        "from sqlalchemy import create_engine, text\n"
        "from sqlalchemy.orm import Session\n"
        "with Session(create_engine('sqlite://')) as session:\n"
        "    session.execute(text('select 1'))\n"
    )
    (block,) = [block for block in blocks("tracing") if block.language == "sh"]
    install, command = block.text.splitlines()
    assert install == "pip install 'session-metrics-otel[autoload,otlp]'"
    with receiver() as (address, received):
        surroundings = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
        surroundings["OTEL_EXPORTER_OTLP_ENDPOINT"] = address
        subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=os.environ | surroundings,
            check=True,
            timeout=60,
        )
    assert "sqlalchemy.session.creations" in metric_names(received)
    assert "session default" in span_names(received)


def test_kubernetes(tmp_path):
    yaml = pytest.importorskip("yaml")
    write_files("how-to/kubernetes", tmp_path)
    template = yaml.safe_load((tmp_path / "deployment.yaml").read_text())["spec"]["template"]
    folder = DOCS.parent / "deploy" / "kubernetes"
    monitor = yaml.safe_load((folder / "podmonitor.yaml").read_text())["spec"]
    assert monitor["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert monitor["namespaceSelector"] == {"any": True}
    assert "app.kubernetes.io/name" in template["metadata"]["labels"]  # of which the job is made
    (port,) = template["spec"]["containers"][0]["ports"]
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == [port["name"]]
    text = (tmp_path / "metrics_port.py").read_text()
    assert f"start_http_server({port['containerPort']})" in text
    program = text.replace(str(port["containerPort"]), "0, '127.0.0.1'")
    assert program != text
    assert run(tmp_path, program) == []


def test_nothing_on_the_pages_is_left_out():
    tested = {
        *("fastapi", "flask", "flask-sqlalchemy", "sqlmodel", "scripts-and-jobs", "collector"),
        *("kubernetes", "celery", "gunicorn"),  # the last two: tests/servers/test_how_to.py
        "fleets",  # tests/servers/test_fleets.py
    }
    assert {page.stem for page in (DOCS / "how-to").glob("*.md")} == tested
    for page in tested:
        found = blocks(f"how-to/{page}")
        assert found
        assert [b for b in found if b.file is None and b.language != "sh"] == []


def test_links_into_the_tree_lead_somewhere():
    for page in (DOCS / "how-to").glob("*.md"):
        for named in re.findall(r"`(deploy/[\w./-]+)`", page.read_text()):
            assert (DOCS.parent / named).exists(), (page.name, named)
