"""Prometheus's own parser takes what hostile names leave on /metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from faults.test_hostile_text import EVIL
from prometheus_client import REGISTRY, generate_latest

from session_metrics_otel import SessionMetrics
from session_metrics_otel.application_sessions import SystemSessionMetrics

if TYPE_CHECKING:
    from servers.prometheus_server import Promtool

PARSED = (0, 3)  # 3: it parsed, and the linter has something to say


def test_promtool_parses_every_hostile_name(promtool: Promtool) -> None:
    for name in EVIL:
        record = SessionMetrics(name, name, name, factory=name)
        record.record_error(name)
        record.close()
        SystemSessionMetrics(name=name).increment_total_sessions()
    page = generate_latest(REGISTRY).decode()
    assert page.count('sqlalchemy_session_creations_total{factory="') > len(EVIL)
    checked = promtool("check", "metrics", given=page)
    assert checked.returncode in PARSED, checked.stderr
    assert "parsing" not in checked.stderr
    # The check can fail.
    assert promtool("check", "metrics", given='broken{a="\n"} 1').returncode not in PARSED
