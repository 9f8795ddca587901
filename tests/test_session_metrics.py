from __future__ import annotations

import copy
import dataclasses
import gc
import json
import pickle
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest
from opentelemetry import trace
from reading import changes, counted, value

from session_metrics_otel import (
    BaseSessionMetrics,
    DatabaseMetrics,
    DatabaseSessionMetrics,
    SessionMetrics,
    SessionState,
    create_database_session_metrics,
)
from session_metrics_otel.session_metrics import SessionMetrics as FromModule


class TestFoundingValidation:
    """What the service that this began in needed its one record to do."""

    def test_positional_construction_leaves_the_fields_readable(self):
        metrics = SessionMetrics("session-1", "request-1", "user-1")
        assert (metrics.session_id, metrics.request_id, metrics.user_id) == (
            "session-1",
            "request-1",
            "user-1",
        )
        assert metrics.last_activity_at is not None
        assert metrics.query_count == 0
        assert metrics.error_count == 0

    def test_aliases_of_older_callers(self):
        metrics = SessionMetrics("s")
        metrics.increment_query_count(3)
        metrics.record_error("x")
        assert metrics.last_activity == metrics.last_activity_at
        assert metrics.operations_count == 3
        assert metrics.errors == 1

    def test_recording_an_error(self):
        metrics = SessionMetrics("s", "r", "u")
        metrics.record_error("SYSTEM USER AUTHENTICATION FAILURE")
        assert metrics.error_count == 1
        assert metrics.last_error == "SYSTEM USER AUTHENTICATION FAILURE"
        assert metrics.state is SessionState.ERROR

    def test_both_names_of_closing(self):
        hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
        new, old = SessionMetrics("new"), SessionMetrics("old", created_at=hour_ago)
        new.close_session(1234.5)
        old.close()
        assert new.state is old.state is SessionState.CLOSED
        assert new.total_time_ms == 1234.5
        assert old.total_time_ms >= 3_600_000
        assert old.closed_at is not None

    def test_logging_context(self):
        metrics = SessionMetrics("s")
        context = {
            "last_activity": metrics.last_activity.isoformat(),
            "operations_count": metrics.operations_count,
            "errors": metrics.errors,
        }
        assert datetime.fromisoformat(context["last_activity"]) == metrics.created_at
        assert context["operations_count"] == 0
        assert context["errors"] == 0

    def test_factory_function(self):
        metrics = create_database_session_metrics("session-id", "req-id", "user-id")
        assert type(metrics) is DatabaseSessionMetrics
        assert metrics.session_id == "session-id"
        assert metrics.request_id == "req-id"
        assert metrics.user_id == "user-id"

    def test_a_hundred_in_a_row(self):
        made = [SessionMetrics(f"session-{n}", f"request-{n}", f"user-{n}") for n in range(100)]
        assert [metrics.session_id for metrics in made] == [f"session-{n}" for n in range(100)]
        assert counted()["sqlalchemy_sessions created"] == 100
        assert counted()["peak"] == 100

    def test_error_context_of_a_session_factory(self):
        metrics = SessionMetrics("s", "r", "u")
        metrics.record_error(ValueError("no such user"))
        context = {
            "session_id": metrics.session_id,
            "state": metrics.state.value,
            "created_at": metrics.created_at.isoformat(),
            "last_activity": metrics.last_activity.isoformat(),
            "operations_count": metrics.operations_count,
            "errors": metrics.errors,
        }
        assert json.loads(json.dumps(context))["state"] == "error"
        assert context["errors"] == 1


class TestConstruction:
    def test_one_class_under_all_names(self):
        assert SessionMetrics is DatabaseMetrics is DatabaseSessionMetrics is FromModule
        assert issubclass(SessionMetrics, BaseSessionMetrics)

    def test_by_keyword_whatever_the_inheritance(self):
        moment = datetime(2020, 1, 2, tzinfo=timezone.utc)
        metrics = SessionMetrics(
            user_id="u",
            created_at=moment,
            query_count=4,
            transaction_count=3,
            error_count=2,
            last_error="x",
            total_time_ms=1.5,
        )
        assert metrics.user_id == "u"
        assert metrics.created_at == metrics.last_activity_at == moment
        assert (metrics.query_count, metrics.transaction_count, metrics.error_count) == (4, 3, 2)
        assert (metrics.last_error, metrics.total_time_ms) == ("x", 1.5)

    def test_it_is_a_dataclass_with_all_its_fields(self):
        assert {item.name for item in dataclasses.fields(SessionMetrics)} == {
            "session_id", "request_id", "user_id", "state", "query_count", "transaction_count",
            "total_time_ms", "closed_at", "created_at", "last_activity_at", "error_count",
            "last_error",
        }  # fmt: skip

    def test_times_are_utc_and_aware(self):
        metrics = SessionMetrics()
        assert metrics.created_at.tzinfo is timezone.utc
        assert metrics.last_activity_at == metrics.created_at

    def test_counts_a_session_of_its_factory(self):
        metrics = SessionMetrics("s", factory="orders")
        assert metrics.factory == "orders"
        assert counted("orders") == {"sqlalchemy_sessions created": 1, "peak": 1}
        assert counted("default") == {}

    def test_the_factory_is_given_by_keyword_alone(self):
        with pytest.raises(TypeError):
            SessionMetrics(*[""] * 13)

    def test_counts_given_were_counted_by_whoever_gives_them(self):
        metrics = SessionMetrics(query_count=5, error_count=2)
        assert "queries" not in counted()
        metrics.query_count += 1
        assert counted()["queries"] == 1

    def test_a_state_given_is_gone_to(self):
        metrics = SessionMetrics(state="active")
        assert metrics.state is SessionState.ACTIVE
        assert counted()["state_transitions created active"] == 1

    def test_a_closed_one_has_the_dates_and_the_time_that_are_given(self):
        moment = datetime(2020, 1, 2, tzinfo=timezone.utc)
        later = moment + timedelta(seconds=5)
        metrics = SessionMetrics(
            created_at=moment, closed_at=later, total_time_ms=5000.0, state="closed"
        )
        assert (metrics.closed_at, metrics.last_activity_at) == (later, later)
        assert metrics.total_time_ms == 5000.0
        assert value("sqlalchemy_session_duration_seconds_sum", factory="default") == 5
        known = {item.name: getattr(metrics, item.name) for item in dataclasses.fields(metrics)}
        assert SessionMetrics(**known | {"last_activity_at": moment}).last_activity_at == moment
        assert SessionMetrics(**known) == metrics

    def test_one_that_did_something_before_is_not_unused(self):
        SessionMetrics(query_count=5).close()
        SessionMetrics(transaction_count=1).close()
        assert counted()["creations success"] == 2
        assert "creations unused" not in counted()

    def test_a_wrong_state_says_what_is_taken_and_counts_nothing(self):
        with pytest.raises(ValueError, match="'asleep' is no session state.*'created', 'active'"):
            SessionMetrics(state="asleep")
        gc.collect()
        assert counted() == {}

    def test_an_unknown_argument_is_refused_in_peace(self):
        with pytest.raises(TypeError):
            SessionMetrics(nonsense=1)
        gc.collect()  # the object that never came to be must not complain when it goes
        assert counted() == {}


class TestCounting:
    def test_methods(self):
        metrics = SessionMetrics()
        metrics.state = SessionState.ACTIVE
        metrics.increment_query_count()
        metrics.increment_query_count(4)
        metrics.increment_transaction_count()
        metrics.increment_transaction_count(2, outcome="committed")
        metrics.record_error(ValueError("x"))
        metrics.record_error("text")
        metrics.close_session()
        assert counted() == {
            **changes("created", "active", "error", "closed"),
            "creations success": 1,
            "creation_duration_seconds_count": 1,
            "duration_seconds_count": 1,
            "queries": 5,
            "queries_per_session_count": 1,
            "transactions unspecified": 1,
            "transactions committed": 2,
            "errors ValueError": 1,
            "errors _OTHER": 1,
            "peak": 1,
        }

    def test_assignments_do_the_same(self):
        metrics = SessionMetrics()
        metrics.state = "active"
        metrics.query_count += 5
        metrics.transaction_count += 1
        metrics.error_count += 2
        metrics.state = SessionState.CLOSED
        assert metrics.closed_at is not None
        assert counted() == {
            **changes("created", "active", "closed"),
            "creations success": 1,
            "creation_duration_seconds_count": 1,
            "duration_seconds_count": 1,
            "queries": 5,
            "queries_per_session_count": 1,
            "transactions unspecified": 1,
            "errors _OTHER": 2,
            "peak": 1,
        }

    def test_a_counter_never_goes_down(self):
        metrics = SessionMetrics()
        metrics.query_count = 5
        metrics.query_count = 2
        assert metrics.query_count == 2
        assert counted()["queries"] == 5
        metrics.query_count = 3
        assert counted()["queries"] == 6

    def test_nor_does_the_sum_of_a_histogram(self):
        metrics = SessionMetrics()
        metrics.query_count = -3
        metrics.close_session(total_time_ms=-5)
        assert (metrics.query_count, metrics.total_time_ms) == (-3, -5)
        for name in ("duration_seconds", "queries_per_session"):
            assert value(f"sqlalchemy_session_{name}_sum", factory="default") == 0
            assert value(f"sqlalchemy_session_{name}_count", factory="default") == 1

    def test_staying_in_a_state_is_no_transition(self):
        metrics = SessionMetrics()
        metrics.state = "active"
        metrics.state = "active"
        assert counted()["state_transitions created active"] == 1

    def test_activity_moves_the_time(self):
        metrics = SessionMetrics(last_activity_at=datetime(2020, 1, 1, tzinfo=timezone.utc))
        metrics.increment_query_count()
        assert metrics.get_inactivity_seconds() < 3600

    def test_an_unknown_outcome_says_what_is_taken(self):
        metrics = SessionMetrics()
        with pytest.raises(ValueError, match="'lost' is no transaction outcome.*'committed'"):
            metrics.increment_transaction_count(outcome="lost")
        assert metrics.transaction_count == 0

    def test_closing_twice_counts_once(self):
        metrics = SessionMetrics()
        metrics.close_session(10)
        metrics.close_session(20)
        metrics.close()
        assert metrics.total_time_ms == 10
        assert counted()["duration_seconds_count"] == 1

    def test_the_time_given_is_what_is_observed(self):
        SessionMetrics().close_session(1234.5)
        assert value("sqlalchemy_session_duration_seconds_sum", factory="default") == 1.2345

    @pytest.mark.parametrize(
        "created_at", ["yesterday", "2020-01-01T00:00:00", "", 5, datetime(2020, 1, 1)]
    )
    def test_closing_copes_with_any_created_at(self, created_at):
        metrics = SessionMetrics()
        metrics.created_at = created_at
        metrics.close_session()
        assert metrics.state is SessionState.CLOSED
        assert metrics.total_time_ms >= 0
        assert json.loads(json.dumps(metrics.to_dict()))["state"] == "closed"

    def test_an_error_after_the_close_is_counted_and_opens_nothing(self):
        metrics = SessionMetrics()
        metrics.close()
        metrics.record_error(OSError())
        assert metrics.state is SessionState.CLOSED
        assert counted()["errors OSError"] == 1
        assert "sqlalchemy_sessions error" not in counted()

    def test_an_assignment_after_the_close_opens_it_again(self):
        metrics = SessionMetrics()
        metrics.close()
        metrics.state = "active"
        assert counted()["sqlalchemy_sessions active"] == 1
        metrics.close()
        assert not [key for key in counted() if key.startswith("sqlalchemy_sessions")]

    def test_an_exception_that_cannot_be_printed(self):
        class Unprintable(Exception):
            def __str__(self):
                raise RuntimeError

        metrics = SessionMetrics()
        metrics.record_error(Unprintable())
        assert metrics.last_error == "Unprintable"


class TestCreationOutcome:
    @pytest.mark.parametrize("state", ["active", "idle", "committed", "rolled_back"])
    def test_success_is_leaving_for_a_working_state(self, state):
        SessionMetrics().state = state
        assert counted()["creations success"] == 1

    @pytest.mark.parametrize("work", ["query_count", "transaction_count"])
    @pytest.mark.parametrize("through", [(), ("closing",)])
    def test_success_is_closing_having_worked(self, work, through):
        metrics = SessionMetrics()
        setattr(metrics, work, 1)
        assert metrics.state is SessionState.CREATED
        for state in through:
            metrics.state = state
        metrics.close()
        assert counted()["creations success"] == 1
        assert "creations unused" not in counted()

    def test_failure_is_an_error_first(self):
        SessionMetrics().record_error(ConnectionRefusedError())
        assert counted()["creations failure ConnectionRefusedError"] == 1

    def test_failure_without_an_exception(self):
        SessionMetrics().state = "error"
        assert counted()["creations failure _OTHER"] == 1

    @pytest.mark.parametrize("through", [(), ("closing",)])
    def test_unused_is_closing_having_done_nothing(self, through):
        metrics = SessionMetrics()
        for state in through:
            metrics.state = state
        metrics.close()
        assert counted()["creations unused"] == 1

    def test_an_error_later_is_no_failed_creation(self):
        metrics = SessionMetrics()
        metrics.state = "active"
        metrics.record_error(OSError())
        assert counted()["creations success"] == 1
        assert "creations failure OSError" not in counted()


class TestCopies:
    @pytest.mark.parametrize(
        "copied",
        [copy.copy, copy.deepcopy, lambda record: pickle.loads(pickle.dumps(record))],
        ids=["copy", "deepcopy", "pickle"],
    )
    def test_are_equal_and_not_counted(self, copied):
        metrics = SessionMetrics("s", "r", "u", factory="orders")
        metrics.query_count = 3
        metrics.state = "active"
        before = counted("orders")
        twin = copied(metrics)
        assert twin == metrics
        assert twin.factory == "orders"
        twin.increment_query_count()
        twin.record_error(ValueError())
        twin.close()
        del twin
        gc.collect()
        assert counted("orders") == before

    def test_asdict_and_comparing_count_nothing(self):
        metrics = SessionMetrics("s")
        before = counted()
        assert dataclasses.asdict(metrics)["session_id"] == "s"
        assert dataclasses.asdict(metrics)["state"] is SessionState.CREATED
        assert metrics == metrics  # noqa: PLR0124
        assert metrics != SessionState.CREATED
        assert counted() == before

    def test_a_subclass_keeps_its_own_attributes(self):
        twin = copy.copy(WithNote("s"))
        assert type(twin) is WithNote
        twin.note = "kept"
        assert copy.copy(twin).note == "kept"

    def test_a_subclass_may_be_a_dataclass_too(self):
        record = WithTenant("s", "r")
        record.tenant = "t"
        assert (record.session_id, record.request_id) == ("s", "r")
        assert dataclasses.asdict(record)["tenant"] == "t"
        assert copy.copy(record) == record
        assert counted()["sqlalchemy_sessions created"] == 1


@dataclasses.dataclass(init=False)
class WithTenant(SessionMetrics):
    """One with a field of its own."""

    tenant: str = ""


class WithNote(SessionMetrics):
    """A caller's own subclass."""


class TestCollection:
    def test_one_that_did_nothing_was_unused(self):
        SessionMetrics()
        gc.collect()
        assert counted() == {
            **changes("created", "closed"),
            "creations unused": 1,
            "peak": 1,
        }

    @pytest.mark.parametrize("state", ["active", "idle", "error"])
    def test_one_that_held_something_leaked(self, state):
        SessionMetrics().state = state
        gc.collect()
        assert counted()["leaks garbage_collected"] == 1
        assert not [key for key in counted() if key.startswith("sqlalchemy_sessions")]

    @pytest.mark.parametrize("state", ["committed", "rolled_back", "closing"])
    def test_one_that_held_nothing_did_not(self, state):
        SessionMetrics().state = state
        gc.collect()
        assert "leaks garbage_collected" not in counted()
        assert not [key for key in counted() if key.startswith("sqlalchemy_sessions")]

    def test_one_that_was_closed_says_nothing_more(self):
        metrics = SessionMetrics()
        metrics.close()
        before = counted()
        del metrics
        gc.collect()
        assert counted() == before

    def test_one_in_a_cycle(self):
        metrics = SessionMetrics()
        metrics.state = "active"
        holder = {"metrics": metrics}
        holder["self"] = holder
        del metrics, holder
        gc.collect()
        assert counted()["leaks garbage_collected"] == 1


class TestToDict:
    def test_keys_in_order_and_values(self):
        metrics = SessionMetrics("s", "r", "u")
        metrics.query_count = 2
        metrics.record_error("bad")
        metrics.close_session(12.0)
        found = metrics.to_dict()
        assert list(found) == [
            "session_id", "request_id", "user_id", "state", "created_at", "last_activity_at",
            "closed_at", "query_count", "transaction_count", "error_count", "last_error",
            "total_time_ms", "age_seconds", "inactivity_seconds",
        ]  # fmt: skip
        assert found["state"] == "closed"
        assert found["created_at"] == metrics.created_at.isoformat()
        assert found["closed_at"] == metrics.closed_at.isoformat()
        assert found["query_count"] == 2
        assert found["last_error"] == "bad"
        assert found["total_time_ms"] == 12.0
        assert json.loads(json.dumps(found)) == found

    def test_is_ready_for_json_whatever_its_fields_were_given(self):
        metrics = SessionMetrics(UUID(int=7), created_at=date(2020, 1, 2))
        metrics.close_session(Decimal("12.5"))
        found = json.loads(json.dumps(metrics.to_dict()))
        assert found["session_id"] == "00000000-0000-0000-0000-000000000007"
        assert found["created_at"] == "2020-01-02"
        assert found["total_time_ms"] == "12.5"

    def test_an_open_record_has_no_closing_time(self):
        assert SessionMetrics().to_dict()["closed_at"] is None


class TestAges:
    def test_are_seconds_since(self):
        hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
        metrics = SessionMetrics(created_at=hour_ago)
        assert 3600 <= metrics.get_age_seconds() < 3700
        assert 3600 <= metrics.get_inactivity_seconds() < 3700
        metrics.mark_activity()
        assert metrics.get_inactivity_seconds() < 3600

    @pytest.mark.parametrize("utc", ["", "Z", "+00:00"])
    def test_are_read_from_text_too(self, utc):
        hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
        text = hour_ago.replace(tzinfo=None).isoformat() + utc
        metrics = SessionMetrics(created_at=text)
        assert 3600 <= metrics.get_age_seconds() < 3700
        metrics.close()
        assert 3600e3 <= metrics.total_time_ms < 3700e3

    def test_are_never_negative(self):
        later = datetime.now(timezone.utc) + timedelta(hours=1)
        assert SessionMetrics(created_at=later).get_age_seconds() == 0

    def test_the_oldest_is_shown(self):
        hour_ago = datetime.now(timezone.utc) - timedelta(hours=1)
        old = SessionMetrics(created_at=hour_ago)
        young = SessionMetrics()
        assert 3600 <= value("sqlalchemy_session_oldest_age_seconds", factory="default") < 3700
        old.close()
        assert 0 <= value("sqlalchemy_session_oldest_age_seconds", factory="default") < 3600
        young.close()
        assert value("sqlalchemy_session_oldest_age_seconds", factory="default") == 0


class TestBase:
    def test_is_counted_nowhere(self):
        base = BaseSessionMetrics()
        base.record_error(ValueError("x"))
        base.mark_activity()
        assert (base.error_count, base.last_error) == (1, "x")
        assert base.last_activity_at >= base.created_at
        inactivity = base.get_inactivity_seconds()  # read first: each reads the clock anew
        assert base.get_age_seconds() >= inactivity
        assert counted() == {}


class TestCurrentSpan:
    """A record kept by hand mirrors onto the span that is current when it changes."""

    def test_fields_and_states(self, provider, spans):
        tracer = provider.get_tracer("test")
        metrics = SessionMetrics("s-1", "r-1")
        with tracer.start_as_current_span("request"):
            metrics.state = "active"
            metrics.increment_query_count(2)
        with tracer.start_as_current_span("later"):
            metrics.close_session(5)
        request, later = spans.get_finished_spans()
        assert request.attributes["sqlalchemy.session.id"] == "s-1"
        assert request.attributes["sqlalchemy.session.request_id"] == "r-1"
        assert request.attributes["sqlalchemy.session.query_count"] == 2
        assert [dict(event.attributes) for event in request.events] == [
            {"from": "created", "to": "active"}
        ]
        assert later.attributes["sqlalchemy.session.state"] == "closed"
        assert later.attributes["sqlalchemy.session.total_time_ms"] == 5
        assert [dict(event.attributes) for event in later.events] == [
            {"from": "active", "to": "closed"}
        ]

    def test_being_collected_is_written_on_nobodys_span(self, provider, spans):
        metrics = SessionMetrics()
        metrics.state = "active"
        with provider.get_tracer("test").start_as_current_span("unrelated"):
            del metrics
            gc.collect()
        (span,) = spans.get_finished_spans()
        assert span.events == ()
        assert dict(span.attributes) == {}

    def test_an_error_is_the_spans_too(self, provider, spans):
        metrics = SessionMetrics()
        with provider.get_tracer("test").start_as_current_span("request"):
            metrics.record_error(ValueError("bad"))
        (span,) = spans.get_finished_spans()
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.status.description == "bad"
        assert [event.name for event in span.events] == ["exception", "sqlalchemy.session.state"]
        assert span.events[0].attributes["exception.type"] == "ValueError"
