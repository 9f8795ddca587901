"""Every metric and attribute this package exports, declared once, as data.

The OpenTelemetry name is the one that is written down. The name on ``/metrics`` is derived
from it by OpenTelemetry's rules for Prometheus, so that one dashboard serves both ways out.
Names under ``db.`` come from OpenTelemetry's database semantic conventions; what these lack
is ours, under ``sqlalchemy.`` and ``application.``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property


class SessionState(str, Enum):
    """What a session is doing: the values of ``state``, ``from_state`` and ``to_state``."""

    CREATED = "created"
    ACTIVE = "active"
    IDLE = "idle"
    COMMITTED = "committed"
    ROLLED_BACK = "rolled_back"
    ERROR = "error"
    CLOSING = "closing"
    CLOSED = "closed"


class Kind(str, Enum):
    """The OpenTelemetry instrument a metric is recorded with."""

    COUNTER = "counter"
    UP_DOWN_COUNTER = "updowncounter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


DEFAULT_FACTORY = "default"
"""The ``factory`` of sessions whose factory was given no name."""

LIVE_STATES: tuple[SessionState, ...] = tuple(
    state for state in SessionState if state is not SessionState.CLOSED
)
"""Those of a session that is open: the values of ``state``."""

WORKING_STATES = frozenset(
    {SessionState.ACTIVE, SessionState.IDLE, SessionState.COMMITTED, SessionState.ROLLED_BACK}
)
"""States that say a session had its first connection: leaving ``created`` for one is a success."""

TRANSACTION_OUTCOMES = ("committed", "rolled_back", "closed")
"""How a transaction may end: the values of ``outcome``."""

UNSPECIFIED = "unspecified"
"""The ``outcome`` of a transaction whose record did not say."""

GARBAGE_COLLECTED = "garbage_collected"
"""The ``reason`` of a leak noticed when an unclosed session was collected."""

OVERDUE = "overdue"
"""The ``reason`` of a leak: a session open for longer than the watchdog's limit."""

IDLE_IN_TRANSACTION = "idle_in_transaction"
"""The ``reason`` of a leak: a transaction left open with no statement sent (PostgreSQL's term)."""

LEAK_REASONS = (OVERDUE, IDLE_IN_TRANSACTION, GARBAGE_COLLECTED)
"""Why a session is said to leak: the values of ``reason``."""

OTHER = "_OTHER"
"""The value of ``error.type`` where none can be named (OpenTelemetry's fallback value)."""

USUAL_FAILURES = ("TimeoutError", "OperationalError", OTHER)
"""``error.type`` of the creations that fail as they usually do: the pool is exhausted, the database
refuses. A rate needs their series at 0 before the first."""

DURATION_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds in seconds that OpenTelemetry's database conventions advise."""

SESSION_DURATION_BUCKETS = (*DURATION_BUCKETS, 30.0, 60.0, 300.0)
"""The same, on to five minutes: the age at which a session is said to leak."""

QUERIES_BUCKETS = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
"""Upper bounds in statements per session."""


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric: a row of the catalogue.

    Attributes:
        name: The OpenTelemetry name.
        kind: The instrument.
        unit: The unit as UCUM writes it (``s``, ``By``); ``{thing}`` is a count of things.
        attributes: The attributes a series of it may have, in the order series are keyed by.
        help: What it says, and what a bad value means.
        buckets: The upper bounds of a histogram, inclusive, in ``unit``.
    """

    name: str
    kind: Kind
    unit: str
    attributes: tuple[str, ...]
    help: str
    buckets: tuple[float, ...] = ()

    @cached_property
    def prometheus_name(self) -> str:
        """The name of the family on ``/metrics``, ``_total`` included where it is a counter."""
        suffix = {"s": "_seconds", "By": "_bytes"}.get(self.unit, "")
        total = "_total" if self.kind is Kind.COUNTER else ""
        return self.name.replace(".", "_") + suffix + total

    @property
    def sample_names(self) -> tuple[str, ...]:
        """The names of its lines on ``/metrics``: a histogram has three kinds of them."""
        ends = ("_bucket", "_count", "_sum") if self.kind is Kind.HISTOGRAM else ("",)
        return tuple(f"{self.prometheus_name}{end}" for end in ends)


def label_name(attribute: str) -> str:
    """The label on ``/metrics`` for an attribute: dots become underscores."""
    return attribute.replace(".", "_")


SESSIONS = Metric(
    "sqlalchemy.sessions",
    Kind.UP_DOWN_COUNTER,
    "{session}",
    ("factory", "state"),
    "Sessions open now, by state. One that stays in active, idle or error holds a connection.",
)
SESSION_PEAK = Metric(
    "sqlalchemy.session.peak",
    Kind.GAUGE,
    "{session}",
    ("factory",),
    "The most sessions open at once since the process started.",
)
SESSION_CREATIONS = Metric(
    "sqlalchemy.session.creations",
    Kind.COUNTER,
    "{session}",
    ("factory", "outcome", "error.type"),
    "Sessions by how their creation ended: success (got a first connection), failure (did not get "
    "one), unused (closed having done nothing). success / (success + failure) is the success rate.",
)
SESSION_CREATION_DURATION = Metric(
    "sqlalchemy.session.creation.duration",
    Kind.HISTOGRAM,
    "s",
    ("factory",),
    "From a session's creation to its first connection. Long ones wait for pool or database.",
    DURATION_BUCKETS,
)
SESSION_TRANSITIONS = Metric(
    "sqlalchemy.session.state.transitions",
    Kind.COUNTER,
    "{transition}",
    ("factory", "from_state", "to_state"),
    "Changes of state. Look into many to error, or from active straight to closing.",
)
SESSION_DURATION = Metric(
    "sqlalchemy.session.duration",
    Kind.HISTOGRAM,
    "s",
    ("factory",),
    "From a session's creation to its close. Minutes mean a session kept across requests.",
    SESSION_DURATION_BUCKETS,
)
SESSION_QUERIES = Metric(
    "sqlalchemy.session.queries",
    Kind.COUNTER,
    "{query}",
    ("factory",),
    "Statements sent by sessions, failed ones too.",
)
SESSION_QUERIES_PER_SESSION = Metric(
    "sqlalchemy.session.queries_per_session",
    Kind.HISTOGRAM,
    "{query}",
    ("factory",),
    "Statements one session sent before it closed. A rising tail is an N+1 query.",
    QUERIES_BUCKETS,
)
SESSION_TRANSACTIONS = Metric(
    "sqlalchemy.session.transactions",
    Kind.COUNTER,
    "{transaction}",
    ("factory", "outcome"),
    "Transactions ended: committed, rolled_back, closed (the session closed with neither; usual "
    "for reading), unspecified (a record kept by hand that did not say).",
)
SESSION_TRANSACTION_DURATION = Metric(
    "sqlalchemy.session.transaction.duration",
    Kind.HISTOGRAM,
    "s",
    ("factory", "outcome"),
    "From a transaction's first connection to its end: as long as it held that connection.",
    SESSION_DURATION_BUCKETS,
)
SESSION_ERRORS = Metric(
    "sqlalchemy.session.errors",
    Kind.COUNTER,
    "{error}",
    ("factory", "error.type"),
    "Errors of sessions by the exception's class.",
)
SESSION_LEAKS = Metric(
    "sqlalchemy.session.leaks",
    Kind.COUNTER,
    "{session}",
    ("factory", "reason"),
    "Sessions that leaked: overdue (open past the limit), idle_in_transaction (nothing run on an "
    "open transaction), garbage_collected (dropped unclosed while holding something). Stays at 0.",
)
SESSION_OLDEST_AGE = Metric(
    "sqlalchemy.session.oldest_age",
    Kind.GAUGE,
    "s",
    ("factory",),
    "Age of the oldest session open now. A line that climbs without end is a leak.",
)
SESSION_FLUSHES = Metric(
    "sqlalchemy.session.flushes",
    Kind.COUNTER,
    "{flush}",
    ("factory",),
    "Flushes that had something to write.",
)
SESSION_ENTITIES = Metric(
    "sqlalchemy.session.entities",
    Kind.COUNTER,
    "{entity}",
    ("factory", "operation"),
    "ORM objects written by flushes: insert, update, delete.",
)
SESSION_OPTIMISTIC_LOCK_FAILURES = Metric(
    "sqlalchemy.session.optimistic_lock_failures",
    Kind.COUNTER,
    "{failure}",
    ("factory",),
    "Flushes refused because a row had been changed by someone else (StaleDataError).",
)
POOL_NAME = "db.client.connection.pool.name"

CONNECTION_COUNT = Metric(
    "db.client.connection.count",
    Kind.UP_DOWN_COUNTER,
    "{connection}",
    (POOL_NAME, "db.client.connection.state"),
    "Connections of the pool: used (checked out) and idle. used at the limit, and staying there, "
    "is a pool that is too small or a holder that does not let go.",
)
CONNECTION_IDLE_MAX = Metric(
    "db.client.connection.idle.max",
    Kind.UP_DOWN_COUNTER,
    "{connection}",
    (POOL_NAME,),
    "The most idle connections that the pool keeps open (pool_size).",
)
CONNECTION_IDLE_MIN = Metric(
    "db.client.connection.idle.min",
    Kind.UP_DOWN_COUNTER,
    "{connection}",
    (POOL_NAME,),
    "The fewest idle connections that the pool keeps open: SQLAlchemy opens them when needed.",
)
CONNECTION_MAX = Metric(
    "db.client.connection.max",
    Kind.UP_DOWN_COUNTER,
    "{connection}",
    (POOL_NAME,),
    "The most connections that the pool opens (pool_size and max_overflow).",
)
CONNECTION_PENDING_REQUESTS = Metric(
    "db.client.connection.pending_requests",
    Kind.UP_DOWN_COUNTER,
    "{request}",
    (POOL_NAME,),
    "Requests that are waiting for a connection now. Above 0 for long is an exhausted pool.",
)
CONNECTION_TIMEOUTS = Metric(
    "db.client.connection.timeouts",
    Kind.COUNTER,
    "{timeout}",
    (POOL_NAME,),
    "Requests for a connection that gave up waiting. Each wrote, or was part of, a report that "
    "names the holders.",
)
CONNECTION_CREATE_TIME = Metric(
    "db.client.connection.create_time",
    Kind.HISTOGRAM,
    "s",
    (POOL_NAME,),
    "Time to open a connection. As many as requests means a pool that keeps none.",
    DURATION_BUCKETS,
)
CONNECTION_WAIT_TIME = Metric(
    "db.client.connection.wait_time",
    Kind.HISTOGRAM,
    "s",
    (POOL_NAME,),
    "Time to get a connection from the pool, opening one included.",
    DURATION_BUCKETS,
)
CONNECTION_USE_TIME = Metric(
    "db.client.connection.use_time",
    Kind.HISTOGRAM,
    "s",
    (POOL_NAME,),
    "Time between checkout and return of a connection.",
    SESSION_DURATION_BUCKETS,
)
POOLS = Metric(
    "sqlalchemy.pools",
    Kind.UP_DOWN_COUNTER,
    "{pool}",
    (POOL_NAME,),
    "Connection pools in use. A number that grows is an engine made for each request.",
)
POOL_INVALIDATIONS = Metric(
    "sqlalchemy.pool.invalidations",
    Kind.COUNTER,
    "{connection}",
    (POOL_NAME,),
    "Connections given up as broken. Many at once is a database that was restarted.",
)
POOL_NESTED_TIMEOUTS = Metric(
    "sqlalchemy.pool.nested_timeouts",
    Kind.COUNTER,
    "{timeout}",
    (POOL_NAME,),
    "Requests for a connection that gave up waiting while their own request held one already: a "
    "session opened inside another. Stays at 0.",
)
POOL_DETACHED = Metric(
    "sqlalchemy.pool.detached",
    Kind.UP_DOWN_COUNTER,
    "{connection}",
    (POOL_NAME,),
    "Connections detached from the pool and still open: no limit of the pool counts them.",
)
ROUTE_SESSIONS = Metric(
    "sqlalchemy.route.sessions",
    Kind.COUNTER,
    "{session}",
    ("factory", "http.route"),
    "Sessions closed, by the route of the request that they served.",
)
ROUTE_CONNECTION_USE_TIME = Metric(
    "sqlalchemy.route.connection.use_time",
    Kind.HISTOGRAM,
    "s",
    ("http.route",),
    "Time that connections were held, by the route that held them: which endpoint eats the pool.",
    SESSION_DURATION_BUCKETS,
)
SESSION_REPEATED_STATEMENTS = Metric(
    "sqlalchemy.session.repeated_statements",
    Kind.COUNTER,
    "{session}",
    ("factory",),
    "Sessions that sent the same statement over and over (an N+1 query), where this is looked for.",
)
_OPERATION = (
    "db.system.name",
    "db.namespace",
    "db.operation.name",
    "db.collection.name",
    "server.address",
    "server.port",
    "error.type",
)
OPERATION_DURATION = Metric(
    "db.client.operation.duration",
    Kind.HISTOGRAM,
    "s",
    _OPERATION,
    "Time from sending a statement to its answer.",
    DURATION_BUCKETS,
)
RETURNED_ROWS = Metric(
    "db.client.response.returned_rows",
    Kind.HISTOGRAM,
    "{row}",
    _OPERATION,
    "Rows that a statement returned, where the driver says so at once. A long tail is a missing "
    "LIMIT.",
    (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10000.0),
)
APPLICATION_SESSIONS = Metric(
    "application.sessions",
    Kind.UP_DOWN_COUNTER,
    "{session}",
    ("name",),
    "User sessions of the application that are active now, as it says itself.",
)
APPLICATION_SESSION_CREATED = Metric(
    "application.session.created",
    Kind.COUNTER,
    "{session}",
    ("name",),
    "User sessions created.",
)
APPLICATION_SESSION_REUSED = Metric(
    "application.session.reused",
    Kind.COUNTER,
    "{session}",
    ("name",),
    "User sessions found again and reused.",
)
APPLICATION_SESSION_EXPIRED = Metric(
    "application.session.expired",
    Kind.COUNTER,
    "{session}",
    ("name",),
    "User sessions that expired and were cleaned up.",
)
APPLICATION_SESSION_DURATION_MEAN = Metric(
    "application.session.duration.mean",
    Kind.GAUGE,
    "s",
    ("name",),
    "Mean duration of a user session, as the application says itself.",
)
APPLICATION_SESSION_MEMORY_USAGE = Metric(
    "application.session.memory.usage",
    Kind.GAUGE,
    "By",
    ("name",),
    "Memory that user sessions take, as the application says itself.",
)
TELEMETRY_FAULTS = Metric(
    "sqlalchemy.session.telemetry.faults",
    Kind.COUNTER,
    "{fault}",
    ("component",),
    "Faults inside this instrumentation that were kept from the application. Anything above 0 is a "
    "bug or a broken exporter: the log has the first of each.",
)

CATALOG: tuple[Metric, ...] = tuple(
    value for value in list(globals().values()) if isinstance(value, Metric)
)
"""Every row, in the order of declaration, which is the order on ``/metrics``."""
