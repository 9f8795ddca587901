"""instrument() and uninstrument(): three lines for an application."""

from __future__ import annotations

import sys
import threading
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args
from weakref import WeakSet

from opentelemetry import trace
from sqlalchemy import Dialect, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from .catalog import DEFAULT_FACTORY
from .faults import caught
from .hooks import connection_spans, pools, statements
from .hooks.observer import Adopter, Observer, engine_behind
from .hooks.session_classes import watch
from .hooks.sessions import any_open, attached_record
from .hooks.statement_spans import StatementSpans
from .ledger import LEDGER

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.trace import Tracer, TracerProvider
    from sqlalchemy.ext.asyncio import (
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )

    from .hooks.comments import SqlComments
    from .hooks.statement_spans import StatementHook
    from .session_metrics import DatabaseSessionMetrics

    Target = (
        type[Session | AsyncSession]
        | sessionmaker[Any]
        | async_sessionmaker[Any]
        | scoped_session[Any]
        | async_scoped_session[Any]
        | Engine
        | AsyncEngine
    )
    """What ``instrument`` takes."""

SpanMode = Literal["span", "attributes", "off"]
"""One span per session; its attributes and events on the caller's span; or nothing."""

UserIdMode = Literal["plain", "hashed"]
"""How a user's id goes onto spans: as ``user.id``, or its SHA-256 as ``user.hash``."""

_TAKEN = (
    "a sessionmaker, async_sessionmaker, scoped_session, async_scoped_session, Engine, "
    "AsyncEngine, or a subclass of Session or AsyncSession"
)

_lock = threading.RLock()


MARK = "_session_metrics_instrumented"
"""Where a target, and the dialect of a hooked engine, keep what was done to them.

There and not in a table of ours: so it goes when they go, however many an application makes.
"""


@dataclass(eq=False)
class _Instrumented:
    """What was done to one target, and how to put it back."""

    observer: Observer
    restore: Callable[[], None]


class _EngineHooks:
    """An engine's hooks, and the observers that need them: the last one out unhooks it.

    Attributes:
        owner: The observer of an engine that was instrumented by itself.
    """

    def __init__(self) -> None:
        self.users: WeakSet[Observer] = WeakSet()
        self.owner: Observer | None = None


def _hooks_of(dialect: Dialect) -> _EngineHooks | None:
    return vars(dialect).get(MARK)


def _owner_of(dialect: Dialect) -> Observer | None:
    hooks = _hooks_of(dialect)
    return None if hooks is None else hooks.owner


_adopter = Adopter(_owner_of)


def instrument(
    target: Target,
    *,
    name: str = DEFAULT_FACTORY,
    spans: SpanMode = "span",
    user_id: UserIdMode | None = None,
    tracer_provider: TracerProvider | None = None,
    statement_spans: bool = True,
    transaction_spans: bool = False,
    statement_hook: StatementHook | None = None,
    sql_comments: SqlComments | None = None,
    repeated_statements: int | None = None,
    holder_lines: bool = True,
) -> None:
    """Count the sessions of ``target`` from here on, and trace them.

    If only an engine is instrumented, a session is counted from its first use of that engine.
    Instrumenting a target again changes nothing.

    Args:
        target: A ``sessionmaker``, ``async_sessionmaker``, ``scoped_session``, ``Engine``,
            ``AsyncEngine``, or a subclass of ``Session`` or ``AsyncSession``.
        name: The group that the series are counted under (the attribute ``factory``): one per
            sessionmaker, never one per request.
        spans: ``span``: one span per session. ``attributes``: no span for the session; its
            attributes and events go onto the caller's current span. ``off``: neither.
        user_id: ``plain`` or ``hashed`` puts the user's id on the session's span.
        tracer_provider: Where spans come from; if None, the application's own (global) one.
        statement_spans: Whether each statement and each new connection has a span, by
            OpenTelemetry's database conventions; never if ``spans`` is ``off``.
        transaction_spans: Whether commits and rollbacks have a span, if statements have one.
        statement_hook: Called with the span of each statement, before it ends, and with
            SQLAlchemy's execution context, to add attributes of your own.
        sql_comments: What to write in a comment at the end of each traced statement, such as its
            ``traceparent``; None for no comments.
        repeated_statements: Count a session that sends the same statement more often than this
            (an N+1 query), and name the statement on its span; 10 is a good number. None: do not
            look.
        holder_lines: Whether the report on an exhausted pool names the line of code that took each
            connection. The first to instrument an engine decides for its pool.

    Raises:
        TypeError: ``target`` cannot be instrumented.
        ValueError: An option has a value that it does not accept.
    """
    _check_option("spans", spans, get_args(SpanMode))
    _check_option("user_id", user_id, (None, *get_args(UserIdMode)))
    if not isinstance(name, str):
        message = f"name={name!r} is not taken; give the factory's name as a str."
        raise TypeError(message)
    subject = _subject(target)
    with _lock:
        if MARK in vars(subject):
            return
        tracer = _tracer_of(tracer_provider)
        traced = StatementSpans(
            tracer,
            hook=statement_hook,
            comments=sql_comments,
            transactions=transaction_spans,
            own_spans=spans == "span",
        )
        observer = Observer(
            name,
            spans=spans,
            user_id=user_id,
            tracer=tracer,
            own_provider=tracer_provider is not None,
            statements=traced if statement_spans and spans != "off" else None,
            repeated_statements=repeated_statements,
            holder_lines=holder_lines,
            meet=_hook_engine,
        )
        setattr(subject, MARK, _Instrumented(observer, _install(subject, observer)))


def uninstrument(target: Target) -> None:
    """Put ``target`` back as it was. Sessions that are open are counted until their end.

    Raises:
        TypeError: ``target`` could not have been instrumented.
    """
    subject = _subject(target)
    with _lock:
        found: _Instrumented | None = vars(subject).get(MARK)
        if found is not None:
            delattr(subject, MARK)
            found.restore()
            found.observer.ended = _leave_engines
            _leave_engines(found.observer)


def metrics_for(session: Any) -> DatabaseSessionMetrics:
    """The record of a ``Session``, ``AsyncSession`` or scoped session.

    Raises:
        LookupError: The session is not instrumented, or has not yet used an instrumented engine.
        TypeError: ``session`` is no session.
    """
    if isinstance(session, (scoped_session, asyncio_class("async_scoped_session"))):
        session = session()
    if isinstance(session, asyncio_class("AsyncSession")):
        session = session.sync_session
    if not isinstance(session, Session):
        message = f"metrics_for() takes a Session, AsyncSession or scoped session, not {session!r}."
        raise TypeError(message)
    record = attached_record(session)
    if record is None:
        message = (
            f"{session!r} has no record: instrument() its sessionmaker before the session is made. "
            "(Where only the engine is instrumented, a session has one from its first statement.)"
        )
        raise LookupError(message)
    return record


def asyncio_class(name: str) -> Any:
    """The class called ``name`` of SQLAlchemy's asyncio extension, to ask ``isinstance`` of.

    The extension needs greenlet, which need not be there. Whoever has an object of it has imported
    it; until then nothing is an instance, which is what the empty tuple says.
    """
    extension = sys.modules.get("sqlalchemy.ext.asyncio")
    return () if extension is None else getattr(extension, name)


def factory_name_of(target: Target) -> str | None:
    """The name that the sessions of ``target`` are counted under, or None where they are not."""
    found: _Instrumented | None = vars(_subject(target)).get(MARK)
    return None if found is None else found.observer.name


def _tracer_of(provider: TracerProvider | None) -> Tracer:
    try:
        return trace.get_tracer("session_metrics_otel", tracer_provider=provider)
    except Exception as fault:  # noqa: BLE001 - counted without spans
        caught("tracing", fault)
        return trace.NoOpTracer()


def _check_option(name: str, given: object, taken: tuple[object, ...]) -> None:
    if given not in taken:
        message = f"{name}={given!r} is not taken; give one of {', '.join(map(repr, taken))}."
        raise ValueError(message)


def _subject(target: Any) -> Any:
    """What is hooked for ``target``: the sync engine, the maker inside a scoped session."""
    if isinstance(target, (scoped_session, asyncio_class("async_scoped_session"))):
        return _subject(target.session_factory)
    if isinstance(target, asyncio_class("AsyncEngine")):
        return target.sync_engine
    if isinstance(target, (sessionmaker, asyncio_class("async_sessionmaker"), Engine)):
        return target
    if isinstance(target, type) and issubclass(target, (Session, asyncio_class("AsyncSession"))):
        return target
    # A text may be a URL with its password.
    given = f"a {type(target).__name__}" if isinstance(target, (str, bytes)) else repr(target)
    message = f"Cannot instrument {given}: give {_TAKEN}."
    raise TypeError(message)


def _install(subject: Any, observer: Observer) -> Callable[[], None]:
    """Hook ``subject`` for ``observer``; returns the call that puts it back."""
    if isinstance(subject, Engine):
        return _adopt_sessions_of(subject, observer)
    if isinstance(subject, type) and issubclass(subject, Session):
        return watch(subject, observer)
    if isinstance(subject, type):
        return _replace_sync_class(subject, observer)
    for bind in (subject.kw.get("bind"), *(subject.kw.get("binds") or {}).values()):
        observer.meet(bind)
    if isinstance(subject, sessionmaker):
        return watch(subject.class_, observer)  # every sessionmaker makes a class of its own
    return _give_sync_class(subject, observer)


def _give_sync_class(maker: async_sessionmaker[Any], observer: Observer) -> Callable[[], None]:
    # By argument: an async_sessionmaker's class may be AsyncSession itself, which is everyone's.
    given = maker.kw.get("sync_session_class")
    if isinstance(given, sessionmaker):  # as advanced-alchemy gives, for its listeners
        return watch(given.class_, observer)
    own, leave = _watched_subclass(given or maker.class_.sync_session_class, observer)
    maker.kw["sync_session_class"] = own

    def restore() -> None:
        leave()
        if maker.kw["sync_session_class"] is not own:
            return  # configured anew meanwhile
        if given is None:
            del maker.kw["sync_session_class"]
        else:
            maker.kw["sync_session_class"] = given

    return restore


def _replace_sync_class(kind: type[AsyncSession], observer: Observer) -> Callable[[], None]:
    given = kind.__dict__.get("sync_session_class")
    own, leave = _watched_subclass(kind.sync_session_class, observer)
    kind.sync_session_class = own

    def restore() -> None:
        leave()
        if given is None:
            del kind.sync_session_class
        else:
            kind.sync_session_class = given

    return restore


def _watched_subclass(
    kind: type[Session], observer: Observer
) -> tuple[type[Session], Callable[[], None]]:
    """A subclass for one factory alone, as a sessionmaker makes one; and the end of its watch."""
    own = type(kind.__name__, (kind,), {"__module__": kind.__module__})
    return own, watch(own, observer)


def _adopt_sessions_of(engine: Engine, observer: Observer) -> Callable[[], None]:
    hooks = _hook_engine(observer, engine_behind(engine))
    hooks.owner = observer
    _choose_core_spans(engine, hooks)
    # Some engines are never given back, but only forgotten.
    leave = weakref.finalize(engine, watch(Session, _adopter))
    leave.atexit = False

    def restore() -> None:
        hooks.owner = None
        leave()

    return restore


def _hook_engine(observer: Observer, engine: Engine) -> _EngineHooks:
    """Observe ``engine`` for ``observer``."""
    with _lock:
        hooks = _hooks_of(engine.dialect)
        if hooks is None:
            hooks = _EngineHooks()
            setattr(engine.dialect, MARK, hooks)
            statements.hook(engine)
            connection_spans.hook(engine)
            pools.hook(engine, holder_lines=observer.holder_lines)
        if observer.statements is not None and observer.statements.transactions:
            connection_spans.hook_transactions(engine)
        hooks.users.add(observer)
        observer.engines.add(engine)
        _choose_core_spans(engine, hooks)
        return hooks


def _choose_core_spans(engine: Engine, hooks: _EngineHooks) -> None:
    """Statements that no session sends are traced as the engine says, or else any factory of it."""
    observers = [hooks.owner, *sorted(hooks.users, key=lambda observer: observer.name)]
    traced = [observer.statements for observer in observers if observer is not None]
    statements.trace_core(engine, next((found for found in traced if found is not None), None))


def _leave_engines(observer: Observer) -> None:
    """Unhook what only ``observer`` needs, once the last of its sessions has ended."""
    with _lock:
        # A session that is born from here on meets its engine again, and waits for us to be done;
        # one that was born before is live.
        observer.met = None
        if LEDGER.factory(observer.name).live and any_open(observer):
            return
        for engine in list(observer.engines):
            hooks = _hooks_of(engine.dialect)
            observer.engines.discard(engine)
            if hooks is not None:
                hooks.users.discard(observer)
                if not hooks.users:
                    delattr(engine.dialect, MARK)
                    connection_spans.unhook(engine)
                    statements.unhook(engine)
                    pools.unhook(engine)
                else:
                    _choose_core_spans(engine, hooks)
