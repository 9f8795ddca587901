"""Incident 1: a dependency that closes its session on the line after the yield, without a finally.

    python examples/incidents/dependency_without_finally.py --broken

An HTTPException is raised in the dependency at its ``yield``: the line after it is never reached.
"""

import asyncio
import gc
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from incident import Setting, Traffic, run
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from session_metrics_otel import instrument


def application(setting: Setting) -> FastAPI:
    app = FastAPI()
    engine = create_engine(setting.database, pool_timeout=2)  # and up to 15 connections
    new_session = sessionmaker(engine)
    instrument(new_session, name="orders")

    def broken() -> Iterator[Session]:
        session = new_session()  # to blame: nothing closes it when the request fails
        yield session
        session.close()

    def mended() -> Iterator[Session]:
        with new_session() as session:
            yield session

    @app.get("/orders/{order_id}")
    def order(
        order_id: int, session: Annotated[Session, Depends(mended if setting.mended else broken)]
    ) -> str:
        found = session.scalar(text("select item from orders where id = :id"), {"id": order_id})
        if found is None:
            raise HTTPException(404)
        return str(found)

    return app


async def traffic(users: Traffic) -> None:
    """A crawler asks for an order that is gone, and customers for theirs."""
    await users.send("GET", "/orders/404")
    await users.burst(2, "GET", "/orders/1")
    await asyncio.sleep(0.2)


if __name__ == "__main__":
    # What was raised and the session are a cycle, which only the garbage collector frees. Many
    # services let it run seldom, as it makes them pause.
    gc.set_threshold(100_000, 50, 100)
    run(application, traffic)
