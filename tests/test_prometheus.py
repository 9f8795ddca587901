from __future__ import annotations

import gc
import logging
import re
import sys

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from session_metrics_otel import SessionMetrics, catalog, prometheus
from session_metrics_otel.catalog import Kind
from session_metrics_otel.ledger import LEDGER


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    assert prometheus.register(registry) is not None
    return registry


def use_everything() -> None:
    metrics = SessionMetrics(factory="orders")
    metrics.state = "active"
    metrics.increment_query_count()
    metrics.increment_transaction_count(outcome="committed")
    metrics.record_error(OSError())
    metrics.close_session(50)
    metrics.record_error(OSError())
    orders = LEDGER.factory("orders")
    orders.flushes.hit()
    orders.entities("insert").add(1)
    orders.entities("update").add(2)
    orders.entities("delete").add(3)
    orders.optimistic_lock_failures.hit()
    orders.transaction("committed").hit()
    orders.transaction_ends["committed"][1].observe(1.0)
    orders.leaks("overdue").hit()


def families(text: str) -> dict[str, str]:
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))


class TestNames:
    def test_every_family_has_the_name_and_type_of_its_row(self, registry):
        use_everything()
        found = families(generate_latest(registry).decode())
        assert {k: v for k, v in found.items() if k.startswith("sqlalchemy_")} == {
            "sqlalchemy_sessions": "gauge",
            "sqlalchemy_session_peak": "gauge",
            "sqlalchemy_session_creations_total": "counter",
            "sqlalchemy_session_creation_duration_seconds": "histogram",
            "sqlalchemy_session_state_transitions_total": "counter",
            "sqlalchemy_session_duration_seconds": "histogram",
            "sqlalchemy_session_queries_total": "counter",
            "sqlalchemy_session_queries_per_session": "histogram",
            "sqlalchemy_session_transactions_total": "counter",
            "sqlalchemy_session_transaction_duration_seconds": "histogram",
            "sqlalchemy_session_errors_total": "counter",
            "sqlalchemy_session_leaks_total": "counter",
            "sqlalchemy_session_oldest_age_seconds": "gauge",
            "sqlalchemy_session_flushes_total": "counter",
            "sqlalchemy_session_entities_total": "counter",
            "sqlalchemy_session_optimistic_lock_failures_total": "counter",
        }

    @pytest.mark.parametrize(
        ("kind", "unit", "name"),
        [
            (Kind.COUNTER, "{thing}", "a_b_total"),
            (Kind.HISTOGRAM, "s", "a_b_seconds"),
            (Kind.GAUGE, "By", "a_b_bytes"),
            (Kind.UP_DOWN_COUNTER, "{thing}", "a_b"),
        ],
    )
    def test_follow_opentelemetrys_translation(self, kind, unit, name):
        assert catalog.Metric("a.b", kind, unit, (), "").prometheus_name == name

    def test_attributes_become_labels(self):
        assert catalog.label_name("error.type") == "error_type"

    def test_leaks_are_at_0_before_the_first_as_a_rate_needs(self, registry):
        SessionMetrics(factory="orders").close_session()
        for reason in ("overdue", "idle_in_transaction", "garbage_collected"):
            labels = {"factory": "orders", "reason": reason}
            assert registry.get_sample_value("sqlalchemy_session_leaks_total", labels) == 0

    def test_failures_are_at_0_before_the_first_as_a_rate_needs(self, registry):
        SessionMetrics(factory="orders").close_session()
        for error_type in ("TimeoutError", "OperationalError", "_OTHER"):
            labels = {"factory": "orders", "outcome": "failure", "error_type": error_type}
            assert registry.get_sample_value("sqlalchemy_session_creations_total", labels) == 0

    def test_what_has_no_series_is_not_shown(self, registry):
        assert "sqlalchemy_session_leaks" not in generate_latest(registry).decode()


class TestFormats:
    def test_the_text_format_parses_and_keeps_the_counts(self, registry):
        use_everything()
        parsed = text_string_to_metric_families(generate_latest(registry).decode())
        samples = {(s.name, *sorted(s.labels.items())): s.value for f in parsed for s in f.samples}
        labels = (("factory", "orders"),)
        assert samples[("sqlalchemy_session_queries_total", *labels)] == 1
        assert samples[("sqlalchemy_session_duration_seconds_count", *labels)] == 1
        assert samples[("sqlalchemy_session_duration_seconds_sum", *labels)] == 0.05
        bucket = "sqlalchemy_session_duration_seconds_bucket"
        assert samples[(bucket, *labels, ("le", "0.01"))] == 0
        assert samples[(bucket, *labels, ("le", "0.05"))] == 1
        assert samples[(bucket, *labels, ("le", "+Inf"))] == 1

    def test_openmetrics_parses(self, registry):
        use_everything()
        text = openmetrics.generate_latest(registry).decode()
        parsed = {family.name: family for family in parse_openmetrics(text)}
        assert parsed["sqlalchemy_session_creations"].type == "counter"
        (success,) = (
            sample
            for sample in parsed["sqlalchemy_session_creations"].samples
            if sample.labels.get("outcome") == "success"
        )
        assert success.value == 1

    @pytest.mark.parametrize("name", ['quo"te', "line\nbreak", "back\\slash", "ü", "{}"])
    def test_any_factory_name_parses(self, registry, name):
        kept = SessionMetrics(factory=name)
        parsed = text_string_to_metric_families(generate_latest(registry).decode())
        peaks = {
            sample.labels["factory"]
            for family in parsed
            if family.name == "sqlalchemy_session_peak"
            for sample in family.samples
        }
        assert kept.factory in peaks


class TestExemplars:
    def exemplars(self, registry):
        text = openmetrics.generate_latest(registry).decode()
        return [
            sample.exemplar
            for family in parse_openmetrics(text)
            for sample in family.samples
            if sample.exemplar is not None
        ]

    def test_lead_to_the_span_that_was_current(self, registry, provider):
        with provider.get_tracer("t").start_as_current_span("request") as span:
            SessionMetrics().close_session(1234)
        context = span.get_span_context()
        found = self.exemplars(registry)
        assert len(found) == 2  # duration and queries per session
        assert found[0].value == 1.234
        for exemplar in found:
            assert exemplar.labels == {
                "trace_id": f"{context.trace_id:032x}",
                "span_id": f"{context.span_id:016x}",
            }

    def test_are_not_given_for_what_is_not_sampled(self, registry, provider):
        provider.sampler = ALWAYS_OFF
        with provider.get_tracer("t").start_as_current_span("request"):
            SessionMetrics().close_session(1234)
        assert self.exemplars(registry) == []


class TestRegistering:
    @pytest.mark.faults
    def test_a_registry_that_holds_our_name_keeps_what_it_has(self, caplog):
        registry = CollectorRegistry()
        Counter("sqlalchemy_session_queries", "somebody else's", registry=registry).inc()
        with caplog.at_level(logging.ERROR, logger="session_metrics_otel"):
            assert prometheus.register(registry) is None
        assert "sqlalchemy_session_queries" in caplog.text
        assert registry.get_sample_value("sqlalchemy_session_queries_total") == 1


class TestCost:
    def test_a_scrape_makes_the_same_calls_at_10_and_at_100_000_live_sessions(self, registry):
        self.calls(registry, 10)  # what happens the first time only is not of interest
        assert self.calls(registry, 10) == self.calls(registry, 100_000)

    def calls(self, registry, live):
        kept = [SessionMetrics(factory="many") for _ in range(live)]
        generate_latest(registry)
        count = 0

        def profile(_frame, event, _arg):
            nonlocal count
            count += event in ("call", "c_call")

        gc.disable()  # what is collected meanwhile makes calls of its own
        sys.setprofile(profile)
        try:
            generate_latest(registry)
        finally:
            sys.setprofile(None)
            gc.enable()
        for metrics in kept:
            metrics.close()
        LEDGER.forget()
        return count
