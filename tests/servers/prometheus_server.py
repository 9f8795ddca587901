"""A real Prometheus that scrapes what a test gives it."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from servers.processes import (
    HOST,
    PATIENCE,
    free_port,
    get_json,
    needs,
    running,
    wait_for,
    wait_until_ready,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path


@dataclass(frozen=True)
class Prometheus:
    address: str

    def query(
        self, expression: str, time: float | None = None
    ) -> list[tuple[dict[str, str], float]]:
        """The instant vector that ``expression`` is at ``time`` (Unix seconds; None for now)."""
        asked = {"query": expression}
        if time is not None:
            asked["time"] = str(time)
        answer = get_json(f"{self.address}/api/v1/query?{urlencode(asked)}")
        return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]

    def value(self, expression: str, time: float | None = None) -> float | None:
        """The one number that ``expression`` comes to, or None where it comes to nothing."""
        rows = self.query(expression, time)
        assert len(rows) <= 1, rows
        return rows[0][1] if rows else None

    def scraped_after(self, moment: float) -> float:
        """A time at which the newest that is known of every target was scraped after ``moment``.

        A scrape that takes longer than a second fails, and ends all series of its target until the
        next: whoever asks of that time, and not of now, is spared those that come after it.
        """
        oldest, newest = "min(timestamp(up))", "max(timestamp(up))"
        return self.wait_for(f"{newest} and {oldest} > {moment} and min(up) == 1", bool)

    def exemplars(self, expression: str, start: float, end: float) -> list[Any]:
        asked = urlencode({"query": expression, "start": start, "end": end})
        data: list[Any] = get_json(f"{self.address}/api/v1/query_exemplars?{asked}")["data"]
        return data

    def rules(self) -> list[dict[str, Any]]:
        """Every rule loaded, with its health and last error, in the order of its files."""
        groups = get_json(f"{self.address}/api/v1/rules")["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts that are pending or firing."""
        alerts: list[dict[str, Any]] = get_json(f"{self.address}/api/v1/alerts")["data"]["alerts"]
        return alerts

    def wait_for(
        self,
        expression: str,
        holds: Callable[[float | None], bool],
        timeout: float = PATIENCE,
    ) -> float:
        answer: float = wait_for(lambda: self.value(expression), holds, expression, timeout)
        return answer


@dataclass(frozen=True)
class Promtool:
    path: str

    def __call__(self, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run ``promtool`` with ``given`` on its standard input."""
        return subprocess.run(
            [self.path, *arguments],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )


def installed_promtool() -> Promtool:
    return Promtool(needs("promtool", shutil.which("promtool")))


@contextmanager
def prometheus_scraping(
    targets: Mapping[str, str | Sequence[str]], folder: Path, *, rule_files: Sequence[Path] = ()
) -> Iterator[Prometheus]:
    """Prometheus scraping ``targets``: job name -> host:port, or several, once a second."""
    jobs = [
        {
            "job_name": job,
            "static_configs": [{"targets": [given] if isinstance(given, str) else list(given)}],
        }
        for job, given in targets.items()
    ]
    # JSON is YAML.
    text = json.dumps(
        {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(path.resolve()) for path in rule_files],
            "scrape_configs": jobs,
        }
    )
    with prometheus_with(text, folder) as prometheus:
        yield prometheus


@contextmanager
def prometheus_with(configuration: str, folder: Path, *flags: str) -> Iterator[Prometheus]:
    """Prometheus with that text as its configuration file."""
    server = needs("Prometheus", shutil.which("prometheus"))
    config = folder / "prometheus.yml"
    config.write_text(configuration)
    port = free_port()
    command = [
        server,
        f"--config.file={config}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{port}",
        "--enable-feature=exemplar-storage",
        "--log.level=warn",
        *flags,
    ]
    log = folder / "prometheus.log"
    with running(command, log) as process:
        address = f"http://{HOST}:{port}"
        prometheus = Prometheus(address)
        wait_until_ready(process, log, lambda: bool(prometheus.query("vector(1)")), "Prometheus")
        yield prometheus
