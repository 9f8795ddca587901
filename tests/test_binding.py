from __future__ import annotations

import asyncio
import contextvars
import threading

from session_metrics_otel import bind
from session_metrics_otel.binding import NOTHING_BOUND, current_binding


def test_blocks_nest_and_end():
    with bind(request_id="r", user_id="u", route="/orders") as outer:
        assert outer == ("r", "u", "/orders")
        with bind(route="/orders/{id}") as inner:
            assert inner == ("r", "u", "/orders/{id}")
        assert current_binding.get() == outer
    assert current_binding.get() is NOTHING_BOUND


def test_anything_is_made_text():
    with bind(request_id=7) as bound:
        assert bound.request_id == "7"


def test_other_threads_see_nothing_and_tasks_started_inside_do():
    seen = []

    async def task():
        seen.append(current_binding.get().request_id)

    async def main():
        with bind(request_id="r"):
            work = asyncio.create_task(task())
        await work

    asyncio.run(main())
    with bind(request_id="r"):
        thread = threading.Thread(target=lambda: seen.append(current_binding.get().request_id))
        thread.start()
        thread.join()
    assert seen == ["r", ""]


def test_a_block_that_ends_in_another_context_ends_in_peace():
    """As a generator does that a framework finishes elsewhere."""
    block = bind(request_id="r")
    contextvars.copy_context().run(block.__enter__)
    block.__exit__(None, None, None)
    assert current_binding.get() is NOTHING_BOUND
