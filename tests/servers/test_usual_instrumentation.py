"""What the usual instrumentation shows of the incidents, in the same run in which ours names them.

Usual are opentelemetry-instrumentation-sqlalchemy, in an environment of its own as it refuses
SQLAlchemy 2.1, and gauges of the pool as many services write them by hand.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

import pytest
from usual_instrumentation import environment

from servers.incident_process import PROGRAMS, Incident, incident_running, rows_under
from servers.processes import wait_for
from servers.test_incidents import CANCELLED_POOL, INCIDENTS, PROXY, SECONDS, database_for

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from servers.conftest import StartPrometheus
    from servers.postgres_server import Postgres
    from servers.prometheus_server import Prometheus


class Shown(NamedTuple):
    """The most that was ever shown.

    Attributes:
        used: The instrumentation's ``db.client.connections.usage``, ``state="used"``: one of them.
        checked_out: A gauge of ``pool.checkedout()``, written by hand; None where there is none.
    """

    used: set[float]
    checked_out: float | None


SHOWN = {
    "dependency_without_finally": Shown({15}, 15),
    "cancelled_in_rollback": Shown({CANCELLED_POOL}, CANCELLED_POOL),
    "second_connection": Shown({5}, 5),
    "held_across_slow_call": Shown({5}, 5),
    "null_pool": Shown({PROXY}, None),
    # Two at once, for milliseconds: a scrape seldom meets one. By hand, another pool is watched.
    "engine_per_request": Shown({0, 1, 2}, 0),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("usual")


@pytest.fixture(scope="module")
def running(folder: Path, postgres_cluster: Postgres) -> Iterator[dict[str, Incident]]:
    postgres_cluster.start()
    usual = environment("usual")
    with ExitStack() as programs:
        yield {
            name: programs.enter_context(
                incident_running(
                    name, "broken", folder, seconds=SECONDS, usual=usual,
                    database=database_for(postgres_cluster, name, "usual", programs),
                )
            )
            for name in INCIDENTS
        }  # fmt: skip


@pytest.fixture(scope="module")
def prometheus(running: dict[str, Incident], prometheus_server: StartPrometheus) -> Prometheus:
    return prometheus_server({name: incident.target for name, incident in running.items()})


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """One for each incident, written to the terminal at the end."""
    heading = (
        "incident | connections.usage | checkedout() by hand | spans, those naming route or line"
    )
    yield from rows_under(heading, request)


@pytest.mark.parametrize("name", INCIDENTS)
def test_it_names_neither_route_nor_line_where_ours_does(
    name: str,
    running: dict[str, Incident],
    prometheus: Prometheus,
    folder: Path,
    rows: list[str],
) -> None:
    broken, expected, shown = running[name], INCIDENTS[name], SHOWN[name]
    words = [word.format(culprit=broken.culprit) for word in expected.words]
    broken.wait_for_log(expected.route, expected.state, *words)

    shows = f'max(max_over_time({{}}{{{{job="{name}"{{}}}}}}[5m]))'
    used = prometheus.wait_for(
        shows.format("usual_connections_usage", ',state="used"'), shown.used.__contains__
    )
    by_hand = shows.format("usual_pool_checkedout", "")
    prometheus.wait_for(by_hand, lambda n: n == shown.checked_out)

    spans = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()[:-1]]
    usual = f'{{job="{name}",__name__=~"usual_.*"}}'
    found = wait_for(lambda: prometheus.query(usual), bool, f"the usual series of {name}")
    series = [labels for labels, _ in found]
    assert spans
    naming = [
        said
        for said in map(str, [*spans, *series])
        if expected.route in said or str(PROGRAMS) in said
    ]
    assert naming == []
    assert {labels["state"] for labels in series if "state" in labels} == {"used", "idle"}
    rows.append(f"{name} | {used:g} | {shown.checked_out} | {len(spans)}, {len(naming)}")


def test_its_usage_goes_on_counting_pools_that_are_gone_by_their_connections(
    running: dict[str, Incident], prometheus: Prometheus
) -> None:
    assert running
    idle = 'usual_connections_usage{job="engine_per_request",state="idle"}'
    prometheus.wait_for(f"max(max_over_time({idle}[5m]))", lambda n: n is not None and n > 20)
