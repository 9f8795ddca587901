"""Workers that are recycled: the totals of all are exact, those of whichever answers are not."""

from __future__ import annotations

import re
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from servers.incident_process import PROGRAMS
from servers.processes import HOST, free_port, running, wait_for
from servers.test_incidents import RULES, firing

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.conftest import StartPrometheus
    from servers.prometheus_server import Prometheus

HOW = ("broken", "mended")
SECONDS = 600  # that it may be scraped: more than the test takes on any machine
SOLD = re.compile(r"\[ *([\d.]+) s\] sold (\d+)\n")
COUNTED = 'sqlalchemy_session_creations_total{{job="{}",outcome="success"}}'


@pytest.fixture
def logs(tmp_path: Path) -> Iterator[dict[str, tuple[str, Path]]]:
    """Of each way it runs, where it is scraped and its log."""
    found = {how: (f"{HOST}:{free_port()}", tmp_path / f"{how}.log") for how in HOW}
    with ExitStack() as programs:
        for how, (target, log) in found.items():
            command = [sys.executable, str(PROGRAMS / "recycled_workers.py"), f"--{how}"]
            command += ["--port", target.partition(":")[2], "--seconds", str(SECONDS)]
            programs.enter_context(running(command, log, {"TMPDIR": str(tmp_path)}))
        yield found


def sold(log: Path) -> int:
    """How many requests the program says were answered."""
    said: re.Match[str] = wait_for(
        lambda: SOLD.search(log.read_text()), bool, f"{log} to end", SECONDS
    )
    return int(said[2])


def test_totals_are_exact_once_it_is_mended(
    logs: dict[str, tuple[str, Path]],
    prometheus_server: StartPrometheus,
    request: pytest.FixtureRequest,
) -> None:
    targets = {how: logs[how][0] for how in HOW}
    prometheus: Prometheus = prometheus_server(targets, rule_files=[RULES])
    began = time.time()
    truth = {how: sold(log) for how, (_, log) in logs.items()}
    assert truth == dict.fromkeys(HOW, 300)

    prometheus.wait_for(COUNTED.format("mended"), lambda n: n == truth["mended"])
    assert prometheus.value(f"resets({COUNTED.format('mended')}[5m])") == 0
    prometheus.wait_for(f"resets({COUNTED.format('broken')}[5m])", bool)
    highest = prometheus.value(f"max_over_time({COUNTED.format('broken')}[5m])")
    # No worker lives to count more than it may answer.
    assert highest is not None
    assert highest <= 25

    # Nobody buys any more. One worker at random still looks like sales: each fall, as Prometheus
    # takes it for a reset, counts all that the next worker has sold as sold just now.
    over = time.time()

    def sold_since(how: str) -> float | None:
        """What `increase` makes of the seconds that are past, of which none is the load's."""
        window = int(time.time() - over) - 2
        return (
            prometheus.value(f"increase({COUNTED.format(how)}[{window}s])") if window > 4 else None
        )

    naive = wait_for(lambda: sold_since("broken"), bool, "sales where there are none")
    assert sold_since("mended") == 0

    since = wait_for(lambda: firing(prometheus, "broken"), bool, "the alert")
    assert since.keys() == {"SessionCountersReset"}
    assert not firing(prometheus, "mended")
    alerted = since["SessionCountersReset"] - began

    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    resets = prometheus.value(f"resets({COUNTED.format('broken')}[5m])")
    terminal.write_line("")
    terminal.write_line(
        f"recycled_workers | {truth['broken']} sold | one worker at random: {highest:.0f} at most, "
        f"{resets:.0f} resets, {naive:.0f} sold after the last | all workers: {truth['mended']}, "
        f"no reset, 0 sold after the last | SessionCountersReset {alerted:.0f} s"
    )
