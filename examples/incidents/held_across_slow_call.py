"""Incident 3: a connection is taken, then the request waits for something slow.

    python examples/incidents/held_across_slow_call.py --broken

The carrier's API takes its time. The transaction before it stays open, and its connection is out.
"""

import asyncio

from fastapi import FastAPI
from incident import Setting, Traffic, run
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from session_metrics_otel import instrument

CONNECTIONS = 5


async def carrier_label(item: str) -> str:
    """A remote API on a bad day."""
    await asyncio.sleep(20)
    return f"label of {item}"


def application(setting: Setting) -> FastAPI:
    app = FastAPI()
    engine = create_async_engine(
        make_url(setting.database).set(drivername="sqlite+aiosqlite"),
        pool_size=CONNECTIONS,
        max_overflow=0,
        pool_timeout=2,
    )
    new_session = async_sessionmaker(engine)
    instrument(new_session, name="orders")
    app.router.on_shutdown.append(engine.dispose)

    select_item = text("select item from orders where id = :id")

    @app.post("/orders/{order_id}/ship")
    async def ship(order_id: int) -> str:
        async with new_session() as session:
            order = {"id": order_id}
            if setting.mended:
                item = await session.scalar(select_item, order)
                await session.commit()  # and the connection is back in its pool
            else:
                item = await session.scalar(select_item, order)  # to blame: held from here on
            label = await carrier_label(str(item))
            await session.execute(text("update orders set item = item where id = :id"), order)
            await session.commit()
        return label

    return app


async def traffic(users: Traffic) -> None:
    """More at once than there are connections."""
    await users.burst(CONNECTIONS + 3, "POST", "/orders/1/ship")


if __name__ == "__main__":
    run(application, traffic)
