"""The demo as a user runs it: a process of its own."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from servers.processes import PATIENCE, running, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@dataclass(frozen=True)
class Demo:
    service: str
    metrics: str
    _truth: Path

    def truth(self, timeout: float = 5 * PATIENCE) -> dict[str, int]:
        """What the service's own books say, once its traffic has come to an end.

        It is asked one thing after the other: a slow machine takes several times as long.
        """
        counts: dict[str, int] = wait_for(
            lambda: json.loads(self._truth.read_text()), bool, "the demo's traffic to end", timeout
        )
        return counts


@contextmanager
def demo_running(
    folder: Path,
    *,
    requests: int,
    environment: dict[str, str] | None = None,
    program: str = "session_metrics_otel",
    metrics_port: int = 0,
) -> Iterator[Demo]:
    """The demo on free ports, with its traffic ending after ``requests``.

    ``program`` is the module that is run: its command line is the demo's. ``metrics_port`` is for
    whoever has to be told of its /metrics before it begins.
    """
    truth = folder / "truth.json"
    command = [sys.executable, "-u", "-m", program, "demo"]
    command += ["--port", "0", "--metrics-port", str(metrics_port), "--rate", "60", "--seed", "7"]
    command += ["--requests", str(requests), "--truth", str(truth)]
    log = folder / "demo.log"
    with running(command, log, environment):
        found = wait_for(
            lambda: re.findall(r"http://(127[\d.:]+)/(?:orders|metrics)", log.read_text()),
            lambda addresses: len(addresses) == 2,
            "the demo to print its addresses",
        )
        yield Demo(found[0], found[1], truth)
