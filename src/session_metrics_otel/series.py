"""Series: what a count, a distribution and a bounded set of names are kept in.

A count is one call of C code that the interpreter does not interrupt: ``next()`` on an
``itertools.count`` for a tally, ``list.append`` for a measurement. So counts are exact under
threads with no lock on their path; the locks here are taken by readers and when a series is
first met.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from itertools import count
from math import fsum, isnan
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    import weakref
    from collections.abc import Callable

    from .catalog import Metric, SessionState
    from .factory_ledger import FactoryLedger

Labels = tuple[str, ...]
"""The values of a series' attributes, in the order of ``Metric.attributes``; "" is absent."""

PENDING_LIMIT = 256
"""Measurements that wait in a histogram before the one who adds the next folds them in: large
enough to spread the cost, small enough that a scrape never finds much to do."""


class Tally:
    """A count that only rises.

    Attributes:
        hit: Call it to add one. Exact under threads: ``next`` on a counter is one step in C.
    """

    __slots__ = ("_bulk", "_lock", "_reads", "hit")

    def __init__(self) -> None:
        self.hit: Callable[[], object] = count().__next__
        self._reads = 0
        self._bulk: float = 0
        # Reentrant: what is collected while it is held may count as it goes.
        self._lock = threading.RLock()

    def add(self, amount: float) -> None:
        """Add more than one at a time; a negative or zero amount changes nothing."""
        if amount == 1:
            self.hit()
        elif amount > 0:
            with self._lock:
                self._bulk += amount

    def read(self) -> float:
        """The total so far."""
        with self._lock:
            # Reading takes one from the counter as well; take the readings off again.
            value: int = self.hit() - self._reads  # type: ignore[operator]
            self._reads += 1
            return value + self._bulk

    def forget(self) -> None:
        """Start again at nothing, with whoever holds ``hit`` none the wiser."""
        self._lock = threading.RLock()
        self._reads = self.hit() + 1  # type: ignore[operator]
        self._bulk = 0


class Exemplar(NamedTuple):
    """One measurement that leads to a trace (OpenMetrics' term), with its ids as numbers."""

    value: float
    trace_id: int
    span_id: int
    timestamp: float


class Distribution(NamedTuple):
    """What a histogram holds: counts per bucket (not cumulative; the last is +Inf) and the sum."""

    counts: list[int]
    sum: float
    exemplars: dict[int, Exemplar]


class Histogram:
    """A distribution of measurements, in the unit of its metric.

    Attributes:
        add: Call it to add a measurement where an ``observe`` will follow, or somebody reads.
        pending: What was added and is not yet in the buckets.
        listeners: Called with the measurements that go into the buckets: what is counted here is
            told there, no more and no less, and a session pays nothing for it.
    """

    __slots__ = ("_bounds", "_counts", "_lock", "_sum", "add", "exemplars", "listeners", "pending")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()
        self.pending: list[float] = []
        self.add = self.pending.append
        self.exemplars: dict[int, Exemplar] = {}
        self.listeners: tuple[Callable[[list[float], dict[int, Exemplar]], None], ...] = ()

    def observe(self, value: float) -> None:
        """Add a measurement."""
        self.add(value)
        if len(self.pending) > PENDING_LIMIT:
            self.fold_if_free()

    def exemplify(self, exemplar: Exemplar) -> None:
        """Keep ``exemplar`` as the newest of the bucket that its value falls in."""
        self.exemplars[bisect_left(self._bounds, exemplar.value)] = exemplar

    def read(self) -> Distribution:
        """Everything observed so far."""
        with self._lock:
            self._fold()
            return Distribution(list(self._counts), self._sum, dict(self.exemplars))

    def forget(self) -> None:
        """Start again at nothing, with whoever holds ``observe`` none the wiser."""
        self._lock = threading.Lock()
        self.pending.clear()
        self._counts = [0] * len(self._counts)
        self._sum = 0.0
        self.exemplars.clear()

    def fold_if_free(self) -> None:
        """Put what is pending into the buckets, unless somebody is at it."""
        # A collected record may get here from inside a fold of its own thread: never wait.
        if self._lock.acquire(blocking=False):
            try:
                self._fold()
            finally:
                self._lock.release()

    def _fold(self) -> None:
        pending = self.pending
        # Others only append, and only the holder of the lock deletes: the head is ours.
        values = pending[:]
        del pending[: len(values)]
        total = fsum(values)
        if isnan(total):  # what is not a number is no measurement
            values = [value for value in values if not isnan(value)]
            total = fsum(values)
        self._sum = fsum((self._sum, total))
        ascending, below = sorted(values), 0
        for bucket, bound in enumerate(self._bounds):
            upto = bisect_right(ascending, bound, below)
            self._counts[bucket] += upto - below
            below = upto
        self._counts[-1] += len(ascending) - below
        if values:
            for listener in self.listeners:
                listener(values, self.exemplars)


class InProcess:
    """Keeps series in this process's memory, for readers in the same process."""

    def tally(self, metric: Metric, labels: Labels) -> Tally:  # noqa: ARG002 - others need to know
        """The count of one series."""
        return Tally()

    def histogram(self, metric: Metric, labels: Labels) -> Histogram:  # noqa: ARG002
        """The distribution of one series."""
        return Histogram(metric.buckets)

    def show(self, metric: Metric, series: Any) -> None:
        """Nothing to do: whoever reads finds it."""

    def live(self, factory: FactoryLedger) -> dict[int, weakref.ref[Any]]:  # noqa: ARG002
        """The register of a factory's open sessions."""
        return {}

    def raise_peak(self, factory: FactoryLedger) -> None:
        """Nothing to do: whoever reads finds it."""

    def move(
        self,
        factory: FactoryLedger,  # noqa: ARG002
        origin: SessionState,  # noqa: ARG002
        target: SessionState,  # noqa: ARG002
        *creation: str,  # noqa: ARG002
    ) -> Tally:
        """The count of a change of state; what else it says is worked out when somebody reads."""
        return Tally()


Name = TypeVar("Name")


class Bounded(Generic[Name]):
    """The names that may have series of their own: the first ones met.

    Args:
        limit: How many there may be.
        other: What all later ones go by.
    """

    __slots__ = ("_known", "_lock", "_other", "limit")

    def __init__(self, limit: int, other: Name) -> None:
        self.limit = limit
        self._other = other
        self._known: set[Name] = set()
        # Reentrant: a session collected while it is held may bring a name as well.
        self._lock = threading.RLock()

    def admit(self, name: Name) -> Name:
        """``name``, or the other where there are too many already."""
        if name not in self._known:
            with self._lock:
                if len(self._known) >= self.limit:
                    return self._other
                self._known.add(name)
        return name

    def forget(self) -> None:
        """Start again with none, in place."""
        self._lock = threading.RLock()
        self._known.clear()
