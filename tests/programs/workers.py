"""An application for server workers: WSGI, ASGI and Celery.

A request to /work makes three sessions, and is answered with what they should have counted; the
worker's process id is in the header X-Worker. /hold keeps a session open.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time

from celery import Celery
from celery.signals import worker_process_init
from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.multiprocess import MultiProcessCollector
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import AsyncAdaptedQueuePool
from workload import ONE, Sessions, Tasks, new_database

from session_metrics_otel import instrument
from session_metrics_otel.ledger import LEDGER

engine = new_database(max_overflow=-1)
maker = sessionmaker(engine)
instrument(maker, name="orders")
if "SESSION_ON_IMPORT" in os.environ:  # as an application does that reads its settings there
    with maker() as session:
        session.execute(ONE)

async_engine = create_async_engine("sqlite+aiosqlite://", poolclass=AsyncAdaptedQueuePool)
async_maker = async_sessionmaker(async_engine)
instrument(async_maker, name="orders")

registry = CollectorRegistry()
MultiProcessCollector(registry)
metrics = make_wsgi_app(registry)
held = []


def work(number: int) -> dict[str, int]:
    sessions = Sessions(maker, number)
    sessions.run(3)
    for _ in range(100):
        gc.collect()  # does nothing where another thread is at it
        if len(LEDGER.factory("orders").live) == len(held):
            break
        time.sleep(0.01)
    return sessions.books


def wsgi(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    if path == "/metrics":
        return metrics(environ, start_response)
    if path == "/hold":
        session = maker()
        session.execute(ONE)
        held.append(session)
        books = {}
    else:
        books = work(int(query)) if path == "/work" else {}
    start_response("200 OK", [
        ("Content-Type", "application/json"), ("X-Worker", str(os.getpid())),
    ])  # fmt: skip
    return [json.dumps(books).encode()]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown":
                return
    tasks = Tasks(async_maker, int(scope["query_string"] or 0))
    if scope["path"] == "/work":
        await tasks.run_tasks(3, at_once=3)
    await send({
        "type": "http.response.start",
        "status": 200,
        "headers": [(b"x-worker", str(os.getpid()).encode())],
    })  # fmt: skip
    await send({"type": "http.response.body", "body": json.dumps(tasks.books).encode()})


folder = os.environ.get("CELERY_FOLDER", tempfile.gettempdir())
celery = Celery(
    "workers", broker="filesystem://", backend=f"file://{folder}/results", set_as_current=False
)
celery.conf.update(
    broker_transport_options={
        "data_folder_in": f"{folder}/queue",
        "data_folder_out": f"{folder}/queue",
        "control_folder": f"{folder}/control",
    },
    worker_hijack_root_logger=False,
    broker_connection_retry_on_startup=True,
)


@celery.task(name="work")
def work_task(number: int) -> dict[str, int]:
    return dict(work(number))


@worker_process_init.connect
def _child(**_: object) -> None:
    engine.dispose(close=False)  # as SQLAlchemy advises after a fork
