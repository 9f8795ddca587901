"""Where in the application's own code something was done: kept cheaply, read when reported."""

from __future__ import annotations

import sys
from operator import attrgetter
from os import sep
from pathlib import Path
from sys import _getframe
from types import CodeType
from typing import TYPE_CHECKING, Any

import sqlalchemy

if TYPE_CHECKING:
    from collections.abc import Callable

Place = tuple[CodeType, int]
"""A code object and an instruction in it: two things that exist anyway."""

_OURS = Path(__file__).parent.parent
_INSIDE = (str(Path(sqlalchemy.__file__).parent), str(_OURS))
_APPLICATIONS = str(_OURS / "cli")  # the demo is one
# What stands between an application and SQLAlchemy, and would seem to be who takes each connection:
# instrumentation beside ours, which wraps `Engine.connect`, and packages whose sessions or
# repositories are called in place of SQLAlchemy's, as installed.
_BETWEEN = (
    str(Path("opentelemetry", "instrumentation")),
    *(
        f"-packages{sep}{name}{sep}"  # site-packages, or Debian's dist-packages
        for name in ("sqlmodel", "flask_sqlalchemy", "advanced_alchemy")
    ),
)

# Files by whether they are SQLAlchemy's or ours: a frame's file name is looked up, not compared.
_is_inside: dict[str, bool] = {}

# Pairs of files, SQLAlchemy's or ours and one of the application's that called it. Each of these
# readings is one call of C, which is cheaper than its four or five steps.
_ways_out: set[tuple[str, str]] = set()
_files: Callable[[Any], tuple[str, str]] = attrgetter(
    "f_code.co_filename", "f_back.f_code.co_filename"
)
_above: Callable[[Any], Place] = attrgetter("f_back.f_code", "f_back.f_lasti")

KNOWN_DEPTHS = 4
"""Ways up to the application that are remembered: a lazy load is further down than a query."""


def _search() -> Callable[[], Place | None]:
    """A search for the application's line above whoever calls it, which remembers the way there.

    Each frame that is looked at is an object to be made, and there are ten from a pool's
    ``connect()`` up to whoever called ``Session.execute``. As a rule the application stands where
    it stood the last time: one step above a frame of SQLAlchemy's or ours.
    """
    depths: tuple[int, ...] = ()

    def search() -> Place | None:
        nonlocal depths
        try:
            for depth in depths:
                frame = _getframe(depth)
                if _files(frame) in _ways_out:
                    return _above(frame)
        except (ValueError, AttributeError):  # the stack, or the greenlet's, ends before
            pass
        place, depth = _first_outside(_getframe(1))
        if depth:
            files = _files(_getframe(depth))
            if _is_inside.keys() >= set(files):
                _ways_out.add(files)
            if depth not in depths:  # the nearest comes first
                depths = tuple(sorted((depth, *depths[: KNOWN_DEPTHS - 1])))
        return place

    return search


place_of_birth = _search()
"""Where the session that is being made is made."""

place_of_checkout = _search()
"""Where the connection that is being taken from a pool is taken."""

place_of_engine = _search()
"""Where the engine that is met for the first time is made or first used."""


def line_of(place: Place | None) -> str:
    """``file:line in function``, or "" where it is not known."""
    if place is None:
        return ""
    code, instruction = place
    line = code.co_firstlineno
    for start, end, number in code.co_lines():
        if start <= instruction < end and number is not None:
            line = number
    return f"{code.co_filename}:{line} in {code.co_name}"


def _first_outside(frame: Any) -> tuple[Place | None, int]:
    """The first place from ``frame`` upwards that is neither SQLAlchemy's nor ours.

    Across a greenlet, as SQLAlchemy's asyncio extension uses, it goes on where the application
    awaits.

    Returns:
        The place, and how far above the search, whose caller is ``frame``, the last frame before
        it is; 0 across a greenlet.
    """
    parent: Any = None
    depth = 0
    while True:
        if frame is None:
            greenlet = sys.modules.get("greenlet")
            if greenlet is None:
                return None, 0
            parent = (parent or greenlet.getcurrent()).parent
            if parent is None or parent.gr_frame is None:
                return None, 0
            frame = parent.gr_frame
        code = frame.f_code
        inside = _is_inside.get(code.co_filename)
        if inside is None:
            inside = _is_code_inside(frame)
        if not inside:
            return (code, frame.f_lasti), 0 if parent else depth
        frame = frame.f_back
        depth += 1


def _is_code_inside(frame: Any) -> bool:
    file = frame.f_code.co_filename
    if file.startswith("<"):  # made when it ran: SQLAlchemy makes wrappers in no named module
        return str(frame.f_globals.get("__name__", "sqlalchemy")).startswith("sqlalchemy")
    ours_or_sqlalchemys = file.startswith(_INSIDE) and not file.startswith(_APPLICATIONS)
    inside = ours_or_sqlalchemys or any(between in file for between in _BETWEEN)
    _is_inside[file] = inside
    return inside
