"""Incident 7: many workers that are recycled, of which any one answers a scrape.

    python examples/incidents/recycled_workers.py --broken

Each worker counts for itself, and begins again after ``max_requests``: what Prometheus reads goes
up and down, which it takes for resets. The load stops, so that all that was counted can be read.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app, multiprocess
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from session_metrics_otel import instrument

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
REQUESTS = 300

# What gunicorn reads, by `-c python:recycled_workers`.
workers = 4
max_requests = 25

new_session = sessionmaker(create_engine("sqlite://"))
instrument(new_session, name="orders")
registry = REGISTRY
if FOLDER in os.environ:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
metrics = make_wsgi_app(registry)


def child_exit(_server: object, worker: Any) -> None:
    if FOLDER in os.environ:
        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    if environ["PATH_INFO"] == "/metrics":
        shown: Iterable[bytes] = metrics(environ, start_response)
        return shown
    with new_session() as session:
        session.execute(text("select 1"))
    start_response("200 OK", [])
    return [b"sold"]


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--broken", action="store_true", help="the outage")
    which.add_argument("--mended", action="store_true", help="the same traffic after the repair")
    parser.add_argument("--seconds", type=float, default=15, help="how long (15)")
    parser.add_argument("--port", type=int, default=8000, help="of the application (8000)")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # so that gunicorn is ended as well
    bind = f"127.0.0.1:{chosen.port}"
    command = [sys.executable, "-m", "gunicorn", "-c", "python:recycled_workers", "-b", bind]
    with TemporaryDirectory() as folder:
        more = {FOLDER: folder} if chosen.mended else {}
        gunicorn = subprocess.Popen(  # noqa: S603 - the command is this program's own
            [*command, "--log-level", "critical", "recycled_workers:app"],
            cwd=Path(__file__).parent, env={**os.environ, **more},
        )  # fmt: skip
        try:
            began = time.time()
            ends = began + chosen.seconds
            sold = 0
            while sold < REQUESTS and time.time() < ends:
                try:
                    with urllib.request.urlopen(f"http://{bind}/order", timeout=30) as response:
                        sold += response.read() == b"sold"
                except OSError:  # not up yet
                    pass
                time.sleep(0.02)
            print(f"[{time.time() - began:5.1f} s] sold {sold}", file=sys.stderr)
            time.sleep(max(ends - time.time(), 0))
        finally:
            gunicorn.terminate()
            gunicorn.wait()


if __name__ == "__main__":
    run()
