"""Routes: which endpoint eats the pool."""

from __future__ import annotations

from .board import FACTORY, INSTANCE, Board, chosen, quantile, rate
from .panel import AMBER, GREEN, RED, Panel, Query

_USE = "sqlalchemy_route_connection_use_time_seconds"

ROUTES = Board(
    uid="session-metrics-routes",
    title="SQLAlchemy routes",
    says="Who holds the connections, by the route of the request. The web middleware says which.",
    empty="no route so far: is the web middleware in place?",
    variables=chosen("job", "instance", "factory"),
    rows={
        "Routes": [
            Panel(
                "Connections held on average, by route",
                "Seconds of connection per second: 2 is two connections held all the time. The "
                "widest band is who eats the pool: where the sum nears the pools' limits, shorten "
                "that one first.",
                [rate("http_route", f"{_USE}_sum", INSTANCE)],
                width=12,
                stacked=True,
            ),
            Panel(
                "Time a request holds a connection, 95 %",
                "A route far above the others does something slow between its statements, a call to "
                "another service most often: do that before the first statement or after the session.",
                [quantile(0.95, _USE, INSTANCE, "http_route")],
                unit="s",
                width=12,
                steps=[(GREEN, None), (AMBER, 1), (RED, 10)],
            ),
            Panel(
                "Sessions by route",
                "Sessions closed each second, of the factories chosen, as connections cannot be. More of "
                "them than the route has requests is several sessions, and connections, for one "
                "request: pass the first one on.",
                [rate("http_route", "sqlalchemy_route_sessions_total", FACTORY)],
                unit="cps",
                width=12,
            ),
            Panel(
                "Worst routes over the time shown",
                "Seconds that connections were held, by route, most first. When pools are full, the "
                "first line is where to begin: fewer statements, or less between them.",
                [
                    Query(
                        f"sort_desc(sum by (http_route) (increase({_USE}_sum{{{INSTANCE}}}"
                        "[$__range])))"
                    )
                ],
                kind="table",
                columns={"http_route": "route", "Value": "held"},
                unit="s",
                width=12,
            ),
        ],
    },
)
