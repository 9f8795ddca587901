"""Incident 4: code that holds one session opens another in the same request.

    python examples/incidents/second_connection.py --broken

At full load every request holds a connection and waits for one more: nobody goes on.
"""

import asyncio
import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import Depends, FastAPI
from incident import Setting, Traffic, run
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, sessionmaker

from session_metrics_otel import instrument

CONNECTIONS = 5


def application(setting: Setting) -> FastAPI:
    app = FastAPI()
    engine = create_engine(setting.database, pool_size=CONNECTIONS, max_overflow=0, pool_timeout=2)
    new_session = sessionmaker(engine)
    instrument(new_session, name="orders")

    def request_session() -> Iterator[Session]:
        with new_session() as session:
            yield session

    def price_of(item: str, session: Session) -> int:
        return int(session.scalar(text("select length(:item)"), {"item": item}) or 0)

    def price_in_its_own_session(item: str) -> int:
        with new_session() as session:  # to blame: its request holds a connection already
            return price_of(item, session)

    @app.post("/orders/{order_id}/bill")
    def bill(order_id: int, session: Annotated[Session, Depends(request_session)]) -> int:
        item = session.scalar(text("select item from orders where id = :id"), {"id": order_id})
        time.sleep(0.1)
        if setting.mended:
            return price_of(str(item), session)
        return price_in_its_own_session(str(item))

    return app


async def traffic(users: Traffic) -> None:
    """As many at once as there are connections."""
    await users.burst(CONNECTIONS, "POST", "/orders/1/bill")
    await asyncio.sleep(0.2)


if __name__ == "__main__":
    run(application, traffic)
