"""A real PgBouncer in front of a real PostgreSQL: transactions share its connections."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg

from servers.postgres_server import USER, unprivileged
from servers.processes import HOST, free_port, needs, stopped_at_the_end, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

    from servers.postgres_server import Postgres

SERVER = Path("/usr/sbin/pgbouncer")
CONFIGURATION = """\
[databases]
* = host={host} port={server_port} user={user}
[pgbouncer]
listen_addr = {host}
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
max_client_conn = {connections}
max_db_connections = {connections}
default_pool_size = {connections}
"""


@contextmanager
def pgbouncer_running(postgres: Postgres, database: str, *, connections: int) -> Iterator[int]:
    """The port of a PgBouncer with so many connections, for clients and to the server.

    ``database`` is one of the server's, by which it is known to be ready.
    """
    needs("PgBouncer", SERVER)
    # Not under pytest's tmp_path: its parents are closed to the user that it runs as.
    with tempfile.TemporaryDirectory(prefix="pgbouncer-") as name:
        folder, port = Path(name), free_port()
        configuration = folder / "pgbouncer.ini"
        configuration.write_text(
            CONFIGURATION.format(
                host=HOST, port=port, server_port=postgres.port, user=USER, connections=connections
            )
        )
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
        log = folder / "pgbouncer.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [SERVER, str(configuration)], stdout=out, stderr=subprocess.STDOUT, **unprivileged()
            )

        def answers() -> bool:
            try:
                psycopg.connect(host=HOST, port=port, user=USER, dbname=database).close()
            except psycopg.OperationalError:
                return False
            return True

        with stopped_at_the_end(process):
            wait_until_ready(process, log, answers, "PgBouncer")
            yield port
