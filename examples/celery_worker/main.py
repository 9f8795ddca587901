"""A Celery worker whose tasks are bound as requests are: python examples/celery_worker/main.py.

The worker runs in this process with a broker in memory, so that one command shows it all. In an
application, ``BoundTask`` and ``task_cls`` are all that it takes.
"""

from __future__ import annotations

from typing import Any

from celery import Celery, Task
from celery.contrib.testing.worker import start_worker
from prometheus_client import generate_latest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool import StaticPool

from session_metrics_otel import bind, instrument, metrics_for

engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
Session = sessionmaker(engine)
instrument(Session, name="tasks")


class BoundTask(Task):  # type: ignore[misc]
    """The task's id is the request's, and its name is the route."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with bind(request_id=self.request.id, route=self.name):
            return super().__call__(*args, **kwargs)


app = Celery("shop", broker="memory://", backend="cache+memory://", task_cls=BoundTask)


@app.task(name="shop.count_orders")  # type: ignore[untyped-decorator]
def count_orders() -> str:
    with Session() as session:
        session.execute(text("select 1"))
        session.commit()
        record = metrics_for(session)
        return f"{record.request_id} {record.route} {record.state.value}"


with start_worker(app, pool="solo", perform_ping_check=False):
    print(count_orders.apply_async(task_id="task-1").get(timeout=30))
engine.dispose()

for line in generate_latest().decode().splitlines():
    if line.startswith("sqlalchemy_session_transactions_total"):
        print(line)
