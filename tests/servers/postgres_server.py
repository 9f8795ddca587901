"""A real PostgreSQL that a test may stop and start again on the same port."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from servers.processes import HOST, PATIENCE, free_port, needs, wait_until_ready

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARIES = Path("/usr/lib/postgresql/15/bin")
USER = "postgres"
DATABASE = "test"
# PostgreSQL's own names for the ways to shut down: wait for clients, throw them off, crash.
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


@dataclass
class Postgres:
    folder: Path
    port: int
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def url(self, driver: str = "psycopg", *, unix_socket: bool = False) -> str:
        """SQLAlchemy's URL by ``driver``, over TCP or the unix socket."""
        if unix_socket:
            return f"postgresql+{driver}://{USER}@/{DATABASE}?host={self.folder}&port={self.port}"
        return f"postgresql+{driver}://{USER}@{HOST}:{self.port}/{DATABASE}"

    def execute(self, sql: str, *, database: str = DATABASE) -> list[tuple[Any, ...]]:
        """Run one statement on a connection of its own, in autocommit; its rows, if it has any."""
        import psycopg

        with psycopg.connect(
            host=HOST, port=self.port, user=USER, dbname=database, autocommit=True
        ) as connection:
            cursor = connection.execute(sql)
            return cursor.fetchall() if cursor.description else []

    def empty(self) -> None:
        """Throw all clients off and give the next test a database with nothing in it."""
        self.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)", database="postgres")
        self.execute(f"CREATE DATABASE {DATABASE}", database="postgres")

    def start(self) -> None:
        """Start the server where it is not running, and wait until it takes connections."""
        if self._process is not None and self._process.poll() is None:
            return
        settings = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": self.folder,
            "fsync": "off",
            "max_connections": 50,
        }
        command = [str(BINARIES / "postgres"), "-D", str(self.folder / "data")]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        log = self.folder / "postgres.log"
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command, cwd=self.folder, stdout=out, stderr=subprocess.STDOUT, **unprivileged()
            )
        ready = [str(BINARIES / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port)]
        wait_until_ready(
            self._process,
            log,
            lambda: subprocess.run(ready, check=False).returncode == 0,
            "PostgreSQL",
        )

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait until it is gone; ``smart`` waits for clients to leave first.

        Raises subprocess.TimeoutExpired where clients do not leave.
        """
        if self._process is None:
            return
        self._process.send_signal(SIGNALS[mode])
        self._process.wait(PATIENCE)
        self._process = None

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """End the server whatever state a test left it in."""
        try:
            self.stop("immediate")
        except subprocess.TimeoutExpired:
            assert self._process is not None
            self._process.kill()
            self._process.wait()


def unprivileged() -> dict[str, Any]:
    """What has subprocess run a command as a user that is not root, whom PostgreSQL refuses."""
    if os.geteuid() != 0:
        return {}
    return {"user": USER, "group": USER, "extra_groups": []}


@contextmanager
def postgres_running() -> Iterator[Postgres]:
    needs("PostgreSQL 15", BINARIES / "postgres")
    # Not under pytest's tmp_path: its parents are closed to the user that PostgreSQL runs as, and
    # a unix socket's path has room for a hundred characters only.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if os.geteuid() == 0:
            shutil.chown(folder, USER, USER)
        initdb = [str(BINARIES / "initdb"), "-D", str(folder / "data"), "--no-sync"]
        initdb += ["--auth=trust", f"--username={USER}", "--encoding=UTF8", "--locale=C"]
        made = subprocess.run(
            initdb, cwd=folder, capture_output=True, text=True, check=False, **unprivileged()
        )
        assert made.returncode == 0, made.stdout + made.stderr
        server = Postgres(folder, free_port())
        try:
            server.start()
            yield server
        finally:
            server.kill()
