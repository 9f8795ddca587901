from __future__ import annotations

import math

import pytest
from threads import THREADS, in_threads

from session_metrics_otel.series import PENDING_LIMIT, Bounded, Exemplar, Histogram, Tally


class TestTally:
    def test_reading_takes_nothing(self):
        tally = Tally()
        for _ in range(3):
            tally.hit()
        assert [tally.read(), tally.read(), tally.read()] == [3, 3, 3]
        tally.hit()
        assert tally.read() == 4

    def test_adding_more_than_one(self):
        tally = Tally()
        tally.add(1)
        tally.add(10)
        tally.add(0)
        tally.add(-5)
        assert tally.read() == 11

    @pytest.mark.usefixtures("eager_switching")
    def test_is_exact_under_threads_that_count_and_read(self):
        tally = Tally()
        seen = []

        def work():
            for n in range(3000):
                tally.hit()
                if n % 100 == 0:
                    seen.append(tally.read())

        in_threads(work)
        assert tally.read() == THREADS * 3000
        assert max(seen) <= THREADS * 3000


class TestHistogram:
    def test_bounds_are_inclusive(self):
        histogram = Histogram((1.0, 5.0))
        for number in (0.5, 1.0, 1.1, 5.0, 5.1):
            histogram.observe(number)
        counts, total, _ = histogram.read()
        assert counts == [2, 2, 1]
        assert total == pytest.approx(12.7)

    def test_what_is_not_a_number_is_no_measurement(self):
        histogram = Histogram((1.0, 5.0))
        for number in (math.nan, 2.0, math.nan, math.inf):
            histogram.observe(number)
        assert histogram.read()[:2] == ([0, 1, 1], math.inf)

    @pytest.mark.parametrize("observed", [PENDING_LIMIT - 1, PENDING_LIMIT + 1, 5 * PENDING_LIMIT])
    def test_nothing_is_lost_when_it_is_folded(self, observed):
        histogram = Histogram((1.0,))
        for _ in range(observed):
            histogram.observe(0.5)
        assert histogram.read() == ([observed, 0], observed * 0.5, {})

    def test_nothing_waits_without_end(self):
        histogram = Histogram((1.0,))
        for _ in range(10 * PENDING_LIMIT):
            histogram.observe(0.5)
        assert len(histogram.pending) <= PENDING_LIMIT

    @pytest.mark.usefixtures("eager_switching")
    def test_is_exact_under_threads_that_observe_and_read(self):
        histogram = Histogram((1.0, 2.0))

        def work():
            for n in range(1500):
                histogram.observe(n % 3 + 0.5)
                if n % 200 == 0:
                    histogram.read()

        in_threads(work)
        assert histogram.read() == ([THREADS * 500] * 3, THREADS * 500 * 4.5, {})

    def test_keeps_the_newest_exemplar_of_each_bucket(self):
        histogram = Histogram((1.0,))
        old, new, above = (
            Exemplar(number, trace, 1, 0.0) for number, trace in ((0.5, 1), (0.7, 2), (3, 3))
        )
        for exemplar in (old, new, above):
            histogram.exemplify(exemplar)
        assert histogram.read().exemplars == {0: new, 1: above}


class TestBounded:
    def test_the_first_names_are_kept_and_later_ones_are_other(self):
        names = Bounded(2, "_OTHER")
        assert [names.admit(name) for name in "abcabd"] == ["a", "b", "_OTHER", "a", "b", "_OTHER"]
        names.forget()
        assert names.admit("c") == "c"

    @pytest.mark.usefixtures("eager_switching")
    def test_no_more_are_kept_where_threads_bring_them_at_once(self):
        names, kept = Bounded(50, -1), set()

        def work():
            for n in range(200):
                kept.add(names.admit(n))

        in_threads(work)
        assert len(kept) == 51
