from __future__ import annotations

import copy
import dataclasses
import gc
import json
from datetime import datetime, timezone

import pytest
from reading import value
from threads import THREADS, in_threads

from session_metrics_otel import (
    ConnectionPoolMetrics,
    SystemMetrics,
    SystemSessionMetrics,
    application_sessions,
    create_system_session_metrics,
)


def shown(name: str, group: str = "default") -> float | None:
    return value(f"application_session{name}", name=group)


class TestSystemSessionMetrics:
    @pytest.fixture(autouse=True)
    def _one_day(self, monkeypatch):
        """No midnight comes in the middle of a test."""
        monkeypatch.setattr(application_sessions, "_today", lambda: "2026-01-01")

    def test_its_other_names(self):
        assert SystemMetrics is SystemSessionMetrics
        assert type(create_system_session_metrics(total_sessions=3)) is SystemSessionMetrics

    def test_methods_are_mirrored(self):
        metrics = create_system_session_metrics()
        for _ in range(3):
            metrics.increment_total_sessions()
            metrics.increment_active_sessions()
        metrics.decrement_active_sessions()
        metrics.record_session_cleanup()
        metrics.record_session_cleanup(4)
        metrics.record_session_reuse()
        metrics.update_memory_usage(1.5)
        metrics.update_average_duration(2)
        assert (metrics.total_sessions, metrics.sessions_created_today) == (3, 3)
        assert shown("_created_total") == 3
        assert shown("s") == 2
        assert shown("_expired_total") == 5
        assert shown("_reused_total") == 1
        assert shown("_memory_usage_bytes") == 1.5 * 1024 * 1024
        assert shown("_duration_mean_seconds") == 120

    def test_assignments_are_mirrored(self):
        metrics = SystemSessionMetrics()
        metrics.total_sessions = 10
        metrics.total_sessions = 4
        metrics.total_sessions += 1
        metrics.active_sessions = 7
        assert shown("_created_total") == 11
        assert shown("s") == 7

    def test_active_is_never_below_0(self):
        metrics = SystemSessionMetrics()
        metrics.decrement_active_sessions()
        assert metrics.active_sessions == 0

    @pytest.mark.usefixtures("eager_switching")
    def test_methods_are_exact_under_threads(self):
        metrics, rounds = SystemSessionMetrics(), 200

        def work():
            for _ in range(rounds):
                metrics.increment_total_sessions()
                metrics.record_session_reuse()
                metrics.record_session_cleanup(2)
                metrics.record_error("lost")
                metrics.increment_active_sessions()
                metrics.increment_active_sessions()
                metrics.decrement_active_sessions()

        in_threads(work)
        done = THREADS * rounds
        assert metrics.total_sessions == metrics.sessions_created_today == done
        assert shown("_created_total") == done
        assert metrics.sessions_reused_today == shown("_reused_total") == done
        assert metrics.expired_sessions_cleaned == shown("_expired_total") == 2 * done
        assert metrics.active_sessions == shown("s") == done
        assert metrics.error_count == done

    def test_what_the_constructor_is_given_was_counted_before(self):
        metrics = SystemSessionMetrics(total_sessions=100, active_sessions=5)
        metrics.increment_total_sessions()
        assert metrics.total_sessions == 101
        assert shown("_created_total") == 1
        assert shown("s") == 5

    def test_today_begins_anew_and_the_counters_go_on(self):
        metrics = SystemSessionMetrics()
        metrics.increment_total_sessions()
        metrics.record_session_reuse()
        metrics._day = "2000-01-01"
        metrics.increment_total_sessions()
        metrics.record_session_reuse()
        assert (metrics.sessions_created_today, metrics.sessions_reused_today) == (1, 1)
        assert shown("_created_total") == 2
        assert shown("_reused_total") == 2

    def test_a_day_on_which_nothing_has_happened_yet_has_none(self):
        metrics = SystemSessionMetrics()
        metrics.increment_total_sessions()
        metrics.record_session_reuse()
        metrics._day = "2000-01-01"
        found = metrics.to_dict()
        assert (found["sessions_created_today"], found["sessions_reused_today"]) == (0, 0)
        assert (found["total_sessions"], shown("_reused_total")) == (1, 1)

    def test_names_are_shown_apart(self):
        web, api = SystemSessionMetrics(name="web"), SystemSessionMetrics(name="api")
        web.active_sessions, api.active_sessions = 1, 2
        assert (shown("s", "web"), shown("s", "api")) == (1, 2)

    def test_records_of_one_name_add_up_and_their_mean_is_one(self):
        left, right = SystemSessionMetrics(), SystemSessionMetrics()
        left.active_sessions, right.active_sessions = 1, 2
        left.update_average_duration(1)
        right.update_average_duration(3)
        assert shown("s") == 3
        assert shown("_duration_mean_seconds") == 120

    def test_a_record_that_is_gone_is_out_of_the_gauges(self):
        metrics = SystemSessionMetrics(active_sessions=5)
        assert shown("s") == 5
        del metrics
        gc.collect()
        assert shown("s") is None

    @pytest.mark.faults
    def test_one_that_holds_no_number_spoils_nobody_elses_metrics(self, caplog):
        metrics = SystemSessionMetrics()
        metrics.increment_total_sessions()
        metrics.update_memory_usage(None)
        assert shown("_created_total") == 1
        assert shown("_memory_usage_bytes") is None
        assert "Session telemetry (application sessions) failed" in caplog.text
        metrics.update_memory_usage(1)
        assert shown("_memory_usage_bytes") == 1024 * 1024

    def test_a_copy_is_not_mirrored(self):
        metrics = SystemSessionMetrics(active_sessions=1)
        for twin in (copy.copy(metrics), copy.deepcopy(metrics)):
            twin.increment_total_sessions()
            twin.increment_active_sessions()
        assert dataclasses.asdict(metrics)["active_sessions"] == 1
        assert shown("s") == 1
        assert shown("_created_total") == 0

    def test_activity_and_dict(self):
        metrics = SystemSessionMetrics(
            created_at=datetime(2020, 1, 1, tzinfo=timezone.utc), total_sessions=2
        )
        assert metrics.get_inactivity_seconds() > 3600
        metrics.mark_activity()
        assert metrics.get_inactivity_seconds() < 3600
        found = json.loads(json.dumps(metrics.to_dict()))
        assert found["created_at"] == "2020-01-01T00:00:00+00:00"
        assert found["total_sessions"] == 2
        assert set(found) >= {
            "active_sessions", "expired_sessions_cleaned", "sessions_created_today",
            "sessions_reused_today", "average_session_duration_minutes", "memory_usage_mb",
        }  # fmt: skip


class TestConnectionPoolMetrics:
    def test_peak_exhaustion_and_leaks(self):
        metrics = ConnectionPoolMetrics(active_sessions=4)
        metrics.update_peak_concurrent()
        metrics.active_sessions = 2
        metrics.update_peak_concurrent()
        assert metrics.peak_concurrent_sessions == 4
        assert metrics.last_pool_exhaustion is metrics.last_leak_detection is None
        metrics.record_pool_exhaustion()
        metrics.record_leak()
        assert (metrics.pool_exhaustion_events, metrics.leaked_sessions) == (1, 1)
        assert metrics.last_pool_exhaustion <= metrics.last_leak_detection
