"""A multi-process directory that is full or cannot be written: the application's results stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

resource = pytest.importorskip("resource", reason="limits are POSIX's")

PROGRAM = """
import resource, sys
limit = int(sys.argv[2])
before = resource.getrlimit(resource.RLIMIT_FSIZE)
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
from faults.outcomes import FACTORY, metadata, shop
from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool
from session_metrics_otel import instrument
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.catalog import SESSION_QUERIES

engine = create_engine("sqlite://", poolclass=StaticPool)
metadata.create_all(engine)
maker = sessionmaker(engine)
if sys.argv[1] == "instrumented":
    instrument(maker, name=FACTORY)
for outcome in shop(maker):
    print(outcome)
engine.dispose()
if sys.argv[1] == "instrumented":
    print(LEDGER.tally(SESSION_QUERIES, FACTORY).read(), file=sys.stderr)
# Where coverage is measured, what it found is written at the end, and is larger than that.
resource.setrlimit(resource.RLIMIT_FSIZE, before)
"""


def run(how, directory, limit):
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, how, str(limit)],
        env={
            **os.environ,
            "PYTHONPATH": os.fspath(Path(__file__).parent.parent),
            "PROMETHEUS_MULTIPROC_DIR": os.fspath(directory),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return (ran.returncode, ran.stdout), ran.stderr


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    return run("bare", tmp_path_factory.mktemp("bare"), 0)[0]


@pytest.mark.parametrize("fault", ["full", "not to be written", "not there"])
def test_results_stand_and_all_is_counted_in_memory(tmp_path, fault, bare):
    # No process, root's neither, can make a file in /proc. A file may grow to 4 KiB only: what
    # prometheus_client maps is larger, and it is refused as by a full disk.
    places = {"full": tmp_path, "not to be written": Path("/proc"), "not there": tmp_path / "no"}
    if not places[fault].parent.is_dir():
        pytest.skip("this system has no /proc")
    limit = 4096 if fault == "full" else 0
    instrumented, log = run("instrumented", places[fault], limit)
    assert instrumented == bare
    assert bare[0] == 0
    assert log.count("Session telemetry (multiprocess) failed") == 1
    assert log.splitlines()[-1] == "5.0"  # every query, in this process's memory
