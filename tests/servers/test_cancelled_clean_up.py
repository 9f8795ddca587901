"""Where a session's own clean-up is cancelled, SQLAlchemy ends the backend: nothing sits idle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from usual_instrumentation import environment

if TYPE_CHECKING:
    from servers.postgres_server import Postgres

PROGRAM = Path(__file__).with_name("cancelled_clean_up.py")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
@pytest.mark.parametrize("sqlalchemy", ["2.0", "newest"])
def test_nothing_is_left_idle_in_transaction_nor_out_of_the_pool(
    sqlalchemy: str, driver: str, postgres: Postgres
) -> None:
    python = sys.executable if sqlalchemy == "newest" else str(environment("usual"))
    command = [python, str(PROGRAM), postgres.url(driver)]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    left = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(left) == 10
    assert [found for found in left if found[2:] != [0, 0]] == []
