"""How many series a process has, and a fleet: a formula whose every number is the catalogue's.

A line of /metrics is a series in Prometheus. A process has some for each of its factories, pools,
routes, statements: the catalogue says how many for each. ``scripts/reference.py`` writes what
follows into docs/how-to/fleets.md, between the marks that ask for it.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from session_metrics_otel import catalog
from session_metrics_otel.catalog import (
    CATALOG,
    LEAK_REASONS,
    LIVE_STATES,
    USUAL_FAILURES,
    Kind,
    Metric,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Wanted = Callable[[str], object]

RULES = Path(__file__).resolve().parent.parent / "grafana" / "rules" / "session-metrics.yaml"
MARKED = re.compile(r"(<!-- series: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


class Thing(NamedTuple):
    """What there are series for each of.

    Attributes:
        name: What one is called.
        metrics: Those that have series for each, and how many.
        typical: How many of it the typical process has.
        where: Which series of the first metric are counted; "" for all.
    """

    name: str
    metrics: dict[Metric, int]
    typical: int
    where: str = ""

    def series(self, wanted: Wanted = bool) -> int:
        """How many series one brings, of those with a name that is ``wanted``."""
        return sum(times * _lines(metric, wanted) for metric, times in self.metrics.items())

    @property
    def counted_by(self) -> str:
        """PromQL for how many there are."""
        first = next(iter(self.metrics))
        end = "_count" if first.kind is Kind.HISTOGRAM else ""
        return f"count({first.prometheus_name}{end}{self.where})"


def _lines(metric: Metric, wanted: Wanted) -> int:
    """How many lines there are on /metrics for one set of labels of ``metric``."""
    buckets = len(metric.buckets) + 1  # +Inf is one too
    return sum(
        buckets if name.endswith("_bucket") else 1
        for name in metric.sample_names
        if wanted(name)
    )  # fmt: skip


_OPTIONAL = (
    catalog.SESSION_REPEATED_STATEMENTS,
    catalog.CONNECTION_MAX,
    catalog.CONNECTION_IDLE_MAX,
    catalog.CONNECTION_IDLE_MIN,
)
"""Of a factory, or of a pool, but not of each."""


def _each(*attributes: str) -> dict[Metric, int]:
    """The metrics that have these attributes: one series for each set of their values."""
    return {
        metric: 1 for metric in CATALOG
        if metric.attributes == attributes and metric not in _OPTIONAL
    }  # fmt: skip


# How a creation may end, and a session leak, is there at 0 from the first session on.
_FACTORY = {
    **_each("factory"),
    catalog.SESSIONS: len(LIVE_STATES),
    catalog.SESSION_CREATIONS: len(("success", "unused", *USUAL_FAILURES)),
    catalog.SESSION_LEAKS: len(LEAK_REASONS),
}
_UNUSUAL = f'{{outcome="failure",error_type!~"{"|".join(USUAL_FAILURES)}"}}'

THINGS = (
    Thing("factory", _FACTORY, 2),
    Thing("change of state, per factory", _each("factory", "from_state", "to_state"), 24),
    Thing("outcome of transactions, per factory", _each("factory", "outcome"), 6),
    Thing("error type, per factory", _each("factory", "error.type"), 6),
    Thing("unusual failure of creations, per factory", {catalog.SESSION_CREATIONS: 1}, 0, _UNUSUAL),
    Thing("insert, update, delete by the ORM, per factory", _each("factory", "operation"), 6),
    Thing("factory with repeated statements", {catalog.SESSION_REPEATED_STATEMENTS: 1}, 0),
    Thing("pool", _each(catalog.POOL_NAME), 1),
    Thing("used, idle, per pool", {catalog.CONNECTION_COUNT: 1}, 2),
    Thing("pool with a limit", {catalog.CONNECTION_MAX: 1}, 1),
    Thing("pool with a limit of idle ones", {catalog.CONNECTION_IDLE_MAX: 1}, 1),
    Thing("pool with a least number of idle ones", {catalog.CONNECTION_IDLE_MIN: 1}, 1),
    Thing("route", _each("http.route"), 40),
    Thing("route, per factory", _each("factory", "http.route"), 50),
    Thing("statement (operation, table)", {catalog.OPERATION_DURATION: 1}, 50, '{error_type=""}'),
    Thing("error type, per statement", {catalog.OPERATION_DURATION: 1}, 5, '{error_type!=""}'),
    Thing("statement, where the driver counts rows", {catalog.RETURNED_ROWS: 1}, 50),
    Thing("kind of user sessions", _each("name"), 0),
    Thing("part of the instrumentation that failed", _each("component"), 0),
)  # fmt: skip
TYPICAL = tuple(thing.typical for thing in THINGS)


def series(numbers: Iterable[float], wanted: Wanted = bool) -> float:
    """How many series there are, where there are so many of each of ``THINGS``."""
    of_each = zip(THINGS, numbers, strict=True)
    return sum(thing.series(wanted) * number for thing, number in of_each)


PROCESSES = 20
"""Processes of a service, in the typical fleet."""
WORKERS = 4
"""Workers of one address, where several processes add up."""
INTERVAL = 30
"""Seconds between scrapes."""
BUCKETS_TO_DROP = tuple(
    f"{metric.prometheus_name}_bucket"
    for metric in (
        catalog.OPERATION_DURATION,
        catalog.RETURNED_ROWS,
        catalog.ROUTE_CONNECTION_USE_TIME,
    )
)
"""Most of a process's series, and of what is rarely looked at for a whole fleet."""


def read_by_rules() -> list[str]:
    """The names on /metrics that the recording rules and alerts read."""
    read = set(re.findall(r"(?<![\w:])\w+(?![\w:])", RULES.read_text()))
    return [name for metric in CATALOG for name in metric.sample_names if name in read]


def recorded(processes: int) -> int:
    """How many series the recording rules make of a fleet of typical processes."""
    factories, pools = (
        next(thing.typical for thing in THINGS if thing.name == name)
        for name in ("factory", "pool")
    )
    services = processes // PROCESSES
    number = {"job": services, "factory": factories, "instance": PROCESSES, "pool": pools}
    total = 0
    for level in re.findall(r"record: (\w+):", RULES.read_text()):
        of_one = 1
        for label in level.split("_"):
            of_one *= number[label]
        total += of_one
    return total


def formula_table() -> str:
    """What there are series for each of, how many, and how to count them."""
    rows = ["| for each | series | how many there are | typical |", "|---|---|---|---|"]
    for thing in THINGS:
        asked = thing.counted_by.replace("|", "\\|")  # a bare one would end the cell
        rows.append(f"| {thing.name} | {thing.series()} | `{asked}` | {thing.typical} |")
    return "\n".join(rows)


def fleet_table() -> str:
    """What one process comes to, and many."""
    of_rules, dropped = set(read_by_rules()), set(BUCKETS_TO_DROP)
    each = {
        "everything": bool,
        "without the three families of buckets": lambda name: name not in dropped,
        "what rules and alerts read": of_rules.__contains__,
    }
    rows: dict[str, Callable[[int], int]] = {
        what: partial(_whole, series(TYPICAL, wanted)) for what, wanted in each.items()
    }
    rows["recorded series alone"] = recorded
    rows[f"everything, multi-process mode, {WORKERS} workers an address"] = partial(
        _whole, series(TYPICAL) / WORKERS
    )
    lines = [
        "| what is sent | one process | 1,000 | 10,000 | samples a second, 10,000 |",
        "|---|---|---|---|---|",
    ]
    for what, fleet in rows.items():
        one, thousand, ten = fleet(1), fleet(1_000), fleet(10_000)
        first = f"{one:,}" if one else "-"
        lines.append(f"| {what} | {first} | {thousand:,} | {ten:,} | {ten // INTERVAL:,} |")
    return "\n".join(lines)


def _whole(of_one: float, processes: int) -> int:
    return round(of_one * processes)


def agent_file() -> str:
    """What an agent sends, for rules that are evaluated where it arrives."""
    return _sending("agent.yml", "keep", ["up", *read_by_rules()])


def without_buckets_file() -> str:
    """Everything but the buckets that make most of the series."""
    return _sending("without_buckets.yml", "drop", list(BUCKETS_TO_DROP))


def _sending(file: str, action: str, names: list[str]) -> str:
    # In YAML a backslash takes the end of the line, and the space after it, out of the string.
    regex = "|\\\n          ".join(names)
    return f"""```yaml
# {file}
global:
  scrape_interval: {INTERVAL}s
  external_labels:
    cluster: eu-1
scrape_configs:
  - job_name: shop
    static_configs:
      - targets: ["shop:9464"]
remote_write:
  - url: https://mimir.example.org/api/v1/push
    write_relabel_configs:
      - source_labels: [__name__]
        action: {action}
        regex: "\\
          {regex}"
```"""


BLOCKS = {
    "formula": formula_table,
    "fleets": fleet_table,
    "agent": agent_file,
    "without": without_buckets_file,
}


def filled(page: str) -> str:
    """``page`` with what the catalogue says between its marks."""
    return MARKED.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", page)
