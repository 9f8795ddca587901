"""An application that knows nothing of us: FastAPI, async sessions, an engine made on import."""

import asyncio
import sys
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client import generate_latest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine(sys.argv[1])
Session = async_sessionmaker(engine)


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@asynccontextmanager
async def lifespan(app):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/orders")
async def order():
    async with Session() as session:
        session.add(Order())
        await session.commit()
        await asyncio.sleep(0)
        return len((await session.scalars(select(Order))).all())


with TestClient(app) as client:
    assert [client.post("/orders").json() for _ in range(3)] == [1, 2, 3]
sys.stderr.write(generate_latest().decode())
