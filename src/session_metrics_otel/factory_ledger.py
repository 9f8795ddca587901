"""What the sessions of one factory add up to: a chart of states, and the register of open ones."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import catalog
from .catalog import LIVE_STATES, OTHER, USUAL_FAILURES, SessionState
from .legible import one_line
from .series import Bounded
from .weak import alive

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .catalog import Metric
    from .ledger import Ledger
    from .series import Histogram, Labels, Tally

MAX_ERROR_TYPES = 32
"""Different ``error.type`` values a factory may have; the rest is ``_OTHER``."""


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
        ledger: The ledger that it is of.
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
        self._kept = ledger.kept
        self.resting: dict[int, Rest] = {}
        self.peak = 0
        self.seen = False
        self.live = self._kept.live(self)
        # Reentrant, like all that a collected session may come to take.
        self._resting_lock = threading.RLock()
        self._lock = threading.RLock()
        self._error_types = Bounded(MAX_ERROR_TYPES, OTHER)
        self._failures: dict[str, Tally] = {}
        self._edges: list[tuple[Stage, SessionState, Tally]] = []
        self.ledger = ledger
        self._build_chart()
        self.transaction_ends = _MadeWhenAsked(self._transaction_end)
        self.queries = ledger.tally(catalog.SESSION_QUERIES, name)
        self.flushes = ledger.tally(catalog.SESSION_FLUSHES, name)
        self.optimistic_lock_failures = ledger.tally(catalog.SESSION_OPTIMISTIC_LOCK_FAILURES, name)
        self.creation_duration = ledger.histogram(catalog.SESSION_CREATION_DURATION, name)
        self.duration = ledger.histogram(catalog.SESSION_DURATION, name)
        self.queries_per_session = ledger.histogram(catalog.SESSION_QUERIES_PER_SESSION, name)
        # A rate needs a series that was there at 0 before its first leak.
        self._leaks = tuple(map(self.leaks, catalog.LEAK_REASONS))

    def _build_chart(self) -> None:
        stages = self.stages = {state: Stage(self, state) for state in SessionState}
        self.created = stages[_CREATED]
        self.worked = Stage(self, _CREATED)
        for origin in (*stages.values(), self.worked):
            for target, stage in stages.items():
                if target is not origin.state:
                    creation = self._creation(origin, target)
                    tally = self._kept.move(self, origin.state, target, *creation)
                    origin.moves[target] = (tally.hit, stage)
                    self._edges.append((origin, target, tally))
        self.created.unused, _ = self.created.moves[SessionState.CLOSED]

    def _creation(self, origin: Stage, target: SessionState) -> tuple[str, ...]:
        """How the creation ended that going from ``origin`` to ``target`` ends, if it does."""
        if origin.state is not _CREATED:
            return ()
        unused = origin is self.created and target in _ENDING
        return ("unused" if unused else "success", "")

    @property
    def standing(self) -> tuple[Tally | Histogram, ...]:
        """The series that it has from its first session on."""
        return (
            self.queries,
            self.flushes,
            self.optimistic_lock_failures,
            self.creation_duration,
            self.duration,
            self.queries_per_session,
            *self._leaks,
        )

    def raise_peak(self, live: int) -> None:
        """Note that ``live`` sessions are open at once; called only when that is a new peak."""
        with self._lock:
            self.peak = max(self.peak, live)
        self._kept.raise_peak(self)

    def fold(self) -> None:
        """Put into the buckets what its sessions have measured at their beginning and end."""
        for histogram in (self.creation_duration, self.duration, self.queries_per_session):
            histogram.fold_if_free()

    def error_type(self, error: BaseException | str) -> str:
        """The ``error.type`` that ``error`` is counted under; one of a bounded number."""
        if not isinstance(error, BaseException):
            return OTHER
        return self._error_types.admit(one_line(type(error).__name__))

    def errors(self, error_type: str) -> Tally:
        """The count of errors of ``error_type``."""
        return self.ledger.tally(catalog.SESSION_ERRORS, self.name, error_type)

    def transaction(self, outcome: str) -> Tally:
        """The count of transactions that ended with ``outcome``."""
        return self.ledger.tally(catalog.SESSION_TRANSACTIONS, self.name, outcome)

    def _transaction_end(self, outcome: str) -> tuple[Callable[[], object], Histogram]:
        durations = self.ledger.histogram(catalog.SESSION_TRANSACTION_DURATION, self.name, outcome)
        return self.transaction(outcome).hit, durations

    def leaks(self, reason: str) -> Tally:
        """The count of sessions that leaked for ``reason``."""
        return self.ledger.tally(catalog.SESSION_LEAKS, self.name, reason)

    def entities(self, operation: str) -> Tally:
        """The count of ORM objects written by ``operation``."""
        return self.ledger.tally(catalog.SESSION_ENTITIES, self.name, operation)

    def failure(self, error_type: str) -> Callable[[], object]:
        """The call that counts going from ``created`` to ``error`` for ``error_type``."""
        with self._lock:
            found = self._failures.get(error_type)
            if found is None:
                found = self._failures[error_type] = self._kept.move(
                    self, _CREATED, SessionState.ERROR, "failure", error_type
                )
            return found.hit

    def _read_failures(self) -> dict[str, float]:
        counts = {error_type: tally.read() for error_type, tally in self._failures.copy().items()}
        return {**dict.fromkeys(USUAL_FAILURES, 0.0), **counts}

    # A record is its session's thread's to change, so the watchdog never moves one. That it is idle
    # is written beside it, as true for as long as it has not moved on: a count of going idle is
    # taken back by one of coming back as soon as anybody looks, and no race can make them drift.

    def rest(self, record: Any, since: float) -> None:
        """Say that ``record``, which is active, has sent nothing since ``since``."""
        with self._resting_lock:
            known = id(record) in self.resting
            if not known:
                self.resting[id(record)] = Rest(weakref.ref(record), since)
        if not known:
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
        woken = 0
        with self._resting_lock:
            for key, rest in self.resting.copy().items():
                record = rest.record()
                gone = record is None or not self._holds(rest, record)
                if gone and self.resting.pop(key, None) is not None:
                    woken += 1
        for _ in range(woken):
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
            for outcome in self._creation(origin, target)[:1]:
                outcomes[outcome] += value
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
        yield catalog.SESSION_OLDEST_AGE, (self.name,), self.oldest_age()

    def oldest_age(self) -> float:
        """Age of the session that has been open longest, in seconds; 0 where none is open."""
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
        for record in alive(list(self.live.values())):
            record.detach()
        self.live.clear()
        self._resting_lock = threading.RLock()
        self.resting.clear()
        self.peak = 0
        for tally in (*(tally for *_, tally in self._edges), *self._failures.values()):
            tally.forget()


def _live_by_state(
    transitions: dict[tuple[SessionState, SessionState], float], live: int
) -> dict[SessionState, float]:
    counts: dict[SessionState, float] = dict.fromkeys(LIVE_STATES, 0.0)
    for (origin, target), value in transitions.items():
        if target in counts:
            counts[target] += value
        if origin in counts:
            counts[origin] -= value
    # Births are not counted: whoever is open and in no other state is still `created`.
    counts[_CREATED] = live - sum(n for state, n in counts.items() if state is not _CREATED)
    # A session that moves while we read may be missed in one place: never show less than none.
    return {state: max(n, 0.0) for state, n in counts.items()}
