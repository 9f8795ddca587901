"""Session classes: what a factory makes becomes a class that tells its observer what is done to it.

A factory's sessions are made of a subclass of the class they would have been made of, which lives
as long as they do: so a session that is open while its factory is given back is still counted to
its end.
"""

from __future__ import annotations

from functools import wraps
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy.orm import Session

from session_metrics_otel.faults import caught

from .observer import observer_of
from .sessions import ending, listen

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from .observed_record import ObservedSessionMetrics
    from .observer import Observer

OBSERVED = "_session_metrics_observed"
"""Where a session class keeps the subclass that its watched sessions are instances of."""

WATCH = "_session_metrics_watch"
"""Where a session class that is watched keeps its watch."""


def observed_class(kind: type[Session], observer: Observer) -> type[Session]:
    """The class that ``kind``'s sessions become instances of while ``observer`` watches them."""
    # Kept on `kind`, so that it goes when that goes: some make a sessionmaker for each request.
    found: type[Session] | None = vars(kind).get(OBSERVED)
    if found is None or observer_of(found) is not observer:
        found = _observed(kind, observer)
        listen(found)
        setattr(kind, OBSERVED, found)
    return found


def _observed(kind: type[Any], observer: Observer) -> type[Any]:
    """A subclass of the session class ``kind`` that tells ``observer`` of what is done to it."""

    class ObservedSession(kind):  # type: ignore[misc]  # which class is known when it runs
        __slots__ = ()  # an instance's class can only be changed for one of the same layout
        # Attributes, never keys of `__dict__`: who asks a session for that makes a dictionary of
        # what Python keeps in a faster form, and SQLAlchemy's own work on it becomes slower.
        _session_observer = observer
        _session_metrics: ObservedSessionMetrics | None = None
        _session_metrics_owner: Observer | None = None
        """Of a session that was adopted: the observer that counts it."""

        close = _ending(kind, "close")
        invalidate = _ending(kind, "invalidate")
        if hasattr(kind, "reset"):  # SQLAlchemy has it from 2.0.22
            reset = _ending(kind, "reset")

    if not observer.adopts:
        _meet_what_it_binds(ObservedSession, kind, observer)
    ObservedSession.__name__ = kind.__name__
    ObservedSession.__qualname__ = kind.__qualname__
    ObservedSession.__module__ = kind.__module__
    return ObservedSession


def _meet_what_it_binds(observed: type[Any], kind: type[Any], observer: Observer) -> None:
    """Have ``observer`` meet engines that nobody has seen yet: their first connection may fail."""

    def meet(bind: Any) -> None:
        try:
            observer.meet(bind)
        except Exception as fault:  # noqa: BLE001 - never the session's trouble
            caught("sessions", fault)

    def _add_bind(self: Any, key: Any, bind: Any) -> None:
        """Of ``binds=``, and of ``bind_mapper()``."""
        super(observed, self)._add_bind(key, bind)
        meet(bind)

    observed._add_bind = _add_bind
    if kind.get_bind is not Session.get_bind:

        def get_bind(self: Any, *args: Any, **kwargs: Any) -> Engine | Connection:
            bind: Engine | Connection = super(observed, self).get_bind(*args, **kwargs)
            meet(bind)
            return bind

        observed.get_bind = get_bind


def _ending(kind: type[Any], name: str) -> Callable[..., Any]:
    """``ending()``, for a method of ``kind``'s own too, whatever that takes and answers."""
    if getattr(kind, name) is getattr(Session, name, None):
        return ending(kind, name)

    def ended(self: Any, *args: Any, **kwargs: Any) -> Any:
        answers = []

        def end(session: Any) -> None:
            answers.append(getattr(kind, name)(session, *args, **kwargs))

        ending(SimpleNamespace(**{name: end}), name)(self)
        return answers[0]

    ended.__name__ = name
    return ended


class _Watch:
    """A class whose ``__init__`` is ours while somebody watches what is made of it.

    The class stays where it is, as listeners are registered with it; it is the session made of it
    that becomes an instance of an observed subclass.
    """

    def __init__(self, kind: type[Session]) -> None:
        self.kind = kind
        self.own = kind.__dict__.get("__init__")
        self._observers: list[Observer] = []
        self.observer: Observer
        self.observed: type[Session]

    def install(self) -> None:
        original: Callable[..., None] = self.kind.__init__
        kind = self.kind
        watch = self

        @wraps(original)  # who looks at its parameters, such as dependency injection, finds them
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
            observer = watch.observer
            if self.__class__ is kind:
                self.__class__ = watch.observed
            elif observer_of(self) is None:
                self.__class__ = observed_class(type(self), observer)
            else:  # the watch on a class derived from this one came first
                original(self, *args, **kwargs)
                return
            original(self, *args, **kwargs)
            if observer.adopts:
                return
            try:
                if self._session_metrics is None:  # else its own constructor used it already
                    observer.born(self)
                if self.bind is not observer.met:
                    observer.meet(self.bind)
            except Exception as fault:  # noqa: BLE001 - never the session's trouble
                caught("sessions", fault)

        self.kind.__init__ = __init__  # type: ignore[method-assign]

    def join(self, observer: Observer) -> None:
        self._observers.append(observer)
        self._choose()

    def _choose(self) -> None:
        """Whoever watches all the sessions comes before whoever only adopts some."""
        self.observer = min(self._observers, key=lambda observer: observer.adopts)
        self.observed = observed_class(self.kind, self.observer)

    def leave(self, observer: Observer) -> None:
        self._observers.remove(observer)
        if self._observers:
            self._choose()
            return
        delattr(self.kind, WATCH)
        if OBSERVED in vars(self.kind):
            delattr(self.kind, OBSERVED)
        _forget_derived(self.kind)
        if self.own is None:
            del self.kind.__init__
        else:
            self.kind.__init__ = self.own  # type: ignore[method-assign]


def _forget_derived(kind: type[Session]) -> None:
    """Take off what a watch on ``kind`` has left on classes derived from it."""
    for derived in kind.__subclasses__():
        if OBSERVED in vars(derived) and WATCH not in vars(derived):
            delattr(derived, OBSERVED)
        _forget_derived(derived)


def watch(kind: type[Session], observer: Observer) -> Callable[[], None]:
    """Have ``observer`` watch every session that is made of ``kind`` itself or of a subclass.

    Returns:
        A call that ends it, and puts ``kind`` back as it was where nobody else watches.
    """
    found: _Watch | None = vars(kind).get(WATCH)
    if found is None:
        found = _Watch(kind)
        setattr(kind, WATCH, found)
        found.join(observer)
        found.install()
    else:
        found.join(observer)
    return lambda: found.leave(observer)
