"""Records driven through any order of events, with every family held against a model."""

from __future__ import annotations

import copy
import dataclasses
import gc
import pickle
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from reading import counted

from session_metrics_otel import SessionMetrics, SessionState
from session_metrics_otel.ledger import LEDGER

FACTORIES = ("left", "right")
WORKING = {"active", "idle", "committed", "rolled_back"}
ENDING = {"closing", "closed"}
OPEN_STATES = [state for state in SessionState if state is not SessionState.CLOSED]


class Model:
    """What one record and its factory should say; written the plain way."""

    def __init__(self, factory: str, books: Counter[str], still_open: Counter[str]) -> None:
        self.factory = factory
        self.books = books
        self.open = still_open
        self.state = "created"
        self.queries = self.transactions = self.errors = 0
        self.worked = False
        self.open["created"] += 1
        self.books["peak"] = max(self.books["peak"], self.open.total())

    def move(self, target: str, error_type: str = "_OTHER") -> None:
        if target == self.state:
            return
        if self.state == "created":
            if target == "error":
                self.books[f"creations failure {error_type}"] += 1
            elif target in WORKING or self.worked:
                self.books["creations success"] += 1
            else:
                self.books["creations unused"] += 1
            if target in WORKING:
                self.books["creation_duration_seconds_count"] += 1
        self.books[f"state_transitions {self.state} {target}"] += 1
        if self.state != "closed":
            self.open[self.state] -= 1
        if target != "closed":
            self.open[target] += 1
        self.state = target
        if target == "created":
            self.worked = False
            self.work()

    def work(self) -> None:
        """While it is still ``created``, having run something makes its close a success."""
        if self.state == "created" and (self.queries > 0 or self.transactions > 0):
            self.worked = True

    def close(self) -> None:
        if self.state != "closed":
            self.books["duration_seconds_count"] += 1
            self.books["queries_per_session_count"] += 1
            self.move("closed")

    def collect(self) -> None:
        if self.state in {"active", "idle", "error"}:
            self.books["leaks garbage_collected"] += 1
        self.move("closed")


class Records(RuleBasedStateMachine):
    records = Bundle("records")

    def __init__(self) -> None:
        super().__init__()
        self.books: dict[str, Counter[str]] = {name: Counter() for name in FACTORIES}
        self.open: dict[str, Counter[str]] = {name: Counter() for name in FACTORIES}

    @rule(target=records, factory=st.sampled_from(FACTORIES))
    def construct(self, factory):
        model = Model(factory, self.books[factory], self.open[factory])
        return [SessionMetrics("s", "r", "u", factory=factory), model]

    @rule(pair=records, state=st.sampled_from(OPEN_STATES))
    def assign_state(self, pair, state):
        record, model = pair
        record.state = state
        model.move(state.value)

    @rule(pair=records, n=st.integers(-3, 5))
    def assign_query_count(self, pair, n):
        record, model = pair
        record.query_count += n
        model.queries += n
        model.work()
        model.books["queries"] += max(n, 0)

    @rule(pair=records, n=st.integers(0, 3))
    def increment_query_count(self, pair, n):
        record, model = pair
        record.increment_query_count(n)
        model.queries += n
        model.work()
        model.books["queries"] += n

    @rule(pair=records, n=st.integers(-2, 3))
    def assign_transaction_count(self, pair, n):
        record, model = pair
        record.transaction_count += n
        model.transactions += n
        model.work()
        model.books["transactions unspecified"] += max(n, 0)

    @rule(pair=records, outcome=st.sampled_from(["committed", "rolled_back", "closed"]))
    def increment_transaction_count(self, pair, outcome):
        record, model = pair
        record.increment_transaction_count(outcome=outcome)
        model.transactions += 1
        model.work()
        model.books[f"transactions {outcome}"] += 1

    @rule(pair=records, n=st.integers(-2, 3))
    def assign_error_count(self, pair, n):
        record, model = pair
        record.error_count += n
        model.errors += n
        model.books["errors _OTHER"] += max(n, 0)

    @rule(pair=records, error=st.sampled_from(["text", OSError("x"), KeyError("y")]))
    def record_error(self, pair, error):
        record, model = pair
        record.record_error(error)
        kind = type(error).__name__ if isinstance(error, Exception) else "_OTHER"
        model.errors += 1
        model.books[f"errors {kind}"] += 1
        if model.state != "closed":
            model.move("error", kind)

    @rule(pair=records, how=st.sampled_from(["close", "close_session", "assign"]))
    def close(self, pair, how):
        record, model = pair
        if how == "assign":
            record.state = SessionState.CLOSED
        else:
            getattr(record, how)()
        model.close()

    @rule(pair=records)
    def copy_and_use_the_copy(self, pair):
        record, _ = pair
        for twin in (copy.copy(record), copy.deepcopy(record), pickle.loads(pickle.dumps(record))):
            assert twin == record
            twin.query_count += 1
            twin.record_error(ValueError())
            twin.close()
        dataclasses.asdict(record)

    @rule(pair=consumes(records))
    def collect(self, pair):
        model = pair.pop()
        pair.clear()  # which was the last to hold the record
        model.collect()

    @rule(pair=records)
    def fields_hold_what_was_done(self, pair):
        record, model = pair
        assert record.state == model.state
        assert record.query_count == model.queries
        assert record.transaction_count == model.transactions
        assert record.error_count == model.errors

    @invariant()
    def every_family_says_what_the_model_says(self):
        for name in FACTORIES:
            expected = Counter(self.books[name])
            for state, n in self.open[name].items():
                expected[f"sqlalchemy_sessions {state}"] = n
            assert counted(name) == {key: n for key, n in expected.items() if n}

    def teardown(self):
        gc.collect()
        LEDGER.forget()
        for name in FACTORIES:
            LEDGER._factories.pop(name, None)
            for metric, labels in list(LEDGER._series):
                if labels[0] == name:
                    del LEDGER._series[metric, labels]


TestRecords = Records.TestCase
TestRecords.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
