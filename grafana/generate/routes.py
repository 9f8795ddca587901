"""Routes: which endpoint eats the pool."""

from __future__ import annotations

from .board import INSTANCE, Board, quantile, rate
from .panel import Panel, Query

_USE = "sqlalchemy_route_connection_use_time_seconds"

ROUTES = Board(
    uid="session-metrics-routes",
    title="SQLAlchemy routes",
    says="Who holds the connections, by the route of the request. The web middleware says which.",
    variables=("job", "instance"),
    rows={
        "Routes": [
            Panel(
                "Connections held on average, by route",
                "Seconds of connection per second: 2 is two connections held all the time. The top "
                "band is who eats the pool. Nothing here: the middleware is not in place.",
                [rate("http_route", f"{_USE}_sum", INSTANCE)],
                width=12,
                stacked=True,
            ),
            Panel(
                "Time a request holds a connection, 95 %",
                "A route far above the others does something slow between its statements.",
                [quantile(0.95, _USE, INSTANCE, "http_route")],
                unit="s",
                width=12,
            ),
            Panel(
                "Sessions by route",
                "Sessions closed each second.",
                [rate("http_route", "sqlalchemy_route_sessions_total", INSTANCE)],
                unit="cps",
                width=12,
            ),
            Panel(
                "Worst routes over the time shown",
                "Connection seconds by route, most first.",
                [
                    Query(
                        f"sort_desc(sum by (http_route) (increase({_USE}_sum{{{INSTANCE}}}"
                        "[$__range])))"
                    )
                ],
                kind="table",
                unit="s",
                width=12,
            ),
        ],
    },
)
