"""What all sessions add up to: the only mutable totals in the process.

Readers (the Prometheus collector, OpenTelemetry's instruments) take a snapshot.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import catalog, multiprocess
from .catalog import OTHER, Metric
from .factory_ledger import FactoryLedger
from .legible import one_line
from .series import Distribution, Exemplar, Histogram, InProcess, Labels, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger("session_metrics_otel")

MAX_FACTORIES = 200
"""Different factory names a process may have; the rest is ``_OTHER``. A name made per request
would otherwise make series without end."""

Value = float | Distribution
Snapshot = dict[Metric, dict[Labels, Value]]

Hearer = Callable[[Metric, Labels], Callable[[list[float], dict[int, Exemplar]], None]]
"""Makes the listener of one histogram."""


class Ledger:
    """All factories, and every series that is counted directly.

    Args:
        kept: Makes what series are kept in.
    """

    def __init__(self, kept: InProcess | multiprocess.InFiles) -> None:
        self.kept = kept
        self._lock = threading.RLock()
        self._series: dict[tuple[Metric, Labels], Tally | Histogram] = {}
        self._factories: dict[str, FactoryLedger] = {}
        self._readers: list[Callable[[], Iterable[tuple[Metric, Labels, float]]]] = []
        self._hearers: list[Hearer] = []

    def factory(self, name: str) -> FactoryLedger:
        """The totals of the factory called ``name``, made where there are none yet."""
        found = self._factories.get(name)
        return found if found is not None else self._new_factory(name)

    def factories(self) -> list[FactoryLedger]:
        """All factories there are."""
        return list(self._factories.values())

    def _new_factory(self, name: str) -> FactoryLedger:
        legible = one_line(name)
        if legible != name:
            return self.factory(legible)
        with self._lock:
            if name not in self._factories and len(self._factories) >= MAX_FACTORIES:
                if OTHER not in self._factories:
                    logger.warning(
                        "More than %d session factory names: %r and later ones are counted as %r. "
                        "A factory's name groups its series: give one per sessionmaker, not per "
                        "request.", MAX_FACTORIES, name, OTHER,
                    )  # fmt: skip
                name = OTHER
            if name not in self._factories:
                self._factories[name] = FactoryLedger(name, self)
            return self._factories[name]

    def tally(self, metric: Metric, *labels: str) -> Tally:
        """The count of one series of ``metric``, made where there is none yet."""
        found = self._series.get((metric, labels))
        if not isinstance(found, Tally):
            labels = _legible(labels)
            with self._lock:
                found = self._series.get((metric, labels))
                new = found is None
                if new:
                    found = self._series[metric, labels] = self.kept.tally(metric, labels)
            if new:
                self.kept.show(metric, found)
        return found  # type: ignore[return-value]

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """The distribution of one series of ``metric``, made where there is none yet."""
        found = self._series.get((metric, labels))
        if not isinstance(found, Histogram):
            labels = _legible(labels)
            with self._lock:
                found = self._series.get((metric, labels))
                new = found is None
                if new:
                    found = self.kept.histogram(metric, labels)
                    found.listeners = tuple(make(metric, labels) for make in self._hearers)
                    self._series[metric, labels] = found
            if new:
                self.kept.show(metric, found)
        return found  # type: ignore[return-value]

    def listen(self, make: Hearer) -> Callable[[], None]:
        """Have every histogram tell what goes into it from here on.

        Args:
            make: Called with each metric and labels, makes the listener of that histogram.

        Returns:
            A call that ends it.
        """
        with self._lock:
            self._hearers.append(make)
            for (metric, labels), kept in self._series.copy().items():
                if isinstance(kept, Histogram):
                    kept.read()  # what came before is not told
                    kept.listeners = (*kept.listeners, make(metric, labels))

        def end() -> None:
            with self._lock:
                at = self._hearers.index(make)
                del self._hearers[at]
                for kept in self._series.values():
                    if isinstance(kept, Histogram):
                        kept.listeners = kept.listeners[:at] + kept.listeners[at + 1 :]

        return end

    def read_with(self, reader: Callable[[], Iterable[tuple[Metric, Labels, float]]]) -> None:
        """Have ``reader`` called at each snapshot for values that are looked up, not counted."""
        with self._lock:
            self._readers.append(reader)

    def looked_up(self) -> Iterator[tuple[Metric, Labels, float]]:
        """The values that no event changes, as (metric, labels, value)."""
        for factory in self.factories():
            if factory.peak:
                yield catalog.SESSION_OLDEST_AGE, (factory.name,), factory.oldest_age()
        for reader in list(self._readers):
            for metric, labels, value in reader():
                yield metric, _legible(labels), value

    def snapshot(self) -> Snapshot:
        """Every series with its value now. Costs by the number of series, not of sessions."""
        snapshot: Snapshot = {metric: {} for metric in catalog.CATALOG}
        with self._lock:
            factories = list(self._factories.values())
            # Copied in one step: list() would make tuples, at each of which the garbage collector
            # may end a session, and so add a series.
            series = self._series.copy()
            readers = list(self._readers)
        # The default factory is always there; it is shown once it has had a session.
        unseen = {factory.name for factory in factories if not factory.seen and not factory.peak}
        for (metric, labels), kept in series.items():
            if not (labels and labels[0] in unseen and metric.attributes[0] == "factory"):
                snapshot[metric][labels] = kept.read()
        seen = [factory.readings for factory in factories if factory.name not in unseen]
        for reader in (*seen, *readers):
            for metric, labels, value in reader():
                snapshot[metric][_legible(labels)] = value
        return snapshot

    def forget(self) -> None:
        """Start again at nothing: a child after ``fork`` must not report its parent's totals.

        Locks are made anew, as a thread that did not come along may have held them.
        """
        self._lock = threading.RLock()
        for kept in self._series.values():
            kept.forget()
        for factory in self._factories.values():
            factory.forget()


def _legible(labels: Labels) -> Labels:
    return tuple(map(one_line, labels))


COLLECTED: deque[tuple[Any, ...]] = deque(maxlen=100)
"""Sessions that were collected unclosed, for the watchdog to report: a record's end may come inside
any call at all, where nothing may be logged. (factory, session id, request id, route, age in
seconds, place of creation)."""

LEDGER = Ledger(multiprocess.InFiles() if multiprocess.wanted() else InProcess())
"""The process's own."""

DETACHED = Ledger(InProcess())
"""Where copies of records count, for nobody to read."""

if isinstance(LEDGER.kept, multiprocess.InFiles):
    LEDGER.kept.serve(LEDGER.looked_up, LEDGER.forget)
elif hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=LEDGER.forget)
