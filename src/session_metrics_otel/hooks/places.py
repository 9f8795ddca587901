"""Where in the application's own code something was done: kept cheaply, read when reported."""

from __future__ import annotations

import sys
from pathlib import Path
from types import CodeType
from typing import Any

import sqlalchemy

Place = tuple[CodeType, int]
"""A code object and an instruction in it: two things that exist anyway."""

_INSIDE = (str(Path(sqlalchemy.__file__).parent), str(Path(__file__).parent.parent))

# Files by whether they are SQLAlchemy's or ours: a frame's file name is looked up, not compared.
_is_inside: dict[str, bool] = {}


def place_of_caller() -> Place | None:
    """The first place above the caller that is neither SQLAlchemy's nor ours."""
    return _first_outside(sys._getframe(1))


def place_of_checkout() -> Place | None:
    """The same, for the ``connect()`` of a pool, where the way up is long.

    Each frame on it is an object to be made, and there are ten from a pool up to whoever called
    ``Session.execute``. Where the stack is the usual one, those in between are passed over.
    """
    try:
        above = sys._getframe(5)
        if _is_inside.get(above.f_code.co_filename):
            deeper = sys._getframe(9)
            return _first_outside(deeper if _is_inside.get(deeper.f_code.co_filename) else above)
    except ValueError:  # the stack, or the greenlet's, ends before
        pass
    return _first_outside(sys._getframe(1))


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


def _first_outside(frame: Any) -> Place | None:
    """The search up from ``frame``.

    Across a greenlet, as SQLAlchemy's asyncio extension uses, it goes on where the application
    awaits.
    """
    parent: Any = None
    while True:
        if frame is None:
            greenlet = sys.modules.get("greenlet")
            if greenlet is None:
                return None
            parent = (parent or greenlet.getcurrent()).parent
            if parent is None or parent.gr_frame is None:
                return None
            frame = parent.gr_frame
        code = frame.f_code
        inside = _is_inside.get(code.co_filename)
        if inside is None:
            inside = _is_code_inside(frame)
        if not inside:
            return code, frame.f_lasti
        frame = frame.f_back


def _is_code_inside(frame: Any) -> bool:
    file = frame.f_code.co_filename
    if file.startswith("<"):  # made when it ran: SQLAlchemy makes wrappers in no named module
        return str(frame.f_globals.get("__name__", "sqlalchemy")).startswith("sqlalchemy")
    _is_inside[file] = inside = bool(file.startswith(_INSIDE))
    return inside
