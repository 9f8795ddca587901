"""What /metrics says, in a form that a test can compare whole."""

from __future__ import annotations

import itertools
import os
from typing import TYPE_CHECKING

import pytest
import sqlalchemy
from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from session_metrics_otel import application_sessions
from session_metrics_otel.catalog import DEFAULT_FACTORY
from session_metrics_otel.hooks import holders, pools, statement_metrics
from session_metrics_otel.ledger import COLLECTED, LEDGER

if TYPE_CHECKING:
    from pathlib import Path

PREFIX = "sqlalchemy_session_"

_VERSION = tuple(int(part) for part in sqlalchemy.__version__.split(".")[:3])
since_2_0_31 = pytest.mark.skipif(
    _VERSION < (2, 0, 31), reason="what it uses came, or was mended, in a later SQLAlchemy 2.0"
)


def counted(factory: str = "default", registry: CollectorRegistry = REGISTRY) -> dict[str, float]:
    """Everything but 0 that /metrics says of ``factory``, except for times and buckets.

    A key is the name without ``sqlalchemy_session_`` and ``_total``, and the other labels' values:
    ``{"creations success": 1, "state_transitions created active": 1}``.
    """
    found = {}
    for family in registry.collect():
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("factory", None) != factory or sample.value == 0:
                continue
            if sample.name.endswith(("_bucket", "_sum", "_age_seconds")):
                continue
            name = sample.name.removeprefix(PREFIX).removesuffix("_total")
            order = ("outcome", "from_state", "to_state", "error_type", "reason", "operation")
            values = [labels.pop(key) for key in (*order, "state") if key in labels]
            assert not labels, labels
            found[" ".join([name, *values])] = sample.value
    return found


def changes(*states: str) -> dict[str, float]:
    """The transitions that going through ``states`` makes."""
    found: dict[str, float] = {}
    for origin, target in itertools.pairwise(states):
        key = f"state_transitions {origin} {target}"
        found[key] = found.get(key, 0) + 1
    return found


def value(sample: str, /, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(sample, labels)


def shown(name: str = "sqlite/") -> dict[str, float]:
    """Everything but times and buckets that /metrics says of the pool called ``name``.

    A key is the name without ``db_client_connection_``, and the state: ``count idle``.
    """
    found = {}
    for family in REGISTRY.collect():
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("db_client_connection_pool_name", None) != name:
                continue
            if not sample.name.endswith(("_bucket", "_sum")):
                key = sample.name.removeprefix("db_client_connection_")
                found[" ".join([key, *labels.values()])] = sample.value
    return found


def counted_in(folder: Path, factory: str = "default") -> dict[str, float]:
    """The same of all the processes whose files are in ``folder``, as prometheus_client adds up."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.fspath(folder))
    found = counted(factory, registry)
    found.pop("peak", None)
    return found


def forget_everything() -> None:
    """Begin again with nothing counted, no series, no report, and no name met."""
    LEDGER.forget()
    for names in (application_sessions._names, holders.routes, statement_metrics._databases):
        names.forget()
    holders._reports.clear()
    holders._last_report.clear()
    COLLECTED.clear()
    for name in [name for name in LEDGER._factories if name != DEFAULT_FACTORY]:
        del LEDGER._factories[name]
    for metric, labels in list(LEDGER._series):
        if labels[0] != DEFAULT_FACTORY:
            del LEDGER._series[metric, labels]
    LEDGER._factories[DEFAULT_FACTORY].seen = False
    pools._meters.clear()
    pools._pools.clear()  # an engine of an earlier test may be alive still
