"""``demo``: a small order service under traffic, with its sessions on /metrics and in traces."""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import sys
import threading
import time
from http.client import HTTPConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import make_server

from opentelemetry import trace
from prometheus_client import REGISTRY, start_http_server

from session_metrics_otel.web.live_page import LivePage

from .arguments import above_0
from .order_service import OrderService, QuietHandler, ThreadingServer, chance
from .starve import starve

if TYPE_CHECKING:
    from collections.abc import Iterator

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

HOST = "127.0.0.1"
METRICS_PORT = 9464
SERVICE_PORT = 8464
OUTAGE = 0.1

# What the traffic asks for, and how often: mostly fine, as in life.
MIX = (
    (40, "GET", "/orders"),
    (30, "POST", "/orders"),
    (15, "GET", "/orders/1"),
    (15, "POST", "/orders/1/more"),
    (3, "POST", "/orders/1/item"),
    (15, "GET", "/report"),
    (3, "GET", "/health"),
    (1, "GET", "/forgetful"),
)


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "demo",
        help="run an order service under traffic and look at its sessions",
        description=__doc__,
        epilog="Spans are sent by OTLP if OTEL_EXPORTER_OTLP_ENDPOINT is set.",
    )
    parser.add_argument(
        "--seconds", type=above_0, help="stop after so many seconds (default: on Ctrl-C)"
    )
    parser.add_argument(
        "--requests", type=int, help="stop the traffic, but not the demo, after so many requests"
    )
    parser.add_argument(
        "--rate", type=above_0, default=20.0, help="requests per second (default: 20)"
    )
    parser.add_argument(
        "--host", default=HOST, help="the address to listen on; 0.0.0.0 in a container"
    )
    parser.add_argument(
        "--port", type=int, default=SERVICE_PORT, help="the service's port; 0: any free one"
    )
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=METRICS_PORT,
        help="the port of /metrics; 0: any free one",
    )
    parser.add_argument(
        "--truth", type=_in_a_folder, help="write the service's own counts here as JSON"
    )
    parser.add_argument("--seed", type=int, help="make the traffic the same each time")
    parser.add_argument(
        "--starve",
        action="store_true",
        help="exhaust a pool on purpose, print the report that names the holders, and stop",
    )
    parser.set_defaults(run=run)


def _in_a_folder(given: str) -> Path:
    path = Path(given)
    if not path.parent.is_dir():
        message = f"{given!r}: there is no folder {str(path.parent)!r}; make it first"
        raise argparse.ArgumentTypeError(message)
    return path


def run(options: argparse.Namespace) -> None:
    """Run the demo until its time is up, or Ctrl-C or SIGTERM."""
    if options.starve:
        starve()
        return
    chance.seed(options.seed)
    provider = _send_spans()
    stop = threading.Event()
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, lambda *_: stop.set())
    with TemporaryDirectory(prefix="session-metrics-demo-") as folder:
        service = OrderService(Path(folder), OUTAGE)
        classes = {"server_class": ThreadingServer, "handler_class": QuietHandler}
        server = _listen(
            "--port",
            options.port,
            lambda port: make_server(options.host, port, _with_page(service), **classes),
        )
        metrics, _ = _listen(
            "--metrics-port",
            options.metrics_port,
            lambda port: start_http_server(port, options.host),
        )
        print(f"Service:  http://{HOST}:{server.server_port}/orders")
        print(f"Metrics:  http://{HOST}:{metrics.server_port}/metrics")
        print(f"Page:     http://{HOST}:{server.server_port}/sessionz")
        print(f"Spans:    {os.environ.get('OTEL_EXPORTER_OTLP_ENDPOINT') or _NO_SPANS}")
        print("Stop with Ctrl-C.", flush=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        traffic = threading.Thread(target=_drive, args=(server.server_port, options, service, stop))
        traffic.start()
        try:
            _watch(options, stop, traffic)
        finally:
            stop.set()
            traffic.join()
            server.shutdown()
            server.server_close()
            metrics.shutdown()
            metrics.server_close()
            service.close()
            if provider is not None:
                provider.shutdown()
    print("\nStopped.")


_NO_SPANS = "none (set OTEL_EXPORTER_OTLP_ENDPOINT, such as http://127.0.0.1:4318, to have them)"


def _with_page(service: OrderService) -> Any:
    """The service, and the live page beside it."""
    page = LivePage()

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Any:
        inside = page.wsgi if environ["PATH_INFO"].startswith("/sessionz") else service
        return inside(environ, start_response)

    return application


def _listen(option: str, port: int, start: Any) -> Any:
    try:
        return start(port)
    except (OSError, OverflowError) as refusal:
        sys.exit(
            f"Cannot listen on port {port} ({refusal}). Choose another: {option} 0 for any. "
            "And --host has to be an address of this machine."
        )


def _send_spans() -> Any:
    """Set tracing up where the environment says where spans go. Returns the provider, or None."""
    if not os.environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        sys.exit("OTEL_EXPORTER_OTLP_ENDPOINT is set: pip install 'session-metrics-otel[otlp]'.")
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    name = os.environ.get("OTEL_SERVICE_NAME", "order-service")
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    return provider


def _drive(
    port: int, options: argparse.Namespace, service: OrderService, stop: threading.Event
) -> None:
    """Send requests until told to stop or there were enough; then write what they came to."""
    try:
        for sent, (method, path) in enumerate(_requests()):
            if sent == options.requests or stop.wait(chance.expovariate(options.rate)):
                return
            connection = HTTPConnection(HOST, port, timeout=30)
            try:
                connection.request(method, path, headers={"X-Request-Id": f"request-{sent}"})
                connection.getresponse().read()
            except OSError:
                if stop.is_set():
                    return
                raise
            finally:
                connection.close()
    finally:
        _write_truth(options, service)


def _requests() -> Iterator[tuple[str, str]]:
    yield "POST", "/orders"  # so that there is an order 1
    weights = [weight for weight, *_ in MIX]
    while True:
        _, method, path = chance.choices(MIX, weights)[0]
        yield method, path


def _watch(options: argparse.Namespace, stop: threading.Event, traffic: threading.Thread) -> None:
    """Draw the summary every second until it is time to stop, and once more when all is done."""
    ends = math.inf if options.seconds is None else time.monotonic() + options.seconds
    while not stop.wait(min(1, max(0, ends - time.monotonic()))):
        if sys.stdout.isatty():
            print(f"\r{summary():<100}", end="", flush=True)
        if time.monotonic() >= ends:
            break
    stop.set()
    traffic.join()
    print(f"\n{summary()}" if sys.stdout.isatty() else summary())


def _write_truth(options: argparse.Namespace, service: OrderService) -> None:
    if options.truth is not None:
        # Whole or not at all: whoever waits for the file reads it as soon as it is there.
        scratch = options.truth.with_suffix(".part")
        scratch.write_text(json.dumps(service.truth.sessions))
        scratch.replace(options.truth)


def summary() -> str:
    """One line of what /metrics says now."""
    totals: dict[str, float] = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            if sample.name.startswith("sqlalchemy_session"):
                label = sample.labels.get("outcome", "")
                key = f"{sample.name}.{label}"
                totals[key] = totals.get(key, 0) + sample.value
    succeeded = totals.get("sqlalchemy_session_creations_total.success", 0)
    failed = totals.get("sqlalchemy_session_creations_total.failure", 0)
    rate = 100 * succeeded / ((succeeded + failed) or 1)
    return (
        f"sessions created {succeeded + failed:.0f}, {rate:.1f} % successfully"
        f" | open {totals.get('sqlalchemy_sessions.', 0):.0f}"
        f" | queries {totals.get('sqlalchemy_session_queries_total.', 0):.0f}"
        f" | committed {totals.get('sqlalchemy_session_transactions_total.committed', 0):.0f}"
        f" | rolled back {totals.get('sqlalchemy_session_transactions_total.rolled_back', 0):.0f}"
        f" | leaked {totals.get('sqlalchemy_session_leaks_total.', 0):.0f}"
    )
