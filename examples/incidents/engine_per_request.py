"""Incident 6: an engine is made for each request, and with it a pool.

    python examples/incidents/engine_per_request.py --broken

Nothing disposes of them: memory and open connections grow until the collector comes by.
"""

import asyncio
import gc
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI
from incident import Setting, Traffic, run
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from session_metrics_otel import instrument


def application(setting: Setting) -> FastAPI:
    app = FastAPI()
    engine = create_engine(setting.database)
    instrument(Session, name="orders")

    def broken() -> Iterator[Session]:
        with Session(create_engine(setting.database)) as session:  # to blame: a pool of its own
            yield session

    def mended() -> Iterator[Session]:
        with Session(engine) as session:
            yield session

    @app.get("/orders/{order_id}")
    def order(
        order_id: int, session: Annotated[Session, Depends(mended if setting.mended else broken)]
    ) -> str:
        return str(session.scalar(text("select item from orders where id = :id"), {"id": order_id}))

    return app


async def traffic(users: Traffic) -> None:
    """Customers, one after the other: there is no load to speak of."""
    await users.burst(2, "GET", "/orders/1")
    await asyncio.sleep(0.1)


if __name__ == "__main__":
    # An engine and its pool are a cycle, which only the garbage collector frees. Many services let
    # it run seldom, as it makes them pause.
    gc.set_threshold(100_000, 50, 100)
    run(application, traffic)
