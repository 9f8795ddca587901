"""The demo's service with nothing wrong: python healthy_orders.py prints where its /metrics is."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from wsgiref.util import setup_testing_defaults

from prometheus_client import start_http_server

from session_metrics_otel.cli.order_service import OrderService

REQUESTS = [("POST", "/orders"), ("GET", "/orders"), ("GET", "/orders/1"), ("GET", "/report")]

with TemporaryDirectory() as folder:
    service = OrderService(Path(folder), outage=0)
    server, _ = start_http_server(0, "127.0.0.1")
    print(f"http://127.0.0.1:{server.server_port}/metrics", flush=True)
    for method, path in REQUESTS * 100_000:
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path}
        setup_testing_defaults(environ)
        service(environ, lambda *_: None)
        time.sleep(0.01)
