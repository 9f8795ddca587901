"""docs/how-to/fleets.md on real servers: how many series there are, and what is sent of them."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from math import inf
from typing import TYPE_CHECKING

import pytest
import series
import yaml
from docs.test_fleets import NAMES, OF_THE_SHOP, formula, lines_of_the_shop
from grafana.expressions import DASHBOARDS, RULES, of_dashboard
from pages import blocks

from servers.demo_process import Demo, demo_running
from servers.processes import HOST, free_port, needs, running, wait_for
from servers.prometheus_server import Prometheus, prometheus_scraping, prometheus_with
from servers.test_dashboards import RECORDED, asked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.postgres_server import Postgres
    from servers.prometheus_server import Promtool

FILES = {block.file: block.text for block in blocks("how-to/fleets") if block.file}
OURS = f'__name__=~"{"|".join(sorted(NAMES))}"'


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo, whose traffic has ended: it has all its series."""
    with demo_running(tmp_path_factory.mktemp("demo"), requests=300) as demo:
        demo.truth()
        yield demo


@pytest.fixture(scope="module")
def busy_demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The demo, whose traffic goes on: there are rates."""
    with demo_running(tmp_path_factory.mktemp("busy"), requests=1_000_000) as demo:
        yield demo


def test_the_formula_is_what_prometheus_stores_of_the_demo(demo: Demo, tmp_path: Path):
    with prometheus_scraping({"demo": demo.metrics}, tmp_path) as prometheus:
        # All of one scrape: in the demo, the watchdog may find a leak between two questions.
        at = prometheus.scraped_after(0)

        def number(expression: str) -> float:
            return sum(value for _, value in prometheus.query(expression, at))

        numbers = {thing.name: number(thing.counted_by) for thing in series.THINGS}
        found = number(f"count({{{OURS}}})")
        print(f"\n{numbers}: {found}")
        assert series.series(numbers.values()) == found
        clients_own = number('count({__name__=~"python_.*|process_.*"})')
        assert number("scrape_samples_scraped") == found + clients_own


def test_the_formula_is_what_a_process_shows_whose_driver_counts_rows(postgres: Postgres):
    lines = lines_of_the_shop(postgres.url(), 0)
    rows = {"statement, where the driver counts rows": 3}
    assert len(lines) == formula(OF_THE_SHOP | rows)


@contextmanager
def receiving(folder: Path, *rule_files: Path) -> Iterator[Prometheus]:
    """A Prometheus that scrapes nothing, and takes what is written to it."""
    folder.mkdir()
    flag = "--web.enable-remote-write-receiver"
    text = yaml.safe_dump(
        {"global": {"evaluation_interval": "1s"}, "rule_files": [str(path) for path in rule_files]}
    )
    with prometheus_with(text, folder, flag) as prometheus:
        yield prometheus


def sending(file: str, demo: Demo, receiver: Prometheus) -> str:
    """The page's file, for these addresses and for a test's haste."""
    text = FILES[file]
    for said, here in {
        "shop:9464": demo.metrics,
        "https://mimir.example.org/api/v1/push": f"{receiver.address}/api/v1/write",
        "/etc/prometheus/rules/*.yaml": str(RULES),
        "scrape_interval: 30s": "scrape_interval: 1s\n  evaluation_interval: 1s",
    }.items():
        text = text.replace(said, here)
    return text


def names_in(prometheus: Prometheus) -> set[str]:
    return {labels["__name__"] for labels, _ in prometheus.query('{__name__=~".+"}')}


def the_fleet_is_seen(prometheus: Prometheus) -> None:
    """Every query of the Fleet dashboard that needs no fault has data."""
    (fleet,) = (file for file in DASHBOARDS if file.stem.endswith("-fleet"))
    for panel in of_dashboard(fleet):
        if "> 0" not in panel.text:
            wait_for(lambda: prometheus.query(asked(panel.text)), bool, panel.where)  # noqa: B023


def test_a_prometheus_sends_what_it_recorded(busy_demo: Demo, tmp_path: Path):
    (tmp_path / "sender").mkdir()
    with receiving(tmp_path / "receiver") as receiver:
        with prometheus_with(sending("prometheus.yml", busy_demo, receiver), tmp_path / "sender"):
            for name in RECORDED:
                receiver.wait_for(f"count({name} >= 0)", bool)
            the_fleet_is_seen(receiver)
            wait_for(
                lambda: names_in(receiver) - {"ALERTS"}, set(RECORDED).__eq__, "what is recorded"
            )
            assert {labels["cluster"] for labels, _ in receiver.query('{__name__=~".+"}')} == {
                "eu-1"
            }


@contextmanager
def agent(configuration: str, folder: Path) -> Iterator[None]:
    """Prometheus as an agent, which can be asked nothing."""
    server = needs("Prometheus", shutil.which("prometheus"))
    folder.mkdir()
    (folder / "agent.yml").write_text(configuration)
    command = [
        server,
        "--enable-feature=agent",
        f"--config.file={folder / 'agent.yml'}",
        f"--storage.agent.path={folder / 'data'}",
        f"--web.listen-address={HOST}:{free_port()}",
        "--log.level=warn",
    ]
    with running(command, folder / "agent.log"):
        yield


def test_an_agent_sends_what_the_rules_read(busy_demo: Demo, tmp_path: Path):
    with receiving(tmp_path / "ruler", RULES) as ruler:
        with agent(sending("agent.yml", busy_demo, ruler), tmp_path / "agent"):
            for name in RECORDED:
                ruler.wait_for(f"count({name} >= 0)", bool)
            assert {rule["health"] for rule in ruler.rules()} == {"ok"}
            the_fleet_is_seen(ruler)
            kept = {"up", *series.read_by_rules()}
            assert names_in(ruler) - {*RECORDED, "ALERTS", "ALERTS_FOR_STATE"} <= kept


def test_an_agent_that_drops_three_families_of_buckets_sends_the_rest(demo: Demo, tmp_path: Path):
    with receiving(tmp_path / "receiver") as receiver:
        with agent(sending("without_buckets.yml", demo, receiver), tmp_path / "agent"):

            def difference() -> float:
                numbers = [receiver.value(thing.counted_by) or 0 for thing in series.THINGS]
                left = series.series(numbers, lambda name: name not in series.BUCKETS_TO_DROP)
                return left - (receiver.value(f"count({{{OURS}}})") or inf)

            # What is sent arrives in pieces.
            wait_for(difference, lambda number: number == 0, "the formula's number of series")
            assert names_in(receiver) & set(series.BUCKETS_TO_DROP) == set()


@pytest.mark.parametrize("file", FILES)
def test_promtool_takes_the_files(promtool: Promtool, tmp_path: Path, file: str):
    (tmp_path / file).write_text(FILES[file])
    flags = ["--agent"] if file != "prometheus.yml" else []
    checked = promtool("check", "config", *flags, str(tmp_path / file))
    assert checked.returncode == 0, checked.stderr
