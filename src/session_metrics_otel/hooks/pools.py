"""Pools: waiting, holding, timing out, by OpenTelemetry's ``db.client.connection.*`` metrics.

An engine's pool becomes an instance of a subclass of its own class, so that the pool which
``engine.dispose()`` makes in its place is observed as well.
"""

from __future__ import annotations

import logging
import os
from time import perf_counter
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from sqlalchemy import event
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool.base import _ConnectionFairy

from session_metrics_otel import catalog
from session_metrics_otel.binding import current_binding
from session_metrics_otel.faults import caught, guarded
from session_metrics_otel.ledger import LEDGER
from session_metrics_otel.legible import one_line
from session_metrics_otel.series import PENDING_LIMIT, Tally
from session_metrics_otel.tracing import current_mirror, lead_to, pool_exhausted
from session_metrics_otel.weak import alive

from .holders import Holder, describe_waiter, report_exhaustion, routes
from .places import line_of, place_of_checkout, place_of_engine
from .pool_classes import idle_connections, limits
from .servers import server_address
from .sessions import connection_refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from session_metrics_otel.catalog import Metric
    from session_metrics_otel.series import Labels

    from .observed_record import ObservedSessionMetrics
    from .places import Place

MAX_POOLS = 200
"""Different pool names that are told apart; the rest is ``_OTHER``."""

logger = logging.getLogger("session_metrics_otel")

_pools: WeakValueDictionary[int, Any] = WeakValueDictionary()

MANY_POOLS = 10
"""Pools of one name in a process that are warned of; then again at each doubling."""


def pool_name(engine: Engine) -> str:
    """The pool's name: its ``pool_logging_name``, or where it leads to.

    The latter is OpenTelemetry's rule, ``server.address:server.port/db.namespace``; what a URL
    doesn't have is left out, and a database without a server has its dialect's name for one.
    """
    given: str | None = engine.pool._orig_logging_name
    if given:
        return given
    url = engine.url
    port = f":{url.port}" if url.port else ""
    return f"{server_address(url) or url.get_backend_name()}{port}/{url.database or ''}"


class Meter:
    """What is counted of the pools of one name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = Tally()
        self.answered = Tally()
        self.detached = Tally()
        self.closed_detached = Tally()
        self.timeouts = LEDGER.tally(catalog.CONNECTION_TIMEOUTS, name)
        # There at 0, so that a rate sees the first.
        LEDGER.tally(catalog.POOL_NESTED_TIMEOUTS, name)
        self.pools_to_warn_of = MANY_POOLS
        self.invalidations = LEDGER.tally(catalog.POOL_INVALIDATIONS, name)
        self.create_time = LEDGER.histogram(catalog.CONNECTION_CREATE_TIME, name)
        self.wait_time = LEDGER.histogram(catalog.CONNECTION_WAIT_TIME, name)
        self.use_time = LEDGER.histogram(catalog.CONNECTION_USE_TIME, name)

    def fold(self) -> None:
        """Put what was measured into its buckets: every use of a connection follows a wait."""
        self.wait_time.fold_if_free()
        self.use_time.fold_if_free()

    def forget(self) -> None:
        """Start again at nothing, in a child after ``fork``."""
        for tally in (self.asked, self.answered, self.detached, self.closed_detached):
            tally.forget()


_meters: dict[str, Meter] = {}


def _meter(name: str) -> Meter:
    name = one_line(name)
    if name not in _meters and len(_meters) >= MAX_POOLS:
        name = catalog.OTHER  # as where each request has an engine of its own
    found = _meters.get(name)
    return _meters.setdefault(name, Meter(name)) if found is None else found


def _observed(  # noqa: C901 - one class
    kind: type[Any], meter: Meter, place: Callable[[], Place | None]
) -> type[Any]:
    """A subclass of the pool class ``kind`` that sees what is asked of it."""
    asked, answered = meter.asked.hit, meter.answered.hit
    waited, waits = meter.wait_time.add, meter.wait_time.pending
    used = meter.use_time.add
    checkout = _checkout_of(kind)

    class ObservedPool(kind):  # type: ignore[misc]  # which class is known when it runs
        __slots__ = ()  # an instance's class can only be changed for one of the same layout
        replaced = kind
        observed_meter = meter

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            _begin(self)

        def connect(self) -> Any:
            began = perf_counter()
            asked()
            try:
                fairy = checkout(self)
            except BaseException as error:
                answered()
                _refused(self, meter, error, place)
                raise
            answered()
            try:
                now = perf_counter()
                waited(now - began)
                if len(waits) > PENDING_LIMIT:
                    meter.fold()
                holder = Holder()
                holder.since = now
                holder.place = place()
                # Whole, as another thread may look at once. One that is shared may be out already.
                self.holders.setdefault(fairy._connection_record, holder)
            except Exception as fault:  # noqa: BLE001 - never the application's trouble
                if "holders" in vars(self):  # else it was given back meanwhile
                    caught("pools", fault)
            return fairy

        def _do_return_conn(self, record: Any) -> None:
            try:
                holder = self.holders.pop(record, None)
                if holder is not None:
                    seconds = perf_counter() - holder.since
                    used(seconds)
                    session = holder.session
                    held_by = session or holder.bound  # bound: of a Core connection
                    if held_by.route:
                        _count_route(held_by.route, seconds, session)
                    if session is not None and session._mirror is not None:
                        lead_to(session.span_mirror(), seconds, meter.use_time)
            except Exception as fault:  # noqa: BLE001
                if "holders" in vars(self):  # else it was given back meanwhile
                    caught("pools", fault)
            kind._do_return_conn(self, record)

        def recreate(self) -> Any:
            vars(self).get("holders", _Holders()).replaced = True
            return kind.recreate(self)

        def _should_wrap_creator(self, creator: Any) -> Any:
            return _timed(kind._should_wrap_creator(self, creator), meter)

    ObservedPool.__name__ = kind.__name__
    ObservedPool.__qualname__ = kind.__qualname__
    ObservedPool.__module__ = kind.__module__
    return ObservedPool


def _checkout_of(kind: type[Any]) -> Callable[[Any], Any]:
    """What a pool of the class ``kind`` does when it is asked for a connection.

    ``Pool.connect`` does nothing but call ``_ConnectionFairy._checkout``: where this is it, and
    nothing that stands in its place, that is called at once.
    """
    connect: Callable[[Any], Any] = kind.connect
    names = getattr(getattr(connect, "__code__", None), "co_names", None)
    if names == ("_ConnectionFairy", "_checkout"):
        return _ConnectionFairy._checkout
    return connect


def _nowhere() -> None:
    return None


class _Holders(dict[Any, Holder]):
    """The connections that are out of a pool, by their entry in it.

    Attributes:
        replaced: Whether the pool has been given up for another; what is out still comes back.
    """

    replaced = False


def _begin(pool: Any) -> None:
    pool.holders = _Holders()
    _pools[id(pool)] = pool


def _observed_pools() -> Iterator[tuple[Any, Meter, _Holders]]:
    """The pools, each with its meter and who holds its connections."""
    for pool in alive(_pools.valuerefs()):
        meter, holders = getattr(pool, "observed_meter", None), vars(pool).get("holders")
        if meter is not None and holders is not None:  # else it is being given back just now
            yield pool, meter, holders


def _timed(create: Callable[[Any], Any], meter: Meter) -> Callable[[Any], Any]:
    def timed(entry: Any) -> Any:
        began = perf_counter()
        connection = create(entry)
        meter.create_time.observe(perf_counter() - began)
        return connection

    return timed


def _refused(
    pool: Any, meter: Meter, error: BaseException, place: Callable[[], Place | None]
) -> None:
    record = connection_refused(pool._dialect, error)
    try:
        if isinstance(error, PoolTimeoutError):
            meter.timeouts.hit()
            held = list(getattr(pool, "holders", {}).values())
            waiting = describe_waiter(record, place(), held)
            if waiting["holds"]:
                LEDGER.tally(catalog.POOL_NESTED_TIMEOUTS, meter.name).hit()
            report = report_exhaustion(meter.name, pool, held, waiting)
            if record is None:
                pool_exhausted(current_mirror(), report)
            else:
                pool_exhausted(record.span_mirror(), report)
    except Exception as fault:  # noqa: BLE001
        caught("pools", fault)


def holder_of(session: ObservedSessionMetrics) -> Holder | None:
    """The connection that ``session`` holds, or None."""
    for _, _, holders in _observed_pools():
        for holder in list(holders.values()):
            if holder.session is session:
                return holder
    return None


def _count_route(route: str, seconds: float, session: ObservedSessionMetrics | None) -> None:
    use_time = LEDGER.histogram(catalog.ROUTE_CONNECTION_USE_TIME, routes.admit(route))
    use_time.observe(seconds)
    if session is not None:
        lead_to(session.span_mirror(), seconds, use_time)


class _Listeners:
    """What is heard of a pool, and of those that ``dispose()`` makes after it.

    These take the listeners over, and keep them whatever is removed elsewhere: so the listeners
    themselves know whether anybody wants to hear of it.
    """

    def __init__(self, meter: Meter) -> None:
        self.wanted = True
        self.by_event = {
            "invalidate": self._counting(meter.invalidations),
            "soft_invalidate": self._counting(meter.invalidations),
            "detach": self._counting(meter.detached),
            "close_detached": self._counting(meter.closed_detached),
        }

    def _counting(self, tally: Tally) -> Callable[..., None]:
        def listener(*_: Any) -> None:
            if self.wanted:
                tally.hit()

        return listener


def hook(engine: Engine, *, holder_lines: bool = True) -> None:
    """Observe the pool of ``engine``, and those that come after it.

    Args:
        engine: The engine.
        holder_lines: Whether to take note of the line of code that takes each connection.
    """
    pool: Any = engine.pool
    if not hasattr(pool, "observed_meter"):
        meter = _meter(pool_name(engine))
        _begin(pool)  # before its class changes: others may be using it
        pool.__class__ = _observed(
            type(pool), meter, place_of_checkout if holder_lines else _nowhere
        )
        pool._invoke_creator = _timed(pool._invoke_creator, meter)
        type(pool).listeners = _Listeners(meter)
        for name, listener in pool.listeners.by_event.items():
            event.listen(pool, name, listener)
        type(pool).engines = WeakSet()
        _warn_of_many(meter)
    pool.engines.add(engine)


def _warn_of_many(meter: Meter) -> None:
    """Say which line makes the engines, where pools of one name multiply."""
    if meter.name == catalog.OTHER:
        return  # these lead to different places
    in_use = sum(its is meter and not holders.replaced for _, its, holders in _observed_pools())
    if in_use >= meter.pools_to_warn_of:
        meter.pools_to_warn_of *= 2
        bound = current_binding.get()
        logger.warning(
            "%d pools lead to %r, where one engine would do: the last was made at %s, request %s, "
            "route %s",
            in_use, meter.name, line_of(place_of_engine()) or "an unknown place",
            one_line(bound.request_id) or "unknown", one_line(bound.route) or "unknown",
        )  # fmt: skip


def unhook(engine: Engine) -> None:
    """Put the pool of ``engine`` back as it was, where no other engine that is hooked shares it."""
    pool: Any = engine.pool
    if hasattr(pool, "observed_meter"):
        pool.engines.discard(engine)
        if any(other.pool is pool for other in pool.engines):  # of create_engine(pool=...)
            return
        pool.listeners.wanted = False
        for name, listener in pool.listeners.by_event.items():
            if event.contains(pool, name, listener):
                event.remove(pool, name, listener)
        _pools.pop(id(pool), None)
        pool.__class__ = pool.replaced
        pool._invoke_creator = pool._should_wrap_creator(pool._creator)
        del pool.holders


def _read() -> Iterator[tuple[Metric, Labels, float]]:
    sums: dict[tuple[Metric, Labels], float] = {}

    def add(metric: Metric, labels: Labels, value: float) -> None:
        sums[metric, labels] = sums.get((metric, labels), 0) + value

    for pool, its, holders in _observed_pools():
        name = its.name
        used = len(holders)
        add(catalog.CONNECTION_COUNT, (name, "used"), used)
        if holders.replaced:
            continue
        add(catalog.POOLS, (name,), 1)
        try:
            idle, limited = idle_connections(pool, used), limits(pool)
        except Exception as fault:  # noqa: BLE001 - a class of its own kind; all else is still told
            caught("pools", fault)
            continue
        if idle is not None:
            add(catalog.CONNECTION_COUNT, (name, "idle"), idle)
        for metric, value in limited.items():
            add(metric, (name,), value)
    for name, meter in _meters.copy().items():
        pending = meter.answered.read(), meter.asked.read()
        add(catalog.CONNECTION_PENDING_REQUESTS, (name,), max(pending[1] - pending[0], 0))
        closed, detached = meter.closed_detached.read(), meter.detached.read()
        add(catalog.POOL_DETACHED, (name,), max(detached - closed, 0))
    for (metric, labels), value in sums.items():
        yield metric, labels, value


LEDGER.read_with(guarded("pools", _read))


def _forget() -> None:
    """Leave to the parent what is the parent's, in a child after ``fork``."""
    for meter in _meters.values():
        meter.forget()
    for _, _, holders in _observed_pools():
        holders.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
