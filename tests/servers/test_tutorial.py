"""The tutorial, block by block, from an empty folder with the wheel that is released."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pages import Block, blocks

from servers.processes import free_port
from servers.prometheus_server import prometheus_with

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.jaeger_server import Jaeger
    from servers.packages import Distributions

MARK = "::: block"
PATIENCE = 600  # seconds, for pip most of all


def ports(text: str) -> list[str]:
    return re.findall(r"(?:127\.0\.0\.1:|--port )(\d+)", text)


def on_free_ports(page: list[Block], jaeger: Jaeger) -> list[Block]:
    """The page with each port replaced by one that is free, or by Jaeger's."""
    chosen = {
        "4318": str(urlsplit(jaeger.otlp).port),
        "16686": str(urlsplit(jaeger.address).port),
    }
    for block in page:
        for port in ports(block.text):
            chosen.setdefault(port, str(free_port()))
    each = re.compile(rf"\b({'|'.join(chosen)})\b")
    return [
        Block(block.language, each.sub(lambda found: chosen[found[1]], block.text))
        for block in page
    ]


def script_of(page: list[Block], folder: Path) -> str:
    """One shell script: files are written where they stand, and servers are waited for."""
    lines = ["set -euo pipefail", f"cd {folder}"]
    for number, block in enumerate(page):
        lines.append(f"echo '{MARK} {number}'")
        if block.language == "sh":
            lines.append(block.text)
            if block.text.rstrip().endswith("&"):
                (port,) = ports(block.text)
                answers = f"(exec 3<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null"
                lines.append(f"until {answers}; do sleep 0.1; done")
        elif block.file is not None:
            lines.append(f"cat > {block.file} <<'END OF FILE'\n{block.text}END OF FILE")
    return "\n".join(lines)


@contextmanager
def ran(script: str, folder: Path, environment: dict[str, str]) -> Iterator[dict[int, str]]:
    """What each block printed; the servers that the script started run on meanwhile."""
    said, complaint = folder / "said.txt", folder / "complaint.txt"
    with said.open("w") as out, complaint.open("w") as err:
        shell = subprocess.Popen(
            ["bash", "-c", script], stdout=out, stderr=err, env=environment, start_new_session=True
        )
    try:
        code = shell.wait(PATIENCE)
        assert code == 0, said.read_text() + complaint.read_text()
        parts = re.split(rf"{MARK} (\d+)\n", said.read_text())[1:]
        yield {int(number): text for number, text in zip(parts[::2], parts[1::2], strict=True)}
    finally:
        os.killpg(shell.pid, signal.SIGTERM)


def test_every_block(distributions: Distributions, jaeger: Jaeger, tmp_path: Path) -> None:
    page = on_free_ports(blocks("tutorial"), jaeger)
    known = {"sh", "text", "promql"}
    assert [block for block in page if block.language not in known and block.file is None] == []
    script = script_of(page, tmp_path)
    # The page waits a second longer than it takes a span to go out: here it has time to spare.
    environment = distributions.environment | {"OTEL_BSP_SCHEDULE_DELAY": "500"}
    with ran(script, tmp_path, environment) as said:
        for (number, command), (_, output) in pairwise(enumerate(page)):
            if output.language == "text":
                assert (command.language, said[number]) == ("sh", output.text)
        folder = tmp_path / "shop"
        (configuration,) = (block.text for block in page if block.file == "prometheus.yml")
        with prometheus_with(configuration, folder) as prometheus:
            (asked,) = (block.text for block in page if block.language == "promql")
            assert prometheus.wait_for(asked, lambda value: value is not None) == 1
            assert {rule["health"] for rule in prometheus.rules()} <= {"ok", "unknown"}
            assert len(prometheus.rules()) > 0
    (trace,) = jaeger.traces("shop", operation="session orders")
    named = {span.name: span for span in trace}
    assert named["INSERT orders"].parent_id == named["session orders"].span_id
    assert "sqlalchemy.session.request_id" in named["session orders"].attributes
