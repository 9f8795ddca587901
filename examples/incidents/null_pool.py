"""Incident 5: NullPool, as one has it behind a proxy: only that bounds the connections.

    python examples/incidents/null_pool.py --broken --database postgresql+psycopg://...

A PgBouncer that pools transactions takes fewer clients than ``AT_ONCE``: it refuses the rest.
"""

import asyncio

from fastapi import FastAPI
from incident import Setting, Traffic, run
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from session_metrics_otel import instrument

AT_ONCE = 15
CONNECTIONS = 5


async def carrier_label(item: str) -> str:
    """A remote API that takes its time."""
    await asyncio.sleep(2)
    return f"label of {item}"


def application(setting: Setting) -> FastAPI:
    app = FastAPI()
    # The next transaction may get another connection, which has not prepared this one's statements.
    proxied = {"prepare_threshold": None}
    if setting.mended:
        engine = create_async_engine(
            setting.database, connect_args=proxied, pool_size=CONNECTIONS, max_overflow=0
        )
    else:
        engine = create_async_engine(setting.database, connect_args=proxied, poolclass=NullPool)
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
                item = await session.scalar(select_item, order)  # to blame: one more, and held
            return await carrier_label(str(item))

    return app


async def traffic(users: Traffic) -> None:
    """More at once than the proxy has connections for."""
    await users.burst(AT_ONCE, "POST", "/orders/1/ship")


if __name__ == "__main__":
    run(application, traffic, postgresql=True)
