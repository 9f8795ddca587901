"""The formula for the number of series is right: it is what a scrape of a known service has."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import series
from pages import DOCS, run_python

from session_metrics_otel.catalog import CATALOG

PROGRAMS = Path(__file__).parents[1] / "programs"
NAMES = {name for metric in CATALOG for name in metric.sample_names}
OF_THE_SHOP = {
    "factory": 2,
    "change of state, per factory": 10 + 3,
    "outcome of transactions, per factory": 3 + 1,
    "error type, per factory": 2,
    "insert, update, delete by the ORM, per factory": 1,
    "factory with repeated statements": 1,
    "pool": 1,
    "used, idle, per pool": 2,
    "pool with a limit": 1,
    "pool with a limit of idle ones": 1,
    "pool with a least number of idle ones": 1,
    "route": 2,
    "route, per factory": 2,
    "statement (operation, table)": 3,
    "error type, per statement": 1,
    "kind of user sessions": 1,
}
"""What tests/programs/shop.py does, counted by reading it."""


def lines_of_the_shop(url: str, workers: int, **environment: str) -> list[str]:
    """The lines of its /metrics that are ours."""
    lines = run_python(PROGRAMS / "shop.py", url, str(workers), **environment)
    return [line for line in lines if line.partition("{")[0] in NAMES]


def formula(numbers: dict[str, int]) -> float:
    """What the formula makes of them; what is not named, there is none of."""
    assert numbers.keys() <= {thing.name for thing in series.THINGS}
    return series.series(numbers.get(thing.name, 0) for thing in series.THINGS)


def test_it_is_what_a_process_shows(tmp_path):
    lines = lines_of_the_shop(f"sqlite:///{tmp_path}/shop.sqlite", 0)
    assert len(lines) == formula(OF_THE_SHOP)


@pytest.mark.parametrize("workers", [1, 3])
def test_it_is_what_the_workers_of_an_address_show_together(tmp_path, workers):
    (tmp_path / "files").mkdir()
    lines = lines_of_the_shop(
        f"sqlite:///{tmp_path}/shop.sqlite", workers,
        PROMETHEUS_MULTIPROC_DIR=os.fspath(tmp_path / "files"),
    )  # fmt: skip
    assert len(lines) == formula(OF_THE_SHOP)


def test_it_has_every_metric():
    assert {metric for thing in series.THINGS for metric in thing.metrics} == set(CATALOG)


def test_the_page_says_what_it_comes_to():
    page = (DOCS / "how-to" / "fleets.md").read_text()
    assert [name for _, name, _ in series.MARKED.findall(page)] == list(series.BLOCKS)
    assert series.filled(page) == page
