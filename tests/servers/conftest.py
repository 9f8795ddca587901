from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Protocol

import pytest

from servers.chromium_browser import Chromium, chromium_with_profile
from servers.jaeger_server import Jaeger, jaeger_running
from servers.packages import Distributions, build
from servers.postgres_server import Postgres, postgres_running
from servers.prometheus_server import Prometheus, Promtool, installed_promtool, prometheus_scraping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path


class StartPrometheus(Protocol):
    def __call__(
        self, targets: Mapping[str, str | Sequence[str]], *, rule_files: Sequence[Path] = ()
    ) -> Prometheus: ...


@pytest.fixture(scope="module")
def prometheus_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartPrometheus]:
    """Starts a Prometheus of its own at each call; they end with the module."""
    with ExitStack() as servers:

        def start(
            targets: Mapping[str, str | Sequence[str]], *, rule_files: Sequence[Path] = ()
        ) -> Prometheus:
            folder = tmp_path_factory.mktemp("prometheus")
            return servers.enter_context(
                prometheus_scraping(targets, folder, rule_files=rule_files)
            )

        yield start


@pytest.fixture(scope="session")
def promtool() -> Promtool:
    return installed_promtool()


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    with jaeger_running(tmp_path_factory.mktemp("jaeger")) as server:
        yield server


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> Distributions:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def postgres_cluster() -> Iterator[Postgres]:
    with postgres_running() as server:
        yield server


@pytest.fixture
def postgres(postgres_cluster: Postgres) -> Postgres:
    """The session's one server: running and empty, whatever the test before did to it."""
    postgres_cluster.start()
    postgres_cluster.empty()
    return postgres_cluster


@pytest.fixture
def chromium(tmp_path: Path) -> Chromium:
    return chromium_with_profile(tmp_path / "chromium")
