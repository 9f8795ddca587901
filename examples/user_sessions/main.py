"""An application's own user sessions, on /metrics beside its database sessions.

python examples/user_sessions/main.py
"""

from __future__ import annotations

from prometheus_client import generate_latest

from session_metrics_otel import SystemSessionMetrics


class UserSessions:
    """Keeps one session for each user, for so many seconds after the user was last seen."""

    def __init__(self, lifetime: float) -> None:
        self.metrics = SystemSessionMetrics(name="shop")
        self._lifetime = lifetime
        self._seen: dict[str, float] = {}

    def visit(self, user: str, now: float) -> None:
        if user in self._seen:
            self.metrics.record_session_reuse()
        else:
            self.metrics.increment_total_sessions()
            self.metrics.increment_active_sessions()
        self._seen[user] = now

    def clean_up(self, now: float) -> None:
        expired = [user for user, seen in self._seen.items() if now - seen > self._lifetime]
        for user in expired:
            del self._seen[user]
            self.metrics.decrement_active_sessions()
        self.metrics.record_session_cleanup(len(expired))


users = UserSessions(lifetime=1800)
for user, now in (("ada", 0), ("eve", 10), ("ada", 1700)):
    users.visit(user, now)
users.clean_up(now=2000)

for line in generate_latest().decode().splitlines():
    if line.startswith("application_session"):
        print(line)
