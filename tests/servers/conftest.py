from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from servers.jaeger_server import Jaeger, jaeger_running

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jaeger]:
    with jaeger_running(tmp_path_factory.mktemp("jaeger")) as server:
        yield server
