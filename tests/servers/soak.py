"""``make soak``: the demo with faults under a real Prometheus, whose answers are held to its books.

Reports find their replica gone, orders are refused and overtaken, handlers forget their sessions,
and the spans go to a collector that is not there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from servers.demo_process import demo_running
from servers.processes import HOST, free_port
from servers.prometheus_server import prometheus_scraping

RATE = 60  # requests a second, as demo_running asks of the demo


class Row(NamedTuple):
    what: str
    truth: int
    counted: float | None

    @property
    def holds(self) -> bool:
        return self.counted == self.truth


CREATIONS = "sqlalchemy_session_creations_total"
LEAKS = "sqlalchemy_session_leaks_total"
# What is asked of Prometheus, and the entry of the books that it has to equal.
ASKED = {
    f'sum({CREATIONS}{{factory="orders",outcome="success"}})': "orders.success",
    f'sum({CREATIONS}{{factory="orders",outcome="failure"}})': None,
    f'sum({CREATIONS}{{factory="orders",outcome="unused"}})': "orders.unused",
    f'sum({CREATIONS}{{factory="reports",outcome="success"}})': "reports.success",
    f'sum({CREATIONS}{{factory="reports",outcome="failure"}})': "reports.failure",
    f'sum({CREATIONS}{{factory="reports",outcome="unused"}})': None,
    f'sum({LEAKS}{{reason="garbage_collected"}}) or vector(0)': "orders.leak",
    "sum(sqlalchemy_sessions)": None,
    "sum(sqlalchemy_session_telemetry_faults_total) or vector(0)": None,
}


def soak(seconds: float, folder: Path) -> list[Row]:
    """Run the demo's traffic for about so long, and compare when it is over."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{HOST}:{free_port()}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    requests = int(seconds * RATE)
    with (
        demo_running(folder, requests=requests, environment=environment) as demo,
        prometheus_scraping({"demo": demo.metrics}, folder) as prometheus,
    ):
        truth = demo.truth(timeout=60 + 4 * seconds)
        at = prometheus.scraped_after(time.time())
        return [
            Row(asked, truth.get(entry, 0) if entry else 0, prometheus.value(asked, at))
            for asked, entry in ASKED.items()
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, help="how long (default: 1)")
    minutes = parser.parse_args().minutes
    missing = [name for name in ("prometheus",) if shutil.which(name) is None]
    if missing:
        sys.exit(f"{missing[0]} is not on this machine: tests/servers/install puts it there")
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        rows = soak(minutes * 60, Path(folder))
    print(f"{'books':>8} {'counted':>8}        asked of Prometheus")
    for row in rows:
        counted = "nothing" if row.counted is None else f"{row.counted:.0f}"
        print(f"{row.truth:>8} {counted:>8} {'' if row.holds else 'WRONG':>6} {row.what}")
    wrong = sum(not row.holds for row in rows)
    print(f"Verdict: {wrong} of {len(rows)} counts are wrong." if wrong else "Verdict: exact.")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
