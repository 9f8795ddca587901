"""Pools: who asked for a connection and did not get one.

An engine's pool becomes an instance of a subclass of its own class, so that the pool which
``engine.dispose()`` makes in its place is observed as well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .sessions import connection_refused

if TYPE_CHECKING:
    from sqlalchemy import Engine, Pool


def _observed(kind: type[Any]) -> type[Any]:
    """A subclass of the pool class ``kind`` that sees what is asked of it."""

    class ObservedPool(kind):  # type: ignore[misc]  # which class is known when it runs
        __slots__ = ()  # an instance's class can only be changed for one of the same layout
        replaced = kind

        def connect(self) -> Any:
            try:
                return super().connect()
            except BaseException as error:
                connection_refused(self._dialect, error)
                raise

    ObservedPool.__name__ = kind.__name__
    ObservedPool.__qualname__ = kind.__qualname__
    ObservedPool.__module__ = kind.__module__
    return ObservedPool


def hook(engine: Engine) -> None:
    """Observe the pool of ``engine``."""
    pool: Pool = engine.pool
    if not hasattr(pool, "replaced"):
        pool.__class__ = _observed(type(pool))


def unhook(engine: Engine) -> None:
    """Put the pool of ``engine`` back as it was."""
    pool: Any = engine.pool
    if hasattr(pool, "replaced"):
        pool.__class__ = pool.replaced
