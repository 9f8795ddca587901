"""The reference leaves nothing out."""

from __future__ import annotations

import re
from pathlib import Path

import session_metrics_otel
from session_metrics_otel.attributes import METRIC_ATTRIBUTES
from session_metrics_otel.catalog import CATALOG

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def test_every_metric_and_attribute_is_there():
    page = (REFERENCE / "metrics.md").read_text()
    shown = re.findall(r"^### `(.*)`", page, re.MULTILINE)
    assert sorted(shown) == sorted(metric.prometheus_name for metric in CATALOG)
    used = {name for metric in CATALOG for name in metric.attributes}
    assert used == METRIC_ATTRIBUTES.keys()


def test_every_environment_variable_that_is_read_is_there():
    page = (REFERENCE / "environment.md").read_text()
    read = set()
    for module in Path(session_metrics_otel.__file__).parent.rglob("*.py"):
        code = module.read_text()
        read |= set(re.findall(r'"((?:OTEL|PROMETHEUS|SESSION_METRICS)_[A-Z_]+)"', code))
    assert {"PROMETHEUS_MULTIPROC_DIR", "SESSION_METRICS_EXPORT"} <= read
    assert {name for name in read if f"`{name}`" not in page} == set()


def test_the_fields_that_count_say_what_they_are():
    fields = ("query_count", "transaction_count", "error_count")
    said = [getattr(session_metrics_otel.SessionMetrics, name).__doc__ for name in fields]
    assert said == ["Statements sent, failed ones too.", "Transactions ended.", "Errors recorded."]


def test_every_public_name_is_there():
    page = (REFERENCE / "api.md").read_text()
    pages = page + (REFERENCE / "metrics.md").read_text()
    assert [name for name in session_metrics_otel.__all__ if name not in pages] == []
