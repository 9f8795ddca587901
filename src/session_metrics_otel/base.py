"""What every kind of session record has: its age, its activity, its errors."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone


def seconds_since(moment: object) -> float:
    """Seconds from ``moment`` until now, never negative; 0 where it is no moment in time."""
    if isinstance(moment, str):
        if moment.endswith("Z"):  # UTC, which Python 3.10 does not read so
            moment = f"{moment[:-1]}+00:00"
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError:
            return 0.0
    if not isinstance(moment, datetime):
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=timezone.utc)
    return max((datetime.now(timezone.utc) - moment).total_seconds(), 0.0)


def plain(value: object) -> str | float | None:
    """``value`` as JSON has it: a moment in ISO 8601 form, and of what else JSON lacks its text."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    return value.isoformat() if isinstance(value, datetime) else str(value)


@dataclass(slots=True)
class BaseSessionMetrics:
    """What every kind of session knows: its age, its activity, its errors. Not mirrored.

    Attributes:
        created_at: When it was created (UTC).
        last_activity_at: When it last did something (UTC); ``created_at`` at first.
        error_count: How many errors were recorded.
        last_error: The text of the last one.
    """

    created_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))
    last_activity_at: datetime = None  # type: ignore[assignment]  # filled in at once
    error_count: int = 0
    last_error: str | None = None

    def __post_init__(self) -> None:
        """Let the first activity be the creation."""
        if self.last_activity_at is None:
            self.last_activity_at = self.created_at

    def mark_activity(self) -> None:
        """Note that something was done now."""
        self.last_activity_at = datetime.now(timezone.utc)

    def record_error(self, error: BaseException | str) -> None:
        """Count ``error`` and keep its text."""
        self.error_count += 1
        self.last_error = text_of(error)
        self.mark_activity()

    def get_age_seconds(self) -> float:
        """Seconds since ``created_at``."""
        return seconds_since(self.created_at)

    def get_inactivity_seconds(self) -> float:
        """Seconds since ``last_activity_at``."""
        return seconds_since(self.last_activity_at)


def text_of(error: BaseException | str) -> str:
    """The text of ``error``; its class where that cannot be had.

    Of SQLAlchemy's errors the first line alone: the rest quotes the row and the parameters.
    """
    try:
        text = str(error)
        return text.partition("\n")[0] if hasattr(error, "orig") else text
    except Exception:  # noqa: BLE001 - an exception's own __str__ may raise; recording it may not
        return type(error).__name__
