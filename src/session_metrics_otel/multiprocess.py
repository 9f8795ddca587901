"""Series for prometheus_client's multi-process mode: one /metrics for all workers of a service.

Where ``PROMETHEUS_MULTIPROC_DIR`` is set when prometheus_client is imported, each event is written
to a file of this process as it happens, and prometheus_client's ``MultiProcessCollector`` adds up
the files of all of them, the dead ones' too. What is only looked up at a scrape elsewhere (the
pools' connections, the oldest session's age) is written once a second.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import threading
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import multiprocess, values
from prometheus_client.utils import floatToGoString

from . import catalog
from .shared_series import Live, Move, SharedHistogram, SharedTally
from .value_files import Group, Sample, ValueFiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from .catalog import Metric, SessionState
    from .factory_ledger import FactoryLedger
    from .series import Histogram, Labels, Tally

INTERVAL = 1.0
"""Seconds between two writings of what is looked up."""


def wanted() -> bool:
    """Whether prometheus_client is in its multi-process mode."""
    return bool(values.ValueClass._multiprocess)


class InFiles:
    """Keeps series in files of this process."""

    def __init__(self) -> None:
        self._files = ValueFiles(_complain, self._begin)
        self._pulse: _Pulse | None = None
        self._lock = threading.Lock()
        self._at_work = False
        self._read_gauges: Callable[[], Iterable[tuple[Metric, Labels, float]]] = tuple
        self._gauges: dict[tuple[Metric, Labels], Group] = {}
        self._forget: Callable[[], object] = list
        self._collects = False

    def tally(self, metric: Metric, labels: Labels) -> Tally:
        """The count of one series."""
        return SharedTally(Group(self._files, Sample(metric, labels)))

    def histogram(self, metric: Metric, labels: Labels) -> Histogram:
        """The distribution of one series."""
        bounds = (floatToGoString(bound) for bound in (*metric.buckets, inf))  # type: ignore[no-untyped-call]
        buckets = (Sample(metric, labels, "_bucket", bound) for bound in bounds)
        group = Group(self._files, *buckets, Sample(metric, labels, "_sum"))
        return SharedHistogram(metric.buckets, group)

    def show(self, metric: Metric, series: Any) -> None:
        """Have a new series in its file, at 0: a rate needs it there before its first event.

        A factory's are shown with its first session. And to count a fault may be one itself: that
        has to end somewhere.
        """
        if metric.attributes[0] not in {"factory", "component"}:
            series.group.open()

    def live(self, factory: FactoryLedger) -> Live:
        """The register of a factory's open sessions."""
        return Live(self._files, factory)

    def raise_peak(self, factory: FactoryLedger) -> None:
        """Write the most sessions that a factory had open at once."""
        cast("Live", factory.live).raise_peak(factory.peak)

    def move(
        self, factory: FactoryLedger, origin: SessionState, target: SessionState, *creation: str
    ) -> Tally:
        """The count of a change of state and, where one ends with it, of a creation so labelled."""
        transition = (factory.name, origin.value, target.value)
        samples = [Sample(catalog.SESSION_TRANSITIONS, transition)]
        if creation:
            samples.append(Sample(catalog.SESSION_CREATIONS, (factory.name, *creation)))
        states = cast("Live", factory.live).states
        return Move(factory, Group(self._files, *samples), states, origin, target)

    def serve(
        self,
        read_gauges: Callable[[], Iterable[tuple[Metric, Labels, float]]],
        forget: Callable[[], None],
    ) -> None:
        """Follow this process to its end, and into its children.

        Args:
            read_gauges: Called once a second for the values that no event writes.
            forget: Called in a child, after a fork.
        """
        self._read_gauges = read_gauges
        self._forget = forget
        atexit.register(self._end)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork,
                after_in_parent=self._after_in_parent,
                after_in_child=self._after_in_child,
            )

    def _write_gauges(self) -> None:
        try:
            self._files.settle()
            gone = set(self._gauges)
            for metric, labels, value in self._read_gauges():
                gone.discard((metric, labels))
                self._write(metric, labels, value)
            for metric, labels in gone:
                self._write(metric, labels, 0.0)
        except Exception as fault:  # noqa: BLE001 - it is done again in a second
            _complain(fault)

    def _write(self, metric: Metric, labels: Labels, value: float) -> None:
        group = self._gauges.get((metric, labels))
        if group is None:
            group = self._gauges[metric, labels] = Group(self._files, Sample(metric, labels))
        group.open()
        group.view[group.at[0]] = value

    def _begin(self) -> None:
        self._at_work = True
        # Who forks holds the lock, and goes on with this afterwards.
        if self._pulse is None and self._lock.acquire(blocking=False):
            new = self._pulse is None
            if new:
                self._pulse = _Pulse(self._write_gauges)
                self._pulse.begin()
            self._lock.release()
            if new and "multiprocessing.util" in sys.modules:
                # Its children run no atexit.
                from multiprocessing.util import Finalize

                Finalize(None, self._end, exitpriority=-100)

    # A fork takes no thread along, and what another thread was at stays as it was: so none of ours
    # is there meanwhile, and nobody is inside prometheus_client on our behalf. Nor is a session
    # collected in the child before all that are its parent's have been forgotten.

    def _before_fork(self) -> None:
        self._lock.acquire()
        if self._pulse is not None:
            self._pulse.end()
        self._files.lock.acquire()
        self._collects = gc.isenabled()
        gc.disable()

    def _after_in_parent(self) -> None:
        self._go_on()
        if self._at_work:
            self._pulse = _Pulse(self._write_gauges)
            self._pulse.begin()
        self._lock.release()

    def _after_in_child(self) -> None:
        self._pulse = None
        self._at_work = False
        self._files.leave_to_parent()
        self._forget()
        self._go_on()
        self._lock.release()

    def _go_on(self) -> None:
        if self._collects:
            gc.enable()
        self._files.lock.release()

    def _end(self) -> None:
        """Nothing is open, and no connection held, in a process that has ended in good order."""
        with self._lock:
            if self._pulse is not None:
                self._pulse.end()
        self._files.settle()
        self._files.retire_gauges()


class _Pulse:
    """A thread that does something once a second."""

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._stop = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="session-metrics-gauges", daemon=True
        )

    def begin(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        self._beat()
        while not self._stop.wait(INTERVAL):
            self._beat()

    def end(self) -> None:
        self._stop.set()
        self._thread.join()


_told: Callable[[str, Exception], None] | None = None


def complain_to(caught: Callable[[str, Exception], None]) -> None:
    """Have ``caught`` told of what goes wrong here."""
    global _told  # noqa: PLW0603
    _told = caught


def _complain(fault: Exception) -> None:
    if _told is not None:
        _told("multiprocess", fault)


def mark_dead_processes(path: str | os.PathLike[str] | None = None) -> list[int]:
    """Take the gauges of processes that have ended out of /metrics.

    It calls prometheus_client's ``mark_process_dead`` for each process that has gauges and is not
    running. Call it before you answer a scrape, if your server has no hook for a worker's death
    such as gunicorn's ``child_exit``. Do not call it if containers with process ids of their own
    share the directory.

    Args:
        path: The directory; if None, ``PROMETHEUS_MULTIPROC_DIR``.

    Returns:
        Their process ids.

    Raises:
        ValueError: ``path`` is not given, and ``PROMETHEUS_MULTIPROC_DIR`` is not set.
    """
    directory = path or os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not directory:
        message = "No directory: give path, or set PROMETHEUS_MULTIPROC_DIR."
        raise ValueError(message)
    names = (file.stem.rpartition("_")[2] for file in Path(directory).glob("gauge_live*_*.db"))
    dead = [
        pid for pid in sorted({int(name) for name in names if name.isdigit()}) if not _runs(pid)
    ]
    for pid in dead:
        multiprocess.mark_process_dead(pid, os.fspath(directory))  # type: ignore[no-untyped-call]
    return dead


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
