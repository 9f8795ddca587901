"""Ids, names and errors of any text, through every way out: parseable, bounded, in one line."""

from __future__ import annotations

import gc
import io
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text
from reading import counted, forget_everything, value
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_metrics_otel import SessionMetrics, bind, instrument, uninstrument
from session_metrics_otel.application_sessions import MAX_NAMES, SystemSessionMetrics
from session_metrics_otel.factory_ledger import MAX_ERROR_TYPES
from session_metrics_otel.faults import MAX_KINDS, _logged, caught
from session_metrics_otel.hooks.comments import SqlComments, with_comment
from session_metrics_otel.hooks.error_text import error_text
from session_metrics_otel.hooks.holders import routes
from session_metrics_otel.ledger import MAX_FACTORIES
from session_metrics_otel.legible import LINE_LIMIT, encodable, one_line
from session_metrics_otel.logs import correlate_logs
from session_metrics_otel.watchdog import Watchdog

EVIL = [
    "",
    "\x00",
    "\n# TYPE forged counter\nforged 1\n",
    'a"} 1\nforged{b="',
    "\\",
    "\\n",
    "\ud800",
    "caf\udce9",
    "\r\n\x1b[31mERROR forged\x1b[0m",
    "\u2028\u2029\x85",
    "*/; drop table orders; --",
    "%s %(x)s {0}",
    "é" * 300,
    "x" * 1_000_000,
]
hostile = st.sampled_from(EVIL) | st.text(st.characters(categories=None), max_size=60)
quick = settings(
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# A profile given on the command line has the last word.
if settings.get_current_profile_name() == "fuzz":
    quick = settings(settings.get_profile("fuzz"), suppress_health_check=list(HealthCheck))


def scrapes() -> list[str]:
    """What /metrics says, in both formats, once their parsers have taken it."""
    plain = generate_latest(REGISTRY).decode("utf-8")
    modern = openmetrics.generate_latest(REGISTRY).decode("utf-8")
    assert list(parse_text(plain))
    assert list(parse_openmetrics(modern))
    return [plain, modern]


@pytest.fixture(autouse=True)
def _fresh_bounds():
    yield
    routes.forget()


@quick
@given(factory=hostile, error=hostile, route=hostile, name=hostile, ids=st.tuples(*[hostile] * 3))
def test_every_scrape_stays_parseable(factory, error, route, name, ids):
    kind = type(error.replace("\x00", "") or "E", (Exception,), {}) if _can_be(error) else KeyError
    record = SessionMetrics(*ids, factory=factory)
    record.record_error(kind(error))
    record.close()
    application = SystemSessionMetrics(name=name)
    application.increment_total_sessions()
    engine = create_engine("sqlite://", poolclass=StaticPool, pool_logging_name=name or "pool")
    maker = sessionmaker(engine)
    instrument(maker, name=factory)
    with bind(request_id=ids[1], user_id=ids[2], route=route), maker() as session:
        session.execute(text("select 1"))
    engine.dispose()
    uninstrument(maker)
    for page in scrapes():
        assert "\nforged" not in page
        assert len(max(page.splitlines(), key=len)) < 20 * LINE_LIMIT
    forget_everything()  # or each scrape would be of all that came before


def _can_be(name: str) -> bool:
    """Whether a class can have this name: Python refuses what is no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


@quick
@given(ids=st.tuples(*[hostile] * 3), error=hostile, user_id=st.sampled_from(["plain", "hashed"]))
def test_every_span_can_be_sent(ids, error, user_id, provider, spans):
    otlp = pytest.importorskip("opentelemetry.exporter.otlp.proto.common.trace_encoder")
    spans.clear()
    engine = create_engine("sqlite://", poolclass=StaticPool)
    maker = sessionmaker(engine)
    instrument(maker, name=ids[0], user_id=user_id, tracer_provider=provider)
    with bind(request_id=ids[1], user_id=ids[2]), maker() as session:
        session.execute(text("select 1"))
        from session_metrics_otel import metrics_for

        metrics_for(session).record_error(error)
        metrics_for(session).record_error(ValueError(error))
    engine.dispose()
    uninstrument(maker)
    finished = spans.get_finished_spans()
    assert len([span for span in finished if span.name.startswith("session ")]) == 1
    sent = otlp.encode_spans(finished).SerializeToString()
    assert len(sent) < 200_000
    attributes = [a for span in finished for a in span.attributes if a.startswith("user.")]
    assert bool(attributes) == bool(ids[2])


@quick
@given(request_id=hostile, session_id=hostile)
def test_no_id_forges_a_line_of_the_log(request_id, session_id):
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logging.Formatter("%(message)s %(session_id)s %(request_id)s"))
    log = logging.getLogger("session_metrics_otel")
    log.addHandler(handler)
    end = correlate_logs()
    try:
        record = SessionMetrics(session_id, request_id, factory=request_id)
        record.state = "active"
        Watchdog(overdue=-1, idle_in_transaction=1e9).scan()
        record.close()
    finally:
        end()
        log.removeHandler(handler)
    lines = written.getvalue().splitlines()
    forget_everything()  # or too many factories would be warned of
    assert len(lines) == 1
    assert len(lines[0]) < 10 * LINE_LIMIT


@quick
@given(tags=st.dictionaries(hostile, hostile, max_size=3))
def test_no_tag_ends_the_comment_in_sql(tags, provider):
    span = provider.get_tracer("t").start_span("s").get_span_context()
    dialect = create_engine("sqlite://").dialect
    comment = SqlComments(tags=lambda: tags).comment(dialect, span)
    statement = with_comment("select 1", comment)
    assert statement.startswith("select 1 /*")
    assert statement.index("*/") == len(statement) - 2
    assert statement.isascii()
    assert "\n" not in statement


@quick
@given(st.text(st.characters(categories=None)) | hostile)
def test_legible_text(anything):
    line = one_line(anything)
    assert line.isprintable()
    assert len(line) <= LINE_LIMIT
    assert one_line(line) == line
    encodable(anything).encode("utf-8")
    if len(anything) <= LINE_LIMIT and anything.isprintable():
        assert line == anything


@quick
@given(secret=st.text(st.characters(categories=["L", "N"]), min_size=6), rest=st.text(max_size=20))
def test_no_parameter_shows_in_what_a_driver_says(secret, rest):
    for said in (
        f'invalid input: "{secret}"',
        f"Duplicate entry '{secret}-{rest}'",
        f"bad {secret}",
    ):
        shown = error_text(ValueError(said), parameters=[{"email": secret}], statement="insert")
        assert secret not in shown


def test_names_that_a_driver_quotes_stay():
    error = ValueError('relation "orders" does not exist\nDETAIL: secret')
    assert error_text(error, parameters=(7,)) == 'relation "orders" does not exist'


def test_exception_classes_without_end_make_a_bounded_number_of_series():
    for number in range(500):
        record = SessionMetrics(factory="many")
        record.record_error(type(f"Error{number}", (Exception,), {})())
        record.close()
    errors = {k: n for k, n in counted("many").items() if k.startswith("errors ")}
    assert len(errors) == MAX_ERROR_TYPES + 1
    assert sum(errors.values()) == 500
    assert errors["errors _OTHER"] == 500 - MAX_ERROR_TYPES


@pytest.mark.faults
def test_faults_without_end_make_a_bounded_number_of_log_lines(caplog):
    for number in range(500):
        caught("test", type(f"Fault{number}", (Exception,), {})())
    assert len(caplog.records) == MAX_KINDS
    assert len(_logged) == MAX_KINDS
    assert value("sqlalchemy_session_telemetry_faults_total", component="test") == 500


def test_a_factory_name_per_request_is_bounded_and_warned_of_once(caplog):
    with caplog.at_level(logging.WARNING, logger="session_metrics_otel"):
        for number in range(500):
            SessionMetrics(factory=f"request-{number}").close()
    [warning] = caplog.records
    assert "not per request" in warning.getMessage()
    named = {
        sample.labels["factory"]: sample.value
        for family in REGISTRY.collect()
        if family.name == "sqlalchemy_session_creations"
        for sample in family.samples
        if sample.labels["outcome"] == "unused" and sample.labels["factory"] != "default"
    }
    # The default factory is one of them.
    assert len(named) == MAX_FACTORIES
    assert named["_OTHER"] == 500 - (MAX_FACTORIES - 1)


def test_a_name_per_user_is_bounded():
    kept = [SystemSessionMetrics(name=f"user-{number}") for number in range(300)]
    for record in kept:
        record.increment_total_sessions()
    families = {f.name: f.samples for f in REGISTRY.collect()}
    counted = {s.labels["name"]: s.value for s in families["application_session_created"]}
    # The ledger keeps the series of tests before this one.
    counted = {name: n for name, n in counted.items() if name.startswith(("user-", "_OTHER"))}
    assert len(counted) == MAX_NAMES + 1
    assert sum(counted.values()) == 300


SECRET = "s3cret-4711"


def test_no_parameter_is_in_a_log_a_span_a_report_or_on_metrics(
    new_engine, provider, spans, caplog
):
    engine = new_engine()
    maker = sessionmaker(engine)
    instrument(maker, name="orders", tracer_provider=provider)
    watchdog = Watchdog(overdue=-1, idle_in_transaction=-1)
    with caplog.at_level(logging.DEBUG, logger="session_metrics_otel"):
        with maker() as session:
            session.execute(text("create table t (name text unique check (name <> 'bad'))"))
            session.execute(text("insert into t values (:name)"), {"name": SECRET})
            session.execute(text(f"select '{SECRET}'"))
            watchdog.scan()
            with pytest.raises(Exception, match="UNIQUE"):
                session.execute(text("insert into t values (:name)"), {"name": SECRET})
        abandoned = maker()
        abandoned.execute(text("select :name"), {"name": SECRET})
        del abandoned
        gc.collect()
        watchdog.scan()
    uninstrument(maker)
    assert watchdog.reports
    shown = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "UNIQUE constraint failed: t.name" in shown
    assert SECRET not in shown
    assert SECRET not in repr(list(watchdog.reports))
    assert SECRET not in caplog.text
    assert not [page for page in scrapes() if SECRET in page]


def test_a_url_given_by_mistake_is_not_quoted_with_its_password():
    with pytest.raises(TypeError) as caught:
        instrument(f"postgresql://ann:{SECRET}@db/orders")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", [None, 7, b"orders"])
def test_a_factory_name_that_is_no_text_is_refused(name, engine):
    with pytest.raises(TypeError, match="give the factory's name as a str"):
        instrument(engine, name=name)
