"""Incident 2: a client leaves, and the cancellation is delivered again inside the clean-up's await.

    python examples/incidents/cancelled_in_rollback.py --broken --database postgresql+asyncpg://...

Starlette streams in a cancel scope: once the client has gone, every ``await`` in it is cancelled,
those of the clean-up too. ROLLBACK never reaches the server, and the connection not its pool.
"""

import asyncio
import gc
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from incident import Setting, Traffic, run
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from session_metrics_otel import instrument


async def say_goodbye(order_id: int) -> None:
    """Tell another service that nobody looks at this order any more."""
    await asyncio.sleep(order_id / 20)


def application(setting: Setting) -> FastAPI:
    app = FastAPI()
    engine = create_async_engine(setting.database, pool_timeout=2)  # and up to 15 connections
    new_session = async_sessionmaker(engine)
    instrument(new_session, name="orders")
    app.router.on_shutdown.append(engine.dispose)
    select_item = text("select item from orders where id = :id")

    async def end(session: AsyncSession, order_id: int) -> None:
        await say_goodbye(order_id)  # cancelled again here: what follows is not reached
        await session.close()

    async def follow(order_id: int) -> AsyncIterator[str]:
        session = new_session()  # to blame: its clean-up is cancelled like everything else
        try:
            while True:
                yield f"{await session.scalar(select_item, {'id': order_id})}\n"
                await asyncio.sleep(0.1)
        finally:
            clean_up = end(session, order_id)
            await (asyncio.shield(clean_up) if setting.mended else clean_up)

    @app.get("/orders/{order_id}/follow")
    async def order(order_id: int) -> StreamingResponse:
        return StreamingResponse(follow(order_id))

    return app


async def traffic(users: Traffic) -> None:
    """Customers look at an order for a moment, and close the window."""
    await users.leave_after(0.25, "GET", "/orders/1/follow")
    await asyncio.sleep(0.1)


if __name__ == "__main__":
    # What was raised and the session are a cycle, which only the garbage collector frees. Many
    # services let it run seldom, as it makes them pause.
    gc.set_threshold(100_000, 50, 100)
    run(application, traffic, postgresql=True)
