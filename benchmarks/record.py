"""The record beside a plain dataclass of the same fields: create one and read three of its fields.

Prints the ratio of medians of pairs measured in turn, so that a slower machine slows both.
"""

from __future__ import annotations

import timeit
from dataclasses import dataclass, field
from datetime import datetime, timezone
from statistics import median
from typing import TYPE_CHECKING, Any

from session_metrics_otel import SessionMetrics, SessionState

if TYPE_CHECKING:
    from collections.abc import Callable

RECORDS = 1000
PAIRS = 60


@dataclass
class Plain:
    """The same fields, and nothing mirrored."""

    session_id: str = ""
    request_id: str = ""
    user_id: str = ""
    created_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    last_activity_at: datetime | None = None
    error_count: int = 0
    last_error: str | None = None
    state: SessionState = SessionState.CREATED
    query_count: int = 0
    transaction_count: int = 0
    total_time_ms: float = 0.0
    closed_at: datetime | None = None

    def __post_init__(self) -> None:
        """Let the first activity be the creation, as the record does."""
        if self.last_activity_at is None:
            self.last_activity_at = self.created_at


def work(kind: Callable[..., Any]) -> Callable[[], None]:
    """Create and read ``RECORDS`` of ``kind``; each is dropped before the next."""

    def run() -> None:
        for _ in range(RECORDS):
            record = kind("session", "request", "user")
            record.last_activity_at  # noqa: B018
            record.query_count  # noqa: B018
            record.error_count  # noqa: B018

    return run


def measure() -> dict[str, float]:
    """Milliseconds for both, and the median ratio of pairs."""
    plain, mirrored = work(Plain), work(SessionMetrics)
    pairs = [
        (
            min(timeit.repeat(plain, number=1, repeat=5)),
            min(timeit.repeat(mirrored, number=1, repeat=5)),
        )
        for _ in range(PAIRS)
    ]
    return {
        "plain_ms": 1000 * min(a for a, _ in pairs),
        "mirrored_ms": 1000 * min(b for _, b in pairs),
        "ratio": median(b / a for a, b in pairs),
    }


if __name__ == "__main__":
    found = measure()
    print(
        f"{RECORDS} records created and read: plain dataclass {found['plain_ms']:.2f} ms, "
        f"mirrored {found['mirrored_ms']:.2f} ms, ratio {found['ratio']:.2f}"
    )
