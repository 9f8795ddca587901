"""Ledger -> /metrics: one collector that reads the totals when it is scraped."""

from __future__ import annotations

from functools import cache
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

from opentelemetry.trace import format_span_id, format_trace_id
from prometheus_client import REGISTRY
from prometheus_client.core import Exemplar, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from .catalog import CATALOG, Kind, label_name
from .faults import caught
from .ledger import LEDGER
from .series import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import CollectorRegistry

    from . import catalog
    from .ledger import Value
    from .series import Labels

_TYPES = {
    Kind.COUNTER: "counter",
    Kind.UP_DOWN_COUNTER: "gauge",
    Kind.GAUGE: "gauge",
    Kind.HISTOGRAM: "histogram",
}


class SessionCollector(Collector):
    """Shows the ledger under the catalogue's names. A scrape costs by the number of series."""

    def describe(self) -> Iterable[Metric]:
        """The families, empty: a registry asks for their names once, to find clashes."""
        return [_family(metric) for metric in CATALOG]

    def collect(self) -> Iterator[Metric]:
        """The families that have a series."""
        snapshot = LEDGER.snapshot()
        for metric, series in snapshot.items():
            if series:
                family = _family(metric)
                for labels, value in series.items():
                    _add(family, metric, labels, value)
                yield family


def _family(metric: catalog.Metric) -> Metric:
    # prometheus_client takes a counter's name without `_total` and puts it back.
    name = metric.prometheus_name.removesuffix("_total")
    return Metric(name, metric.help, _TYPES[metric.kind])


@cache  # as many as there are series, and those are bounded
def _labels(metric: catalog.Metric, values: Labels) -> dict[str, str]:
    return {
        label_name(name): text for name, text in zip(metric.attributes, values, strict=True) if text
    }


@cache
def _bucket_labels(metric: catalog.Metric, values: Labels) -> list[dict[str, str]]:
    labels = _labels(metric, values)
    return [{**labels, "le": floatToGoString(bound)} for bound in (*metric.buckets, inf)]  # type: ignore[no-untyped-call]


def _add(family: Metric, metric: catalog.Metric, values: Labels, value: Value) -> None:
    if isinstance(value, Distribution):
        _add_distribution(family, metric, values, value)
    else:
        family.add_sample(metric.prometheus_name, _labels(metric, values), value)


def _add_distribution(
    family: Metric, metric: catalog.Metric, values: Labels, value: Distribution
) -> None:
    name = metric.prometheus_name
    buckets = _bucket_labels(metric, values)
    totals = list(accumulate(value.counts))
    for index, (labels, total) in enumerate(zip(buckets, totals, strict=True)):
        kept = value.exemplars.get(index)
        exemplar = None
        if kept is not None:
            trail = {
                "trace_id": format_trace_id(kept.trace_id),
                "span_id": format_span_id(kept.span_id),
            }
            exemplar = Exemplar(trail, kept.value, kept.timestamp)
        family.add_sample(f"{name}_bucket", labels, total, exemplar=exemplar)
    family.add_sample(f"{name}_count", _labels(metric, values), totals[-1])
    family.add_sample(f"{name}_sum", _labels(metric, values), value.sum)


def register(registry: CollectorRegistry = REGISTRY) -> SessionCollector | None:
    """Show the ledger in ``registry`` too; importing the package does so for the default one.

    A registry that already holds one of our names keeps what it has: the clash is logged, and the
    application starts as it would without us.

    Returns:
        The collector, or None where the registry refused it.
    """
    collector = SessionCollector()
    try:
        registry.register(collector)
    except Exception as clash:  # noqa: BLE001 - an import may not fail for it
        advice = "To show these metrics, register() them with a registry of their own."
        caught("registry", ValueError(f"{clash}. {advice}"))
        return None
    return collector
