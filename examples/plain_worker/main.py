"""A worker that takes jobs from a queue in threads: python examples/plain_worker/main.py.

Each job is bound as a request is: its id is the request's, its kind is the route.
"""

from __future__ import annotations

from queue import Queue
from tempfile import TemporaryDirectory
from threading import Thread

from prometheus_client import generate_latest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from session_metrics_otel import bind, instrument, metrics_for

jobs: Queue[tuple[str, str] | None] = Queue()
done: Queue[str] = Queue()


def work(Session: sessionmaker) -> None:  # type: ignore[type-arg]  # noqa: N803
    while (job := jobs.get()) is not None:
        job_id, kind = job
        with bind(request_id=job_id, route=kind), Session() as session:
            session.execute(text("insert into mail values (:job)"), {"job": job_id})
            session.commit()
            record = metrics_for(session)
            done.put(f"{record.request_id} {record.route} {record.state.value}")


with TemporaryDirectory() as folder:
    engine = create_engine(f"sqlite:///{folder}/worker.sqlite", connect_args={"timeout": 30})
    with engine.begin() as connection:
        connection.execute(text("create table mail (job text)"))
    Session = sessionmaker(engine)
    instrument(Session, name="worker")
    threads = [Thread(target=work, args=(Session,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(4):
        jobs.put((f"job-{number}", "send_mail"))
    for _ in threads:
        jobs.put(None)
    for thread in threads:
        thread.join()
    engine.dispose()

print(*sorted(done.queue), sep="\n")
for line in generate_latest().decode().splitlines():
    if line.startswith("sqlalchemy_session_transactions_total"):
        print(line)
