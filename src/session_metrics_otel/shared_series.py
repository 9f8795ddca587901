"""What a series is kept in where many processes add up: as in one process, but in files.

Each event is written as it happens, so that nothing is lost with the process, and wherever it
shows: prometheus_client's collector adds up, and works out nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, cast

from . import catalog
from .catalog import USUAL_FAILURES, SessionState
from .series import Distribution, Histogram, Tally
from .value_files import Group, Sample

if TYPE_CHECKING:
    import weakref

    from .factory_ledger import FactoryLedger
    from .value_files import ValueFiles

_NUMBER = {state: number for number, state in enumerate(catalog.LIVE_STATES)}
_CREATED = _NUMBER[SessionState.CREATED]


class SharedTally(Tally):
    """A count that only rises, in a file."""

    __slots__ = ("group",)

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group
        self.hit = self._hit

    def _hit(self) -> None:
        group = self.group
        try:
            group.view[group.at[0]] += 1.0
        except ValueError:
            group.open()
            group.view[group.at[0]] += 1.0

    def add(self, amount: float) -> None:
        """Add more than one at a time; a negative or zero amount changes nothing."""
        group = self.group
        if amount > 0:
            try:
                group.view[group.at[0]] += amount
            except ValueError:
                group.open()
                group.view[group.at[0]] += amount

    def read(self) -> float:
        """The total of this process so far."""
        return self.group.read()[0]

    def forget(self) -> None:
        """Nothing to forget: a child writes to a file of its own."""


class Move(Tally):
    """A count of one change of state, written wherever it shows.

    Args:
        factory: The factory.
        counted: The transition and, out of ``created``, the creation by its outcome.
        states: The gauges of the factory's sessions by state.
        origin: The state that is left.
        target: The state that is gone to.
    """

    __slots__ = (
        "_counted",
        "_creates",
        "_factory",
        "_here",
        "_less",
        "_more",
        "_resting",
        "_states",
    )

    def __init__(
        self,
        factory: FactoryLedger,
        counted: Group,
        states: Group,
        origin: SessionState,
        target: SessionState,
    ) -> None:
        super().__init__()
        self._factory = factory
        self._counted = counted
        self._states = states
        self._creates = len(counted.samples) > 1
        self._here = 0
        # One that is opened again is written into the register as a birth is: it leaves `created`.
        self._less = _NUMBER.get(origin, _CREATED)
        self._more = _NUMBER.get(target)
        # What is idle is no more when it moves: the watchdog's count of it is taken back first.
        leaves_work = origin is SessionState.ACTIVE and target is not SessionState.IDLE
        self._resting = factory.resting if leaves_work else {}
        self.hit = self._hit

    def _hit(self) -> None:
        if self._resting:
            self._factory.wake()
        counted, states = self._counted, self._states
        try:
            counted.view[counted.at[0]] += 1.0
        except ValueError:
            states.open()
            counted.open()
            counted.view[counted.at[0]] += 1.0
        self._here += 1
        if self._creates:
            counted.view[counted.at[1]] += 1.0
        view, at = states.view, states.at
        view[at[self._less]] -= 1.0
        if self._more is not None:
            view[at[self._more]] += 1.0

    def read(self) -> float:
        """How often this process counted it."""
        return self._here

    def forget(self) -> None:
        """Start again at nothing."""
        self._here = 0


class SharedHistogram(Histogram):
    """A distribution of measurements, in a file: none is ever pending."""

    __slots__ = ("group",)

    def __init__(self, bounds: tuple[float, ...], group: Group) -> None:
        super().__init__(bounds)
        self.group = group
        self.add = self.observe

    def observe(self, value: float) -> None:
        """Add a measurement; what is not a number is none."""
        if value != value:  # noqa: PLR0124 - it is a call less than isnan()
            return
        bucket = bisect_left(self._bounds, value)
        group = self.group
        view, at = group.view, group.at
        try:
            view[at[bucket]] += 1.0
        except ValueError:
            group.open()
            group.at_work()
            view, at = group.view, group.at
            view[at[bucket]] += 1.0
        view[at[-1]] += value
        if self.listeners:
            for listener in self.listeners:
                listener([value], self.exemplars)

    def read(self) -> Distribution:
        """Everything that this process observed."""
        *counts, total = self.group.read()
        return Distribution([int(count) for count in counts], total, dict(self.exemplars))

    def forget(self) -> None:
        """Keep no exemplar that is the parent's."""
        self.exemplars.clear()


class Live(dict[int, "weakref.ref[Any]"]):
    """A factory's register of open sessions, which writes down each birth."""

    def __init__(self, files: ValueFiles, factory: FactoryLedger) -> None:
        super().__init__()
        self._factory = factory
        name = factory.name
        self.states = Group(files, *(Sample(catalog.SESSIONS, (name, state)) for state in _NUMBER))
        self._peak = Group(files, Sample(catalog.SESSION_PEAK, (name,)))
        self._register = super().__setitem__
        # A rate needs a series that was there at 0 before its first event.
        failures = (("failure", error_type) for error_type in USUAL_FAILURES)
        self._outcomes = Group(files, *(
            Sample(catalog.SESSION_CREATIONS, (name, *outcome))
            for outcome in (("success", ""), ("unused", ""), *failures)
        ))  # fmt: skip

    def __setitem__(self, key: int, reference: weakref.ref[Any]) -> None:
        """Register a session that was just created, or opened again."""
        self._register(key, reference)
        states = self.states
        try:
            states.view[states.at[_CREATED]] += 1.0
        except ValueError:
            for group in (states, self._outcomes):
                group.open()
            for series in self._factory.standing:
                cast("SharedTally | SharedHistogram", series).group.open()
            states.at_work()
            states.view[states.at[_CREATED]] += 1.0

    def raise_peak(self, peak: int) -> None:
        """Write the most that were open at once."""
        self._peak.open()
        self._peak.view[self._peak.at[0]] = peak
