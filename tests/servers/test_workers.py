"""Real servers with several workers: what prometheus_client adds up is what they all did."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

import pytest
from celery import Celery
from reading import changes, counted_in

from servers.processes import HOST, PATIENCE, free_port, running, wait_for, wait_until_ready
from session_metrics_otel.multiprocess import mark_dead_processes

TESTS = Path(__file__).parents[1]
PROGRAMS = TESTS / "programs"
WORKERS = 4
REQUESTS = 80
CONFIG = """
from prometheus_client import multiprocess


def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""
ON_IMPORT = {
    **changes("created", "active", "closing", "closed"),
    "creations success": 1,
    "creation_duration_seconds_count": 1,
    "duration_seconds_count": 1,
    "queries_per_session_count": 1,
    "queries": 1,
    "transactions closed": 1,
    "transaction_duration_seconds_count closed": 1,
}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def environment(folder, **more):
    path = os.pathsep.join(
        [os.fspath(TESTS), os.fspath(PROGRAMS), os.environ.get("PYTHONPATH", "")]
    )
    return {"PROMETHEUS_MULTIPROC_DIR": os.fspath(folder), "PYTHONPATH": path, **more}


def get(address):
    with urllib.request.urlopen(address, timeout=PATIENCE) as response:
        return response.read(), int(response.headers.get("X-Worker") or 0)


@contextmanager
def serving(command, address, log, environment):
    with running([sys.executable, "-m", *command], log, environment) as process:

        def answers():
            try:
                get(f"{address}/ready")
            except OSError:
                return False
            return True

        wait_until_ready(process, log, answers, command[0])
        yield process


@contextmanager
def gunicorn(folder, tmp_path, application, *options, **more):
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(CONFIG)
    bind = f"{HOST}:{free_port()}"
    command = ["gunicorn", "-c", os.fspath(config), "-b", bind, "-w", str(WORKERS)]
    with serving(
        [*command, *options, application],
        f"http://{bind}",
        tmp_path / "gunicorn.log",
        environment(folder, **more),
    ):
        yield f"http://{bind}"


class Load:
    """Many clients at once.

    Attributes:
        books: What the answers say should have been counted.
        workers: The workers that gave them.
        answered: How many there were.
        unanswered: Requests whose worker died over them.
    """

    def __init__(self, address):
        self.address = address
        self.books = Counter()
        self.workers = set()
        self.answered = self.unanswered = 0
        self._lock = threading.Lock()

    def run(self, requests=REQUESTS, clients=8):
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(self._ask, range(requests)))
        return self

    def run_until_two_have_answered(self):
        """The others may still be starting when the first does."""
        wait_for(lambda: self.run(20).workers, lambda w: len(w) > 1, "a second worker to answer")
        return self

    def _ask(self, number):
        try:
            answer, worker = get(f"{self.address}/work?{number}")
        except (OSError, HTTPException):
            with self._lock:
                self.unanswered += 1
        else:
            with self._lock:
                self.books.update(json.loads(answer))
                self.workers.add(worker)
                self.answered += 1


def live(found):
    return sum(n for key, n in found.items() if key.startswith("sqlalchemy_sessions"))


def kinds(folder):
    """By process id, the files that it has."""
    found = {}
    for file in folder.glob("*.db"):
        kind, _, pid = file.stem.rpartition("_")
        found.setdefault(int(pid), set()).add(kind)
    return found


COUNTS = {"counter", "histogram"}
GAUGES = {"gauge_livesum", "gauge_livemax"}


class TestGunicorn:
    def test_sync_workers_that_are_forked_from_a_used_master_and_recycled(self, folder, tmp_path):
        options = ("--preload", "--max-requests", "12", "--max-requests-jitter", "6")
        with gunicorn(folder, tmp_path, "workers:wsgi", *options, SESSION_ON_IMPORT="1") as address:
            load = Load(address).run()
            assert load.unanswered == 0
            expected = load.books + Counter(ON_IMPORT)
            assert len(load.workers) > WORKERS
            assert counted_in(folder, "orders") == expected

            text, _ = get(f"{address}/metrics")
            queries = (
                f'sqlalchemy_session_queries_total{{factory="orders"}} {expected["queries"]}.0'
            )
            assert queries in text.decode().splitlines()

            def gone():
                return len([pid for pid, has in kinds(folder).items() if has & GAUGES])

            wait_for(gone, lambda n: n <= WORKERS + 1, "the gauges of recycled workers to go")
            # What prometheus_client itself leaves of a dead worker, and no more.
            assert set().union(*kinds(folder).values()) <= COUNTS | GAUGES
            assert counted_in(folder, "orders") == expected

    def test_uvicorn_workers(self, folder, tmp_path):
        with gunicorn(
            folder, tmp_path, "workers:asgi", "-k", "uvicorn_worker.UvicornWorker"
        ) as address:
            load = Load(address).run_until_two_have_answered().run()
            assert load.unanswered == 0
            assert counted_in(folder, "orders") == load.books

    def test_a_worker_killed_in_mid_load(self, folder, tmp_path):
        with gunicorn(folder, tmp_path, "workers:wsgi") as address:
            holders = [get(f"{address}/hold")[1] for _ in range(8)]
            assert counted_in(folder, "orders")["sqlalchemy_sessions active"] == 8
            load = Load(address).run_until_two_have_answered()
            before = load.answered
            with ThreadPoolExecutor(1) as background:
                loading = background.submit(load.run, 100)
                wait_for(lambda: load.answered, lambda n: n > before, "the load to begin")
                os.kill(holders[0], signal.SIGKILL)
                loading.result()
            found = counted_in(folder, "orders")
            # The killed one may have counted three sessions that nobody was told of.
            ended, said = found["duration_seconds_count"], load.books["duration_seconds_count"]
            assert said <= ended <= said + 3 * load.unanswered
            assert load.books["queries"] + 8 <= found["queries"]
            assert all(found[key] >= n for key, n in load.books.items())
            held = len([pid for pid in holders if pid != holders[0]])
            wait_for(
                lambda: live(counted_in(folder, "orders")),
                lambda n: n == held,
                "the killed worker's sessions to leave the gauges",
            )


def test_uvicorns_own_workers(folder, tmp_path):
    port = free_port()
    command = ["uvicorn", "workers:asgi", "--port", str(port), "--workers", str(WORKERS)]
    address = f"http://{HOST}:{port}"
    with serving(command, address, tmp_path / "uvicorn.log", environment(folder)):
        load = Load(address).run()
        assert load.unanswered == 0
        assert counted_in(folder, "orders") == load.books
    assert counted_in(folder, "orders") == load.books
    mark_dead_processes(folder)
    assert not list(folder.glob("gauge_*"))
    assert counted_in(folder, "orders") == load.books


def test_celerys_prefork_workers(folder, tmp_path, monkeypatch):
    for name in ("queue", "control", "results"):
        (tmp_path / name).mkdir()
    more = {"CELERY_FOLDER": os.fspath(tmp_path), "SESSION_ON_IMPORT": "1"}
    command = [
        sys.executable, "-m", "celery", "-A", "workers:celery", "worker", "-P", "prefork",
        "-c", str(WORKERS), "--max-tasks-per-child", "10", "--without-gossip", "--without-mingle",
        "--without-heartbeat",
    ]  # fmt: skip
    log = tmp_path / "celery.log"
    client = Celery(broker="filesystem://", backend=f"file://{tmp_path}/results")
    client.conf.broker_transport_options = {
        "data_folder_in": f"{tmp_path}/queue",
        "data_folder_out": f"{tmp_path}/queue",
        "control_folder": f"{tmp_path}/control",
    }
    with running(command, log, environment(folder, **more)) as process:
        results = [client.send_task("work", [number]) for number in range(60)]
        wait_for(
            lambda: process.poll() is not None or all(result.ready() for result in results),
            bool, "the tasks to be done",
        )  # fmt: skip
        assert process.poll() is None, log.read_text()
        books = Counter(ON_IMPORT)
        for result in results:
            books.update(result.get())
        assert counted_in(folder, "orders") == books
    mark_dead_processes(folder)
    assert counted_in(folder, "orders") == books
    assert not list(folder.glob("gauge_*"))
