"""Weak references: what is still there of what somebody else may drop at any time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from weakref import ref

T = TypeVar("T")


def alive(references: Iterable[ref[T]]) -> Iterator[T]:
    """What ``references`` lead to, without what is gone.

    Give it what was copied in one step (``valuerefs()``, or ``list()`` of a dictionary's values):
    others add and drop meanwhile.
    """
    for reference in references:
        found = reference()
        if found is not None:
            yield found
