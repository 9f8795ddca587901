"""An incident as a user runs it: a process of its own, its log, the line that is to blame."""

from __future__ import annotations

import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from servers.processes import HOST, free_port, get_json, running, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

PROGRAMS = Path(__file__).parent.parent.parent / "examples" / "incidents"
_SAID = re.compile(r"^\[ *([\d.]+) s\] ", re.MULTILINE)


class Said(NamedTuple):
    """One record of the log: what it says, and how many seconds after the traffic began."""

    seconds: float
    text: str


@dataclass(frozen=True)
class Incident:
    """A running program.

    Attributes:
        name: Its file's name, without the suffix.
        target: host:port of its /metrics.
        began: When its traffic did, to a fraction of a second, in seconds since the epoch.
    """

    name: str
    target: str
    began: float
    _log: Path

    @property
    def culprit(self) -> str:
        """The line of the program that is to blame, as reports give it: ``path:line in``."""
        path = PROGRAMS / f"{self.name}.py"
        lines = path.read_text().splitlines()
        (number,) = (n for n, line in enumerate(lines, 1) if "# to blame" in line)
        return f"{path}:{number} in "

    def log(self) -> list[Said]:
        """What it has said until now."""
        _, *parts = _SAID.split(self._log.read_text())
        return [Said(float(at), text) for at, text in zip(parts[::2], parts[1::2], strict=True)]

    def wait_for_log(self, *words: str) -> Said:
        """The first record that has all of ``words``."""

        def found() -> Said | None:
            matching = (said for said in self.log() if all(word in said.text for word in words))
            return next(matching, None)

        said: Said = wait_for(found, bool, f"{words} in the log of {self.name}")
        return said

    def live_page(self) -> dict[str, Any]:
        """What its live page says now."""
        page: dict[str, Any] = get_json(f"http://{self.target}/sessionz/sessionz.json")
        return page


@contextmanager
def incident_running(
    name: str,
    how: str,
    folder: Path,
    *,
    seconds: float,
    database: str = "",
    usual: Path | None = None,
) -> Iterator[Incident]:
    """``name``, ``how`` is ``broken`` or ``mended``, with traffic for so many seconds.

    ``database`` is the URL of a PostgreSQL's database, for a program that needs one. ``usual`` is
    the interpreter that has the usual instrumentation, to be run beside ours.
    """
    port = free_port()
    command = [sys.executable, "-u", str(PROGRAMS / f"{name}.py")]
    if usual is not None:
        spans = folder / f"{name}.jsonl"
        command = [str(usual), "-u", str(PROGRAMS / "usual.py"), str(spans), name]
    command += [f"--{how}"]
    command += ["--port", str(port), "--seconds", str(seconds)]
    command += ["--database", database] if database else []
    log = folder / f"{name}-{how}.log"
    with running(command, log, {"TMPDIR": str(folder)}):
        wait_for(log.read_text, _SAID.search, f"{name} to begin")
        yield Incident(name, f"{HOST}:{port}", time.time(), log)


def rows_under(heading: str, request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """A list whose rows are written to the terminal, under ``heading``, when the tests are over."""
    written: list[str] = []
    yield written
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    for line in ["", heading, *written]:
        terminal.write_line(line)
