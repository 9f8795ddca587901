"""A real Prometheus that scrapes what a test gives it."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from servers.processes import HOST, free_port, get_json, needs, running, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Prometheus:
    address: str

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        answer = get_json(f"{self.address}/api/v1/query?{urlencode({'query': expression})}")
        return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]

    def value(self, expression: str) -> float | None:
        """The one number that ``expression`` comes to, or None where it comes to nothing."""
        rows = self.query(expression)
        assert len(rows) <= 1, rows
        return rows[0][1] if rows else None

    def exemplars(self, expression: str, start: float, end: float) -> list[Any]:
        asked = urlencode({"query": expression, "start": start, "end": end})
        data: list[Any] = get_json(f"{self.address}/api/v1/query_exemplars?{asked}")["data"]
        return data

    def wait_for(self, expression: str, holds: Callable[[float | None], bool]) -> float:
        answer: float = wait_for(lambda: self.value(expression), holds, expression)
        return answer


@contextmanager
def prometheus_scraping(targets: dict[str, str], folder: Path) -> Iterator[Prometheus]:
    """Prometheus scraping ``targets``: job name -> host:port, once a second."""
    server = needs("Prometheus", shutil.which("prometheus"))
    jobs = [
        {"job_name": job, "static_configs": [{"targets": [target]}]}
        for job, target in targets.items()
    ]
    config = folder / "prometheus.yml"
    # JSON is YAML.
    config.write_text(json.dumps({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}))
    port = free_port()
    command = [
        server,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
    ]
    with running(command, folder / "prometheus.log"):
        address = f"http://{HOST}:{port}"
        prometheus = Prometheus(address)
        wait_for(lambda: prometheus.query("vector(1)"), bool, "Prometheus to be ready")
        yield prometheus
