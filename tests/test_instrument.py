from __future__ import annotations

import gc
import inspect
import pickle
import subprocess
import sys
import threading
import weakref
from functools import partial

import pytest
from reading import counted, shown
from sqlalchemy import Column, Integer, MetaData, Table, create_engine, event, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool, QueuePool, StaticPool

from session_metrics_otel import SessionMetrics, instrument, metrics_for, uninstrument

ONE = text("select 1")


def footprint(engine, maker=None):
    """Everything that instrumenting touches."""
    return (
        vars(engine.dialect).get("execution_ctx_cls"),
        type(engine.pool),
        list(engine.dialect.dispatch.handle_error),
        Session.__init__,
        maker and (maker.class_, maker.class_.__init__, set(vars(maker.class_))),
        maker and dict(maker.kw),
        {name for name in vars(maker or engine) if "session_metrics" in name},
        {name for name in vars(engine.dialect) if "session_metrics" in name},
    )


class TestTargets:
    def test_a_sessionmaker_alone_is_touched(self, engine):
        mine, other = sessionmaker(engine), sessionmaker(engine)
        instrument(mine, name="mine")
        with other() as session:
            session.execute(ONE)
            with pytest.raises(LookupError):
                metrics_for(session)
        with mine() as session:
            session.execute(ONE)
        uninstrument(mine)
        assert counted("mine")["queries"] == 1

    def test_factories_of_one_engine_are_counted_apart(self, engine):
        left, right = sessionmaker(engine), sessionmaker(engine)
        instrument(left, name="left")
        instrument(right, name="right")
        for maker, times in ((left, 1), (right, 2)):
            with maker() as session:
                for _ in range(times):
                    session.execute(ONE)
        uninstrument(left)
        with right() as session:
            session.execute(ONE)
        uninstrument(right)
        assert counted("left")["queries"] == 1
        assert counted("right")["queries"] == 3

    def test_twice_changes_nothing(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="first")
        before = footprint(engine, maker)
        instrument(maker, name="second")
        instrument(scoped_session(maker), name="third")
        assert footprint(engine, maker) == before
        with maker() as session:
            session.execute(ONE)
        assert counted("first")["queries"] == 1
        uninstrument(maker)

    def test_a_session_subclass(self, engine):
        class Mine(Session):
            pass

        class Derived(Mine):
            pass

        instrument(Mine, name="mine")
        for kind in (Mine, Derived):
            with kind(engine) as session:
                assert isinstance(session, kind)
                session.execute(ONE)
        with Session(engine) as session:
            session.execute(ONE)
        uninstrument(Mine)
        with Mine(engine) as session:
            session.execute(ONE)
        assert "__init__" not in vars(Mine)
        assert not any("session_metrics" in name for name in {**vars(Mine), **vars(Derived)})
        assert counted("mine")["creations success"] == 2
        assert counted("mine")["queries"] == 2

    def test_a_session_subclass_with_a_constructor_of_its_own(self, engine):
        class Mine(Session):
            def __init__(self, engine, note):
                super().__init__(engine)
                self.note = note

        own = Mine.__init__
        instrument(Mine, name="mine")
        with Mine(engine, note="kept") as session:
            assert session.note == "kept"
            session.execute(ONE)
        uninstrument(Mine)
        assert Mine.__init__ is own
        assert counted("mine")["queries"] == 1

    def test_a_session_subclass_with_a_close_of_its_own(self, engine):
        class Mine(Session):
            def close(self, *, commit=False):
                if commit:
                    self.commit()
                else:
                    self.rollback()
                super().close()
                return "closed"

        instrument(Mine, name="mine")
        session = Mine(engine)
        session.execute(ONE)
        assert session.close(commit=True) == session.close() == "closed"
        with Mine(engine) as session:
            session.execute(ONE)
        uninstrument(Mine)
        assert counted("mine")["transactions committed"] == 1
        assert counted("mine")["transactions rolled_back"] == 1
        assert counted("mine")["state_transitions active closing"] == 2
        assert counted("mine")["state_transitions closing closed"] == 2

    def test_every_session_there_is(self, engine):
        maker = sessionmaker(engine)
        instrument(Session, name="all")
        with maker() as session:
            session.execute(ONE)
        with Session(engine) as session:
            session.execute(ONE)
        uninstrument(Session)
        with Session(engine) as session:
            session.execute(ONE)
        assert counted("all")["queries"] == 2

    def test_a_maker_comes_before_its_class(self, engine):
        maker = sessionmaker(engine)
        instrument(Session, name="all")
        instrument(maker, name="maker")
        with maker() as session:
            session.execute(ONE)
        uninstrument(maker)
        uninstrument(Session)
        assert counted("maker")["queries"] == 1
        assert counted("all") == {}

    @pytest.mark.parametrize(
        "wrong",
        [None, "engine", object(), Session(), int, len],
        ids=["None", "text", "object", "Session", "int", "function"],
    )
    def test_a_wrong_target_says_what_is_taken(self, wrong):
        with pytest.raises(TypeError, match="give a sessionmaker, async_sessionmaker"):
            instrument(wrong)
        with pytest.raises(TypeError, match="give a sessionmaker, async_sessionmaker"):
            uninstrument(wrong)

    def test_a_scoped_session_of_a_plain_callable_is_a_wrong_target(self, engine):
        with pytest.raises(TypeError, match="Cannot instrument"):
            instrument(scoped_session(lambda: Session(engine)))

    @pytest.mark.parametrize(
        ("option", "wrong"), [("spans", "none"), ("spans", None), ("user_id", "yes")]
    )
    def test_a_wrong_option_says_what_is_taken(self, engine, option, wrong):
        with pytest.raises(ValueError, match=f"{option}={wrong!r} is not taken; give one of"):
            instrument(sessionmaker(engine), **{option: wrong})


class TestEngineAlone:
    def test_counts_sessions_from_their_first_use(self, engine):
        instrument(engine, name="engine")
        with Session(engine) as session:
            with pytest.raises(LookupError, match="first statement"):
                metrics_for(session)
            session.execute(ONE)
            assert metrics_for(session).query_count == 1
            session.commit()
        with Session(engine):
            pass  # never used it
        uninstrument(engine)
        found = counted("engine")
        assert found["creations success"] == 1
        assert found["transactions committed"] == 1
        assert found["duration_seconds_count"] == 1
        assert "creations unused" not in found

    def test_two_engines_keep_their_names(self, new_engine):
        left, right = new_engine(), new_engine()
        instrument(left, name="left")
        instrument(right, name="right")
        for engine in (left, right, right):
            with Session(engine) as session:
                session.execute(ONE)
        uninstrument(left)
        for engine in (left, right):
            with Session(engine) as session:
                session.execute(ONE)
        uninstrument(right)
        assert counted("left")["queries"] == 1
        assert counted("right")["queries"] == 3

    def test_other_engines_sessions_are_let_be(self, engine, new_engine):
        other = new_engine()
        instrument(engine, name="engine")
        with Session(other) as session:
            session.execute(ONE)
            with pytest.raises(LookupError):
                metrics_for(session)
        uninstrument(engine)

    def test_a_refused_connection_is_its_failure(self, tmp_path, new_engine):
        engine = new_engine(f"sqlite:///{tmp_path}/no/such/db")
        instrument(engine, name="engine")
        with Session(engine) as session, pytest.raises(Exception, match="unable to open"):
            session.execute(ONE)
        uninstrument(engine)
        assert counted("engine")["creations failure OperationalError"] == 1

    def test_core_statements_are_no_sessions(self, engine):
        instrument(engine, name="engine")
        with engine.connect() as connection:
            connection.execute(ONE)
        uninstrument(engine)
        assert counted("engine") == {}

    def test_an_async_engine(self):
        import asyncio

        engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
        instrument(engine, name="async")

        async def work():
            async with AsyncSession(engine) as session:
                await session.execute(ONE)
            await engine.dispose()

        asyncio.run(work())
        uninstrument(engine)
        assert counted("async")["queries"] == 1


def test_a_session_class_keeps_the_parameters_of_its_constructor():
    class Mine(Session):
        pass

    before = inspect.signature(Mine)
    instrument(Mine)
    assert inspect.signature(Mine) == before
    uninstrument(Mine)


class TestUninstrument:
    def test_puts_everything_back(self, new_engine):
        engine = new_engine(poolclass=QueuePool)
        maker = sessionmaker(engine)
        before = footprint(engine, maker)
        for target in (maker, engine):
            instrument(target)
            assert footprint(engine, maker) != before
            uninstrument(target)
            assert footprint(engine, maker) == before

    def test_does_not_wait_for_the_sessions_of_another_of_that_name(self, engine, new_engine):
        maker, other = sessionmaker(engine), sessionmaker(new_engine())
        before = footprint(engine, maker)
        by_hand = SessionMetrics(factory="shared", state="active")
        instrument(maker, name="shared")
        instrument(other, name="shared")
        with other() as others, maker() as session:
            others.execute(ONE)
            session.execute(ONE)
            uninstrument(maker)
            assert footprint(engine, maker) != before
            session.close()
            assert footprint(engine, maker) == before
            others.execute(ONE)
            assert metrics_for(others).query_count == 2
        uninstrument(other)
        by_hand.close()

    def test_leaves_what_somebody_else_has_wrapped_around_it_at_work(self, new_engine):
        engine = new_engine(poolclass=NullPool)
        instrument(engine)
        ours = engine.dialect.connect
        engine.dialect.connect = partial(ours)
        uninstrument(engine)
        with engine.connect() as connection:
            assert connection.scalar(ONE) == 1

    def test_puts_an_async_maker_back(self):
        engine = create_async_engine("sqlite+aiosqlite://")
        maker = async_sessionmaker(engine)
        before = dict(maker.kw)
        instrument(async_scoped_session(maker, scopefunc=lambda: 1))
        assert maker.kw != before
        assert AsyncSession.sync_session_class is Session
        uninstrument(maker)
        assert maker.kw == before
        assert maker.class_.sync_session_class is Session

    def test_leaves_what_an_async_maker_was_configured_with_meanwhile(self):
        maker = async_sessionmaker(create_async_engine("sqlite+aiosqlite://"))
        instrument(maker)
        maker.configure(sync_session_class=Session)
        uninstrument(maker)
        assert maker.kw["sync_session_class"] is Session

    def test_of_what_never_was_changes_nothing(self, engine):
        maker = sessionmaker(engine)
        before = footprint(engine, maker)
        uninstrument(maker)
        assert footprint(engine, maker) == before

    def test_an_open_session_is_counted_to_its_end(self, engine):
        maker = sessionmaker(engine)
        before = footprint(engine, maker)
        instrument(maker, name="late")
        session = maker()
        session.execute(ONE)
        uninstrument(maker)
        with maker() as unwatched:
            unwatched.execute(ONE)
        session.execute(ONE)
        session.commit()
        session.close()
        found = counted("late")
        assert found["queries"] == 2
        assert found["transactions committed"] == 1
        assert found["duration_seconds_count"] == 1
        assert footprint(engine, maker) == before

    def test_in_mid_flight_under_threads(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="flight")
        watched = []
        lock = threading.Lock()
        begin = threading.Barrier(9)

        def work():
            begin.wait()
            for _ in range(100):
                session = maker()
                with lock:
                    session.execute(ONE)
                    session.close()
                if hasattr(session, "_session_observer"):
                    watched.append(1)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        begin.wait()
        uninstrument(maker)
        for thread in threads:
            thread.join()
        found = counted("flight")
        assert found.get("creations success", 0) == len(watched)
        assert found.get("queries", 0) == len(watched)
        assert not [key for key in found if key.startswith("sqlalchemy_sessions")]

    def test_again_after_it(self, engine):
        maker = sessionmaker(engine)
        for _ in range(3):
            instrument(maker, name="again")
            with maker() as session:
                session.execute(ONE)
            uninstrument(maker)
        assert counted("again")["queries"] == 3


class TestListeners:
    """What an application listens for, it hears: before, meanwhile, and afterwards."""

    def test_of_a_sessionmaker(self, engine):
        maker = sessionmaker(engine)
        heard = []

        def before(_session):
            heard.append("before")

        def meanwhile(_session):
            heard.append("meanwhile")

        def use():
            with maker() as session:
                session.execute(ONE)
                session.commit()

        event.listen(maker, "after_commit", before)
        instrument(maker, name="heard")
        event.listen(maker, "after_commit", meanwhile)
        use()
        assert heard == ["before", "meanwhile"]
        uninstrument(maker)
        use()
        assert heard == ["before", "meanwhile"] * 2
        event.remove(maker, "after_commit", before)
        event.remove(maker, "after_commit", meanwhile)
        use()
        assert heard == ["before", "meanwhile"] * 2

    @pytest.mark.parametrize("of_every_session", [False, True])
    def test_one_that_was_there_before_sends_statements_of_the_session(
        self, engine, of_every_session
    ):
        maker = sessionmaker(engine)
        target = Session if of_every_session else maker

        def set_tenant(_session, _transaction, connection):
            connection.execute(ONE)

        event.listen(target, "after_begin", set_tenant)
        instrument(maker, name="heard")
        with maker() as session:
            session.execute(ONE)
            assert metrics_for(session).query_count == 2
        event.remove(target, "after_begin", set_tenant)
        uninstrument(maker)
        assert counted("heard")["queries"] == 2

    def test_one_that_was_there_before_and_raises_hides_no_commit(self, engine):
        maker = sessionmaker(engine)

        def publish(_session):
            raise RuntimeError("no broker")

        event.listen(maker, "after_commit", publish)
        instrument(maker, name="heard")
        with maker() as session:
            session.execute(ONE)
            with pytest.raises(RuntimeError, match="no broker"):
                session.commit()
        uninstrument(maker)
        assert counted("heard")["transactions committed"] == 1
        assert "transactions closed" not in counted("heard")

    def test_of_one_session(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="heard")
        heard = []
        with maker() as session:
            event.listen(session, "after_commit", lambda _session: heard.append("commit"))
            session.execute(ONE)
            session.commit()
        assert heard == ["commit"]
        assert counted("heard")["transactions committed"] == 1
        uninstrument(maker)

    def test_of_every_session(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="heard")
        heard = []

        def commit(_session):
            heard.append("commit")

        event.listen(Session, "after_commit", commit)
        with maker() as session:
            session.execute(ONE)
            session.commit()
        event.remove(Session, "after_commit", commit)
        uninstrument(maker)
        assert heard == ["commit"]


class TestEngines:
    def test_one_configured_later_is_found(self, engine):
        maker = sessionmaker()
        instrument(maker, name="later")
        maker.configure(bind=engine)
        with maker() as session:
            session.execute(ONE)
        uninstrument(maker)
        assert counted("later")["queries"] == 1

    def test_one_instrumented_alone_counts_a_session_that_chooses_it_by_get_bind(self, engine):
        class Routing(Session):
            def get_bind(self, *_args, **_kwargs):
                return engine

        instrument(engine, name="alone")
        for make in (Routing, sessionmaker(class_=Routing)):
            with make() as session:
                session.execute(ONE)
                assert metrics_for(session).query_count == 1
        uninstrument(engine)
        assert counted("alone")["creations success"] == 2

    def test_one_chosen_by_get_bind_is_found_even_where_it_refuses(
        self, engine, new_engine, tmp_path
    ):
        broken = new_engine(f"sqlite:///{tmp_path}/no/such/db")

        class Routing(Session):
            def get_bind(self, *args, **kwargs):
                return self.info["engine"]

        maker = sessionmaker(class_=Routing)
        instrument(maker, name="routing")
        with maker(info={"engine": engine}) as session:
            session.execute(ONE)
        with maker(info={"engine": broken}) as session, pytest.raises(Exception, match="open"):
            session.execute(ONE)
        uninstrument(maker)
        assert counted("routing")["creations success"] == 1
        assert counted("routing")["creations failure OperationalError"] == 1
        assert counted("routing")["queries"] == 1

    def test_those_that_a_session_alone_is_bound_to_are_found_before_it_uses_them(
        self, engine, new_engine, tmp_path
    ):
        broken = new_engine(f"sqlite:///{tmp_path}/no/such/db")
        maker = sessionmaker()
        instrument(maker, name="binds")
        table = Table("items", MetaData(), Column("id", Integer))
        with maker(binds={table: engine}) as session:
            table.create(session.connection(bind_arguments={"clause": table}))
        with maker() as session, pytest.raises(Exception, match="open"):
            session.bind_table(table, broken)
            session.execute(select(table))
        uninstrument(maker)
        assert counted("binds")["creations success"] == 1
        assert counted("binds")["creations failure OperationalError"] == 1
        assert shown()["use_time_seconds_count"] == 1

    def test_execution_options_share_what_was_done(self, engine):
        maker = sessionmaker(engine.execution_options(isolation_level="SERIALIZABLE"))
        instrument(maker, name="options")
        with maker() as session:
            session.execute(ONE)
        uninstrument(maker)
        assert counted("options")["queries"] == 1

    def test_what_execution_options_made_is_given_back_in_any_order(self, engine):
        before = footprint(engine)
        clone = engine.execution_options(isolation_level="SERIALIZABLE")
        again = clone.execution_options(schema_translate_map={"a": None})
        makers = {"clone": sessionmaker(clone), "engine": sessionmaker(engine)}
        for name, maker in makers.items():
            instrument(maker, name=name)
            with maker(bind=again) as session, pytest.raises(OperationalError):
                session.execute(text("select * from nowhere"))
        for maker in makers.values():
            uninstrument(maker)
        assert [counted(name)["errors OperationalError"] for name in makers] == [1, 1]
        assert footprint(engine) == before

    def test_the_pool_after_dispose_is_watched_too(self, tmp_path, new_engine):
        engine = new_engine(f"sqlite:///{tmp_path}/no/such/db")
        maker = sessionmaker(engine)
        instrument(maker, name="disposed")
        engine.dispose()
        with maker() as session, pytest.raises(Exception, match="unable to open"):
            session.execute(ONE)
        uninstrument(maker)
        assert counted("disposed")["creations failure OperationalError"] == 1

    def test_a_context_class_of_ones_own_is_kept(self, engine):
        class Mine(engine.dialect.execution_ctx_cls):
            calls = 0

            def pre_exec(self):
                type(self).calls += 1
                super().pre_exec()

        engine.dialect.execution_ctx_cls = Mine
        maker = sessionmaker(engine)
        instrument(maker)
        with maker() as session:
            session.execute(ONE)
        uninstrument(maker)
        assert Mine.calls == 0 or engine.dialect.execution_ctx_cls is Mine
        assert engine.dialect.execution_ctx_cls is Mine


class TestMemory:
    def test_makers_and_engines_that_are_gone_are_gone(self):
        def make():
            engine = create_engine("sqlite://", poolclass=StaticPool)
            maker = sessionmaker(engine)
            instrument(maker, name="short")
            instrument(engine, name="short")
            with maker() as session:
                session.execute(ONE)
            engine.dispose()
            return weakref.ref(maker), weakref.ref(engine)

        references = make()
        gc.collect()
        assert [reference() for reference in references] == [None, None]

    def test_a_sessionmaker_for_each_request_leaves_nothing(self, engine):
        instrument(engine, name="careless")
        classes = []
        for _ in range(3):
            maker = sessionmaker(engine)
            classes.append(weakref.ref(maker.class_))
            with maker() as session:
                session.execute(ONE)
        del maker, session
        gc.collect()
        assert [reference() for reference in classes] == [None] * 3
        assert counted("careless")["queries"] == 3
        uninstrument(engine)

    def test_a_finished_session_leaves_nothing(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="tidy")
        with maker() as session:
            session.execute(ONE)
            record = weakref.ref(metrics_for(session))
        del session
        gc.collect()
        assert record() is None
        uninstrument(maker)


class TestMetricsFor:
    def test_says_what_to_do_where_there_is_no_record(self, engine):
        with pytest.raises(LookupError, match=r"instrument\(\) its sessionmaker"):
            metrics_for(Session(engine))

    def test_takes_sessions_alone(self, engine):
        with pytest.raises(TypeError, match="takes a Session, AsyncSession or scoped session"):
            metrics_for(engine)

    def test_a_record_can_be_pickled_with_its_session_open(self, engine):
        maker = sessionmaker(engine)
        instrument(maker, name="pickled")
        with maker() as session:
            session.execute(ONE)
            twin = pickle.loads(pickle.dumps(metrics_for(session)))
        assert twin.query_count == 1
        uninstrument(maker)


def test_works_where_greenlet_is_missing():
    """SQLAlchemy's asyncio extension needs it; an application without asyncio need not have it."""
    program = """
import sys
sys.modules["greenlet"] = None
from sqlalchemy import create_engine, event, text
from sqlalchemy.orm import scoped_session, sessionmaker
from session_metrics_otel import instrument, metrics_for, uninstrument
engine = create_engine("sqlite://")
for target in (sessionmaker(engine), scoped_session(sessionmaker(engine))):
    instrument(target)
    with target() as session:
        session.execute(text("select 1"))
        print(metrics_for(session).query_count)
    uninstrument(target)
instrument(engine)
try:
    instrument(42)
except TypeError as refusal:
    print(refusal)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith("1\n1\nCannot instrument 42: give a sessionmaker")
