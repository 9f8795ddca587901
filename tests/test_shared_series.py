"""Counts and distributions in prometheus_client's files, read as its own collector reads them."""

from __future__ import annotations

import dis
import math
import os
import threading

import pytest
from prometheus_client import CollectorRegistry, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from threads import THREADS, in_threads

from session_metrics_otel import catalog
from session_metrics_otel.series import Distribution, Exemplar
from session_metrics_otel.shared_series import Live, Move, SharedHistogram, SharedTally
from session_metrics_otel.value_files import SPARE_BYTES, Group, Sample, ValueFiles

QUERIES = catalog.SESSION_QUERIES
TOTAL = "sqlalchemy_session_queries_total"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """prometheus_client in its multi-process mode, as it is when it finds the variable set."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", os.fspath(folder))
    monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue())
    opened, init = [], MmapedDict.__init__

    def opens(self, *args, **options):
        init(self, *args, **options)
        opened.append(self)

    monkeypatch.setattr(MmapedDict, "__init__", opens)
    yield folder
    for file in opened:
        file.close()


@pytest.fixture
def faults():
    return []


@pytest.fixture
def files(folder, faults):
    return ValueFiles(faults.append, lambda: None)


def tally(files, *labels):
    return SharedTally(Group(files, Sample(QUERIES, labels or ("orders",))))


def histogram(files):
    metric = catalog.SESSION_QUERIES_PER_SESSION
    bounds = [*(f"{bound}" for bound in metric.buckets), "+Inf"]
    buckets = (Sample(metric, ("orders",), "_bucket", bound) for bound in bounds)
    group = Group(files, *buckets, Sample(metric, ("orders",), "_sum"))
    return SharedHistogram(metric.buckets, group)


def read(folder, name, **labels):
    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.fspath(folder))
    return registry.get_sample_value(name, labels)


class TestTally:
    def test_is_in_the_file_as_soon_as_it_is_counted(self, folder, files):
        one = tally(files)
        for expected in (1, 2, 3):
            one.hit()
            assert read(folder, TOTAL, factory="orders") == expected

    def test_adding_more_than_one(self, folder, files):
        one = tally(files)
        one.add(2.5)
        one.add(0)
        one.add(-1)
        one.add(1)
        assert one.read() == 3.5
        assert read(folder, TOTAL, factory="orders") == 3.5

    @pytest.mark.usefixtures("eager_switching")
    def test_is_exact_under_threads(self, folder, files):
        one = tally(files)

        def work():
            for _ in range(5000):
                one.hit()
                one.add(2)

        in_threads(work)
        assert read(folder, TOTAL, factory="orders") == THREADS * 15000

    @pytest.mark.usefixtures("eager_switching")
    def test_threads_may_all_be_the_first(self, folder, files):
        for number in range(30):
            one = tally(files, f"factory-{number}")
            in_threads(one.hit)
            assert read(folder, TOTAL, factory=f"factory-{number}") == THREADS

    def test_the_file_grows(self, folder, files):
        ones = [tally(files, f"factory-{number}" + "-" * 200) for number in range(500)]
        for one in ones:
            one.hit()
        assert next(folder.glob("counter_*")).stat().st_size > 1 << 17
        for one in ones:
            one.hit()
        assert [one.read() for one in ones] == [2] * 500
        assert read(folder, TOTAL, factory="factory-0" + "-" * 200) == 2


class TestHistogram:
    def test_says_what_one_in_memory_says(self, folder, files):
        one = histogram(files)
        for value in (0, 1, 1, math.nan, 3, 5000):
            one.observe(value)
        name = "sqlalchemy_session_queries_per_session"
        assert read(folder, f"{name}_bucket", factory="orders", le="0.0") == 1
        assert read(folder, f"{name}_bucket", factory="orders", le="1.0") == 3
        assert read(folder, f"{name}_bucket", factory="orders", le="5.0") == 4
        assert read(folder, f"{name}_bucket", factory="orders", le="+Inf") == 5
        assert read(folder, f"{name}_count", factory="orders") == 5
        assert read(folder, f"{name}_sum", factory="orders") == 5005
        assert one.read() == Distribution([1, 2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1], 5005, {})

    @pytest.mark.usefixtures("eager_switching")
    def test_is_exact_under_threads(self, folder, files):
        one = histogram(files)

        def work():
            for n in range(3000):
                one.add(n % 3)
                assert len(one.pending) == 0

        in_threads(work)
        counts, total, _ = one.read()
        assert counts[:3] == [THREADS * 1000] * 3
        assert total == THREADS * 3000
        assert read(folder, "sqlalchemy_session_queries_per_session_count", factory="orders") == (
            THREADS * 3000
        )

    def test_tells_its_listeners_at_once(self, files):
        one, heard = histogram(files), []
        one.listeners = (lambda values, exemplars: heard.append((values, exemplars)),)
        exemplar = Exemplar(3, 1, 2, 0.0)
        one.exemplify(exemplar)
        one.observe(3)
        assert heard == [([3], {3: exemplar})]


class TestAfterFork:
    def test_nothing_is_written_to_the_parents_places(self, folder, files):
        one = tally(files)
        one.hit()
        parents = next(folder.glob("counter_*"))
        before = parents.read_bytes()
        files.leave_to_parent()
        values.ValueClass = values.MultiProcessValue(lambda: "child")
        again = tally(files)
        again.hit()
        again.hit()
        assert parents.read_bytes() == before
        assert read(folder, TOTAL, factory="orders") == 3

    def test_a_gauge_of_one_who_had_the_same_id_begins_at_nothing(self, folder, files):
        def live(files):
            return Group(files, Sample(catalog.SESSIONS, ("orders", "active")))

        first = live(files)
        first.open()
        first.view[first.at[0]] = 7.0
        values.ValueClass = values.MultiProcessValue()
        again = live(ValueFiles(print, lambda: None))
        again.open()
        again.view[again.at[0]] += 1.0
        assert read(folder, "sqlalchemy_sessions", factory="orders", state="active") == 1

    def test_a_count_of_one_who_had_the_same_id_goes_on(self, folder, files):
        tally(files).hit()
        values.ValueClass = values.MultiProcessValue()
        tally(ValueFiles(print, lambda: None)).hit()
        assert read(folder, TOTAL, factory="orders") == 2


class TestWithoutAFile:
    def test_a_folder_that_is_not_there(self, folder, files, faults):
        folder.rmdir()
        one = tally(files)
        one.hit()
        one.hit()
        files.settle()
        assert one.read() == 2
        assert [type(fault) for fault in faults] == [FileNotFoundError]
        folder.mkdir()
        files.settle()
        one.hit()
        assert read(folder, TOTAL, factory="orders") == 3
        assert len(faults) == 1

    def test_a_full_disk_is_not_written_to(self, folder, files, faults, monkeypatch):
        monkeypatch.setattr("session_metrics_otel.value_files.SPARE_BYTES", 1 << 62)
        one, other = tally(files), histogram(files)
        one.hit()
        other.observe(3)
        assert not list(folder.iterdir())
        assert "has less than" in str(faults[0])
        monkeypatch.setattr("session_metrics_otel.value_files.SPARE_BYTES", SPARE_BYTES)
        files.settle()
        assert read(folder, TOTAL, factory="orders") == 1
        assert read(folder, "sqlalchemy_session_queries_per_session_sum", factory="orders") == 3

    @pytest.mark.usefixtures("folder")
    def test_one_who_counts_while_prometheus_client_holds_its_lock_does_not_wait(
        self, folder, files, monkeypatch
    ):
        """As a session does that is collected while another metric of the thread is counted."""
        one = tally(files)
        other = values.ValueClass("counter", "other", "other_total", (), (), "")
        write = other._file.write_value

        def collects(*args):
            one.hit()
            write(*args)

        monkeypatch.setattr(other._file, "write_value", collects)
        other.inc(1)
        assert one.read() == 1
        tally(files, "customers").hit()
        assert read(folder, TOTAL, factory="orders") == 1
        one.hit()
        assert read(folder, TOTAL, factory="orders") == 2

    def test_one_who_counts_while_another_place_is_given_is_in_the_file_at_once(
        self, folder, files, monkeypatch
    ):
        one, other = tally(files), tally(files, "customers")
        find = Group.find

        def collects(group):
            if group is other.group:
                one.hit()
            return find(group)

        monkeypatch.setattr(Group, "find", collects)
        other.hit()
        assert read(folder, TOTAL, factory="orders") == 1
        assert read(folder, TOTAL, factory="customers") == 1

    def test_nobody_waits_for_another_who_is_given_a_place(self, folder, files, monkeypatch):
        slow, quick = tally(files), tally(files, "customers")
        find = Group.find
        begun, go_on = threading.Event(), threading.Event()

        def waits(group):
            if group is slow.group:
                begun.set()
                assert go_on.wait(30)
            return find(group)

        monkeypatch.setattr(Group, "find", waits)
        thread = threading.Thread(target=slow.hit)
        thread.start()
        assert begun.wait(30)
        quick.hit()  # while the other holds the lock
        assert read(folder, TOTAL, factory="customers") is None
        assert quick.read() == 1
        go_on.set()
        thread.join()
        assert read(folder, TOTAL, factory="customers") == 1
        assert read(folder, TOTAL, factory="orders") == 1

    @pytest.mark.usefixtures("eager_switching")
    def test_nothing_is_lost_when_a_place_is_found_while_threads_count(self, folder, files, faults):
        for number in range(20):
            folder.rename(folder.with_name("away"))
            one = tally(files, f"factory-{number}")
            one.hit()
            folder.with_name("away").rename(folder)

            def work(one=one):
                for n in range(200):
                    one.hit()
                    if n == 50:
                        files.settle()

            in_threads(work)
            assert read(folder, TOTAL, factory=f"factory-{number}") == 1 + THREADS * 200
        assert len(faults) == 20  # one for each series, not for each count


@pytest.mark.parametrize(
    "counts", [SharedTally._hit, SharedTally.add, Move._hit, SharedHistogram.observe,
               Live.__setitem__],
)  # fmt: skip
def test_no_thread_is_let_in_between_reading_and_writing(counts):
    """The interpreter looks for other threads at calls, jumps back and function starts alone."""
    names = [step.opname for step in dis.get_instructions(counts)]
    writes = [at for at, name in enumerate(names) if name == "STORE_SUBSCR"]
    assert writes
    for at in writes:
        read = max(n for n in range(at) if names[n] == "BINARY_SUBSCR")
        between = names[read:at]
        assert not [name for name in between if "CALL" in name or "JUMP" in name], between
        assert any(name.startswith(("BINARY_OP", "INPLACE_")) for name in between), between
