"""A real OpenTelemetry Collector that runs the configuration under deploy/."""

from __future__ import annotations

import json
import os
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from servers.processes import HOST, free_port, needs, running, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSION = "0.140.0"
CONFIGURATION = Path(__file__).parents[2] / "deploy" / "collector" / "collector.yaml"


@dataclass(frozen=True)
class Collector:
    """A running Collector.

    Attributes:
        otlp: Where it takes OTLP over HTTP.
        metrics: The host and port where it shows what it was sent.
    """

    otlp: str
    metrics: str

    def page(self) -> str:
        """What it shows to a Prometheus, in the format that one asks for."""
        asked = urllib.request.Request(
            f"http://{self.metrics}/metrics",
            headers={"Accept": "application/openmetrics-text;version=1.0.0"},
        )
        with urllib.request.urlopen(asked, timeout=10) as response:
            text: str = response.read().decode()
            return text


def binary() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "session-metrics-otel" / f"collector-{VERSION}"


@contextmanager
def collector_running(folder: Path, jaeger: str) -> Iterator[Collector]:
    """A Collector with the configuration as it is, but for addresses.

    Args:
        folder: Where its log goes.
        jaeger: The host and port where spans are taken, by OTLP over gRPC.
    """
    server = needs(f"The Collector {VERSION}", binary())
    grpc, http, metrics, own = (f"{HOST}:{free_port()}" for _ in range(4))
    reader = {"pull": {"exporter": {"prometheus": {"host": HOST, "port": int(own.split(":")[1])}}}}
    addresses = {
        "receivers": {
            "otlp": {"protocols": {"grpc": {"endpoint": grpc}, "http": {"endpoint": http}}}
        },
        "exporters": {"prometheus": {"endpoint": metrics}, "otlp/jaeger": {"endpoint": jaeger}},
        # Where it shows metrics of its own.
        "service": {"telemetry": {"metrics": {"readers": [reader]}}},
    }
    # A second file is laid over the first. JSON is YAML.
    over = folder / "addresses.yaml"
    over.write_text(json.dumps(addresses))
    log = folder / "collector.log"
    command = [server, f"--config={CONFIGURATION}", f"--config={over}"]
    with running(command, log) as process:
        collector = Collector(f"http://{http}", metrics)
        wait_until_ready(process, log, lambda: collector.page() is not None, "The Collector")
        yield collector
