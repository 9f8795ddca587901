"""What all sessions add up to: the only mutable totals in the process.

Readers (the Prometheus collector, OpenTelemetry's instruments) take a snapshot.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import catalog
from .catalog import OTHER, Metric, SessionState
from .series import Bounded, Distribution, Exemplar, Histogram, Labels, Tally

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

logger = logging.getLogger("session_metrics_otel")

MAX_ERROR_TYPES = 32
"""Different ``error.type`` values a factory may have; the rest is ``_OTHER``."""

MAX_FACTORIES = 200
"""Different factory names a process may have; the rest is ``_OTHER``. A name made per request
would otherwise make series without end."""


class Rest(NamedTuple):
    """An active session that has left its transaction idle since ``since``."""

    record: weakref.ref[Any]
    since: float


class Stage:
    """A place in a factory's chart of states: where a record stands.

    Attributes:
        factory: The factory the chart belongs to.
        live: The factory's register of open sessions.
        resting: At ``active``, the factory's idle sessions; elsewhere empty.
        state: The state.
        moves: For each other state, the call that counts going there, and the stage there.
        unused: Where a record that stands here has done nothing yet, the call that counts its
            going to ``closed``; else None.
    """

    __slots__ = ("factory", "live", "moves", "resting", "state", "unused")

    def __init__(self, factory: FactoryLedger, state: SessionState) -> None:
        self.factory = factory
        self.live = factory.live
        self.resting = factory.resting if state is SessionState.ACTIVE else _NOBODY
        self.state = state
        self.moves: dict[str, tuple[Callable[[], object], Stage]] = {}
        self.unused: Callable[[], object] | None = None


_NOBODY: dict[int, Rest] = {}
_LIVE = [state for state in SessionState if state is not SessionState.CLOSED]
_CREATED = SessionState.CREATED
_ENDING = (SessionState.CLOSING, SessionState.CLOSED)


Row = TypeVar("Row")


class _MadeWhenAsked(dict[str, Row]):
    """A table whose rows are made when they are first looked up."""

    def __init__(self, make: Callable[[str], Row]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> Row:
        made = self[key] = self._make(key)
        return made


class FactoryLedger:
    """The totals of one session factory.

    Its counts of transitions say most of what there is to say: sessions by state, creations by
    outcome and the transitions themselves are all worked out from them when somebody reads.

    Attributes:
        name: The value of the attribute ``factory``.
        live: The sessions open now, in the order of their creation: id -> weak reference.
        resting: Those of them that are idle in their transaction.
        peak: The most that were open at once.
        seen: Whether it is shown before its first session.
        stages: The chart, by state.
        transaction_ends: By outcome, the call that counts a transaction, and the durations.
        created: The stage a record is born at.
        worked: The stage of one that is still ``created`` but has run a query or a transaction, so
            that closing it is a success and not unused.
    """

    def __init__(self, name: str, ledger: Ledger) -> None:
        self.name = name
        self.live: dict[int, weakref.ref[Any]] = {}
        self.resting: dict[int, Rest] = {}
        self.peak = 0
        self.seen = False
        self._resting_lock = threading.Lock()
        self._lock = threading.RLock()
        self._error_types = Bounded(MAX_ERROR_TYPES, OTHER)
        self._failures: dict[str, Tally] = {}
        self._edges: list[tuple[Stage, SessionState, Tally]] = []
        self._ledger = ledger
        self._build_chart()
        self.transaction_ends = _MadeWhenAsked(self._transaction_end)
        self.queries = ledger.tally(catalog.SESSION_QUERIES, name)
        self.flushes = ledger.tally(catalog.SESSION_FLUSHES, name)
        self.optimistic_lock_failures = ledger.tally(catalog.SESSION_OPTIMISTIC_LOCK_FAILURES, name)
        self.creation_duration = ledger.histogram(catalog.SESSION_CREATION_DURATION, name)
        self.duration = ledger.histogram(catalog.SESSION_DURATION, name)
        self.queries_per_session = ledger.histogram(catalog.SESSION_QUERIES_PER_SESSION, name)

    def _build_chart(self) -> None:
        stages = self.stages = {state: Stage(self, state) for state in SessionState}
        self.created = stages[_CREATED]
        self.worked = Stage(self, _CREATED)
        for origin in (*stages.values(), self.worked):
            for target, stage in stages.items():
                if target is not origin.state:
                    tally = Tally()
                    origin.moves[target] = (tally.hit, stage)
                    self._edges.append((origin, target, tally))
        self.created.unused, _ = self.created.moves[SessionState.CLOSED]

    def raise_peak(self, live: int) -> None:
        """Note that ``live`` sessions are open at once; called only when that is a new peak."""
        with self._lock:
            self.peak = max(self.peak, live)

    def fold(self) -> None:
        """Put into the buckets what its sessions have measured at their beginning and end."""
        for histogram in (self.creation_duration, self.duration, self.queries_per_session):
            histogram.fold_if_free()

    def error_type(self, error: BaseException | str) -> str:
        """The ``error.type`` that ``error`` is counted under; one of a bounded number."""
        if not isinstance(error, BaseException):
            return OTHER
        return self._error_types.admit(type(error).__name__)

    def errors(self, error_type: str) -> Tally:
        """The count of errors of ``error_type``."""
        return self._ledger.tally(catalog.SESSION_ERRORS, self.name, error_type)

    def transaction(self, outcome: str) -> Tally:
        """The count of transactions that ended with ``outcome``."""
        return self._ledger.tally(catalog.SESSION_TRANSACTIONS, self.name, outcome)

    def _transaction_end(self, outcome: str) -> tuple[Callable[[], object], Histogram]:
        durations = self._ledger.histogram(catalog.SESSION_TRANSACTION_DURATION, self.name, outcome)
        return self.transaction(outcome).hit, durations

    def leaks(self, reason: str) -> Tally:
        """The count of sessions that leaked for ``reason``."""
        return self._ledger.tally(catalog.SESSION_LEAKS, self.name, reason)

    def entities(self, operation: str) -> Tally:
        """The count of ORM objects written by ``operation``."""
        return self._ledger.tally(catalog.SESSION_ENTITIES, self.name, operation)

    def failure(self, error_type: str) -> Callable[[], object]:
        """The call that counts going from ``created`` to ``error`` for ``error_type``."""
        with self._lock:
            return self._failures.setdefault(error_type, Tally()).hit

    def _read_failures(self) -> dict[str, float]:
        counts = {error_type: tally.read() for error_type, tally in list(self._failures.items())}
        # A rate needs a series that was there at 0 before its first failure.
        return counts or {OTHER: 0.0}

    # A record is its session's thread's to change, so the watchdog never moves one. That it is idle
    # is written beside it, as true for as long as it has not moved on: a count of going idle is
    # taken back by one of coming back as soon as anybody looks, and no race can make them drift.

    def rest(self, record: Any, since: float) -> None:
        """Say that ``record``, which is active, has sent nothing since ``since``."""
        with self._resting_lock:
            if id(record) not in self.resting:
                self.resting[id(record)] = Rest(weakref.ref(record), since)
                self.stages[SessionState.ACTIVE].moves[SessionState.IDLE][0]()

    def rests(self, record: Any) -> bool:
        """Whether ``record`` is idle still."""
        rest = self.resting.get(id(record))
        return rest is not None and rest.record() is record and self._holds(rest, record)

    def _holds(self, rest: Rest, record: Any) -> bool:
        active = record._stage is self.stages[SessionState.ACTIVE]
        return active and record.statement_ended == rest.since

    def wake(self) -> None:
        """Count back those that are idle no more."""
        with self._resting_lock:
            for key, rest in list(self.resting.items()):
                record = rest.record()
                if record is None or not self._holds(rest, record):
                    del self.resting[key]
                    self.stages[SessionState.IDLE].moves[SessionState.ACTIVE][0]()

    def readings(self) -> Iterator[tuple[Metric, Labels, float]]:
        """What the chart and the register of live sessions say, as (metric, labels, value)."""
        self.wake()
        live = len(self.live)
        failures = self._read_failures()
        outcomes = {"success": 0.0, "unused": 0.0}
        transitions: dict[tuple[SessionState, SessionState], float] = {
            (_CREATED, SessionState.ERROR): sum(failures.values())
        }
        for origin, target, tally in self._edges:
            value = tally.read()
            edge = (origin.state, target)
            transitions[edge] = transitions.get(edge, 0) + value
            if origin.state is _CREATED:
                unused = origin is self.created and target in _ENDING
                outcomes["unused" if unused else "success"] += value
        for outcome, value in outcomes.items():
            yield catalog.SESSION_CREATIONS, (self.name, outcome, ""), value
        for error_type, value in failures.items():
            yield catalog.SESSION_CREATIONS, (self.name, "failure", error_type), value
        for (origin_state, target), value in transitions.items():
            if value:
                labels = (self.name, origin_state.value, target.value)
                yield catalog.SESSION_TRANSITIONS, labels, value
        for state, value in _live_by_state(transitions, live).items():
            yield catalog.SESSIONS, (self.name, state.value), value
        yield catalog.SESSION_PEAK, (self.name,), self.peak
        yield catalog.SESSION_OLDEST_AGE, (self.name,), self._oldest_age()

    def _oldest_age(self) -> float:
        oldest = self.oldest()
        return 0.0 if oldest is None else float(oldest.get_age_seconds())

    def oldest(self) -> Any | None:
        """The record that has been open longest, or None."""
        try:
            reference = next(iter(self.live.values()))
        except StopIteration:
            return None
        except RuntimeError:  # another thread opened or closed a session between our two steps
            return self.oldest()
        return reference()

    def forget(self) -> None:
        """Start again at nothing, in place."""
        self._lock = threading.RLock()
        for reference in self.live.values():
            record = reference()
            if record is not None:
                record.detach()
        self.live.clear()
        self._resting_lock = threading.Lock()
        self.resting.clear()
        self.peak = 0
        for tally in (*(tally for *_, tally in self._edges), *self._failures.values()):
            tally.forget()


def _live_by_state(
    transitions: dict[tuple[SessionState, SessionState], float], live: int
) -> dict[SessionState, float]:
    counts: dict[SessionState, float] = dict.fromkeys(_LIVE, 0.0)
    for (origin, target), value in transitions.items():
        if target in counts:
            counts[target] += value
        if origin in counts:
            counts[origin] -= value
    # Births are not counted: whoever is open and in no other state is still `created`.
    counts[_CREATED] = live - sum(n for state, n in counts.items() if state is not _CREATED)
    # A session that moves while we read may be missed in one place: never show less than none.
    return {state: max(n, 0.0) for state, n in counts.items()}


Value = float | Distribution
Snapshot = dict[Metric, dict[Labels, Value]]

Hearer = Callable[[Metric, Labels], Callable[[list[float], dict[int, Exemplar]], None]]
"""Makes the listener of one histogram."""


class Ledger:
    """All factories, and every series that is counted directly."""

    def __init__(self) -> None:
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
            with self._lock:
                found = self._series.setdefault((metric, labels), Tally())
        return found  # type: ignore[return-value]

    def histogram(self, metric: Metric, *labels: str) -> Histogram:
        """The distribution of one series of ``metric``, made where there is none yet."""
        found = self._series.get((metric, labels))
        if not isinstance(found, Histogram):
            with self._lock:
                found = self._series.get((metric, labels))
                if found is None:
                    found = Histogram(metric.buckets)
                    found.listeners = tuple(make(metric, labels) for make in self._hearers)
                    self._series[metric, labels] = found
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
            for (metric, labels), kept in self._series.items():
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

    def snapshot(self) -> Snapshot:
        """Every series with its value now. Costs by the number of series, not of sessions."""
        snapshot: Snapshot = {metric: {} for metric in catalog.CATALOG}
        with self._lock:
            factories = list(self._factories.values())
            series = list(self._series.items())
            readers = list(self._readers)
        # The default factory is always there; it is shown once it has had a session.
        unseen = {factory.name for factory in factories if not factory.seen and not factory.peak}
        for (metric, labels), kept in series:
            if not (labels and labels[0] in unseen and metric.attributes[0] == "factory"):
                snapshot[metric][labels] = kept.read()
        seen = [factory.readings for factory in factories if factory.name not in unseen]
        for reader in (*seen, *readers):
            for metric, labels, value in reader():
                snapshot[metric][labels] = value
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


COLLECTED: deque[tuple[Any, ...]] = deque(maxlen=100)
"""Sessions that were collected unclosed, for the watchdog to report: a record's end may come inside
any call at all, where nothing may be logged. (factory, session id, request id, route, age in
seconds, place of creation)."""

LEDGER = Ledger()
"""The process's own."""

DETACHED = Ledger()
"""Where copies of records count, for nobody to read."""

if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=LEDGER.forget)
