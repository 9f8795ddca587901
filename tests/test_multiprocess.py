"""Real processes, whose files prometheus_client's own collector adds up to the truth."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.multiprocess import mark_process_dead
from reading import counted_in

from session_metrics_otel.multiprocess import mark_dead_processes

TESTS = Path(__file__).parent
HAS_FORK = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def command(*arguments):
    return [sys.executable, os.fspath(TESTS / "programs" / "processes.py"), *map(str, arguments)]


def environment(folder, **more):
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([os.fspath(TESTS), os.environ.get("PYTHONPATH", "")]),
        # It forks with threads, and leaves connections open, on purpose.
        "PYTHONWARNINGS": "error,ignore:This process:DeprecationWarning,ignore::ResourceWarning",
        **({"PROMETHEUS_MULTIPROC_DIR": os.fspath(folder)} if folder else {}),
        **more,
    }


def run(folder, *arguments):
    done = subprocess.run(
        command(*arguments), env=environment(folder), capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    return folder


def books_in(folder):
    books = Counter()
    for file in folder.glob("books-*.json"):
        books.update(json.loads(file.read_text()))
    return dict(books)


def test_the_same_families_names_and_labels_as_in_one_process(folder):
    alone, together = (
        {
            (family, kind, said, name, *sorted(labels.items())): value
            for family, kind, said, name, labels, value in json.loads(answer)
            if not family.startswith(("python", "process"))
        }
        for answer in (run(None, "all_families", "-"), run(folder, "all_families", "-"))
    )
    assert alone.keys() - together.keys() == set()
    # A file keeps what was shown once; in one process a transition is shown when it was made.
    assert {key for key in together.keys() - alone.keys() if together[key]} == set()

    def exact(found):
        return {
            key: value
            for key, value in found.items()
            if not key[3].endswith(("_seconds_bucket", "_seconds_sum", "_age_seconds"))
        }

    assert {key: together[key] for key in exact(alone)} == exact(alone)


class TestChildren:
    @pytest.mark.parametrize("method", [
        pytest.param("fork", marks=HAS_FORK), "spawn",
    ])  # fmt: skip
    def test_all_count_and_the_sum_is_exact(self, folder, tmp_path, method):
        run(folder, "children", tmp_path, method)
        assert len(list(tmp_path.glob("books-*"))) == 5
        assert counted_in(folder, "orders") == books_in(tmp_path)

    @HAS_FORK
    def test_counts_do_not_jump_on_fork(self, folder, tmp_path):
        run(folder, "fork", tmp_path)
        assert counted_in(folder, "orders") == books_in(tmp_path)


class TestKilled:
    def test_loses_nothing_that_was_counted_and_leaves_the_gauges(self, folder):
        process = subprocess.Popen(
            command("until_killed", "-"), env=environment(folder), stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        said = process.stdout.read(500)
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read()
        process.stdout.close()
        process.wait()

        threads = 4
        found = counted_in(folder, "orders")
        # A thread may have counted what it did not come to say.
        assert len(said) <= found["duration_seconds_count"] <= len(said) + threads
        assert len(said) <= found["transactions committed"] <= len(said) + threads
        assert len(said) + 3 <= found["queries"] <= len(said) + 3 + threads
        live = {key: n for key, n in found.items() if key.startswith("sqlalchemy_sessions")}
        assert live["sqlalchemy_sessions active"] >= 3
        assert sum(live.values()) <= 3 + threads

        assert mark_dead_processes(folder) == [process.pid]
        after = counted_in(folder, "orders")
        assert after == {key: n for key, n in found.items() if key not in live}
        assert mark_dead_processes(folder) == []

    def test_those_that_run_are_not_marked(self, folder, tmp_path):
        run(folder, "ends_with_one_open", tmp_path)
        (gauges,) = folder.glob("gauge_livesum_*")
        ours = gauges.with_name(f"gauge_livesum_{os.getpid()}.db")
        gauges.rename(ours)
        mark_dead_processes(folder)
        assert ours.exists()
        mark_process_dead(os.getpid(), os.fspath(folder))
        assert not ours.exists()

    def test_the_folder_has_to_be_known(self, monkeypatch):
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        with pytest.raises(ValueError, match="give path, or set PROMETHEUS_MULTIPROC_DIR"):
            mark_dead_processes()


def test_what_ends_in_good_order_leaves_no_gauge_behind(folder, tmp_path):
    run(folder, "ends_with_one_open", tmp_path)
    found = counted_in(folder, "orders")
    assert found["queries"] == 1
    assert not [key for key in found if key.startswith("sqlalchemy_sessions")]


def test_a_folder_that_is_not_there_is_not_the_applications_trouble(folder, tmp_path):
    folder.rmdir()
    done = subprocess.run(
        command("ends_with_one_open", tmp_path), env=environment(folder), capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.count("Session telemetry (multiprocess) failed") == 1
