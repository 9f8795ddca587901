"""The database server of an engine, and what it says of an error: in the conventions' terms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from session_metrics_otel.legible import one_line

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

Attributes = dict[str, str | int]

# Where OpenTelemetry's name for a database is not SQLAlchemy's.
_SYSTEMS = {
    "mssql": "microsoft.sql_server",
    "oracle": "oracle.db",
    "redshift": "aws.redshift",
    "bigquery": "gcp.bigquery",
    "spanner+spanner": "gcp.spanner",
    "hana": "sap.hana",
    "db2": "ibm.db2",
    "ibm_db_sa": "ibm.db2",
    "informix": "ibm.informix",
    "netezza": "ibm.netezza",
    "firebird": "firebirdsql",
    "teradatasql": "teradata",
    "clickhousedb": "clickhouse",
}


# Where a URL's query names the server: asyncpg and psycopg take a host there as well, a socket's
# folder mostly; MySQL's drivers and pg8000 take the socket itself.
_IN_QUERY = ("host", "unix_socket", "unix_sock")


def server_address(url: URL) -> str:
    """The host that ``url`` leads to, or the socket; "" where it says neither."""
    candidates = (url.host, *map(url.query.get, _IN_QUERY))
    return next((found for found in candidates if isinstance(found, str) and found), "")


def server_attributes(engine: Engine) -> Attributes:
    """What is the same for all that ``engine`` does, by the database conventions.

    ``db.system.name``, and what the engine's URL says: ``db.namespace``, ``server.address`` and
    ``server.port``, the last with an address alone.
    """
    dialect: Any = engine.dialect
    url = engine.url
    name = "mariadb" if getattr(dialect, "is_mariadb", False) else dialect.name
    found: Attributes = {"db.system.name": _SYSTEMS.get(name, name)}
    if url.database:
        found["db.namespace"] = one_line(url.database)
    address = server_address(url)
    if address:
        found["server.address"] = one_line(address)
        if url.port:
            found["server.port"] = url.port
    return found


def status_code(error: BaseException) -> str:
    """``db.response.status_code``: the SQLSTATE, or the vendor's number; "" where there is none."""
    for attribute in ("sqlstate", "pgcode"):
        found = getattr(error, attribute, None)
        if isinstance(found, str) and found:
            return found
    detail = error.args[0] if error.args else None
    if type(detail) is int:  # MySQL's drivers
        return str(detail)
    code = getattr(detail, "full_code", None)  # Oracle's: ORA-00942
    return code if isinstance(code, str) else ""


def error_type(error: BaseException) -> str:
    """``error.type``: the status code, else the class of the driver's own exception."""
    return status_code(error) or type(error).__name__
