"""The session classes of other packages, instrumented like SQLAlchemy's own."""

from __future__ import annotations

import pytest
from reading import changes, counted
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Mapped, mapped_column, sessionmaker
from sqlalchemy.pool import StaticPool

from session_metrics_otel import bind, instrument, metrics_for, uninstrument

ONE_COMMITTED = {
    "creations success": 1,
    "creation_duration_seconds_count": 1,
    "duration_seconds_count": 1,
    "queries_per_session_count": 1,
    "peak": 1,
    "queries": 1,
    "transactions committed": 1,
    "transaction_duration_seconds_count committed": 1,
    **changes("created", "active", "committed", "closing", "closed"),
}


def taken_here(engine):
    """Whether the one connection that is out is said to have been taken in this file."""
    (holder,) = engine.pool.holders.values()
    return holder.describe()["taken_at"].startswith(f"{__file__}:")


def test_sqlmodel(engine):
    sqlmodel = pytest.importorskip("sqlmodel")
    maker = sessionmaker(engine, class_=sqlmodel.Session)
    instrument(maker, name="sqlmodel")
    with bind(request_id="r"), maker() as session:
        assert session.exec(select(text("1"))).one() == (1,)
        assert metrics_for(session).request_id == "r"
        assert taken_here(engine)
        session.commit()
    uninstrument(maker)
    assert counted("sqlmodel") == ONE_COMMITTED


def test_sqlmodels_class_itself(engine):
    sqlmodel = pytest.importorskip("sqlmodel")
    instrument(sqlmodel.Session, name="sqlmodel")
    with sqlmodel.Session(engine) as session:
        session.exec(select(text("1")))
        session.commit()
    uninstrument(sqlmodel.Session)
    assert counted("sqlmodel") == ONE_COMMITTED


def test_flask_sqlalchemy():
    flask = pytest.importorskip("flask")
    flask_sqlalchemy = pytest.importorskip("flask_sqlalchemy")
    app = flask.Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    db = flask_sqlalchemy.SQLAlchemy(app)
    instrument(db.session, name="flask")

    @app.route("/")
    def index():
        found = db.one_or_404(select(text("1")))
        assert taken_here(db.engine)
        db.session.commit()
        return str(found)

    assert app.test_client().get("/").text == "1"
    uninstrument(db.session)
    with app.app_context():
        db.engine.dispose()
    assert counted("flask") == ONE_COMMITTED


async def test_advanced_alchemy():
    pytest.importorskip("advanced_alchemy")
    from advanced_alchemy.base import DefaultBase
    from advanced_alchemy.config import AsyncSessionConfig, SQLAlchemyAsyncConfig
    from advanced_alchemy.repository import SQLAlchemyAsyncRepository

    class Order(DefaultBase):
        __tablename__ = "advanced_orders"
        id: Mapped[int] = mapped_column(primary_key=True)

    class Orders(SQLAlchemyAsyncRepository[Order]):
        model_type = Order

    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(Order.__table__.create)
    config = SQLAlchemyAsyncConfig(
        engine_instance=engine, session_config=AsyncSessionConfig(expire_on_commit=False)
    )
    maker = config.create_session_maker()
    instrument(maker, name="advanced")
    async with maker() as session:
        assert await Orders(session=session).get_many() == []
        assert taken_here(engine.sync_engine)
        await session.commit()
    uninstrument(maker)
    await engine.dispose()
    assert counted("advanced") == ONE_COMMITTED
