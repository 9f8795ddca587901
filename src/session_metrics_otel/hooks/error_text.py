"""What a database says of an error, without the values that it quotes.

PostgreSQL quotes the row that breaks a constraint, MySQL the key, and any of them the text that is
no number: what was given as a parameter is not for spans, reports and the live page.
"""

from __future__ import annotations

import re
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from session_metrics_otel.base import text_of
from session_metrics_otel.legible import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator

LIMIT = 1000
"""Characters of an error that are shown."""

MAX_VALUES = 1000
"""Parameters that are looked for in an error; with more of them, whatever it quotes is hidden."""

_SHORT = 3
"""A quoted word shorter than this is not looked for inside a parameter."""

_QUOTED = re.compile(r"'(?:[^']|'')*'|\"[^\"]*\"")


def error_text(
    error: BaseException, *, parameters: Any = None, statement: str | None = None
) -> str:
    """The first line of ``error``, with ``?`` for the values of the statement that it quotes.

    Args:
        error: What the driver raised.
        parameters: What was sent with the statement, as drivers take it.
        statement: The statement's text: its literals are values too.
    """
    # Further lines quote the row: "DETAIL:  Key (email)=(ann@example.org) already exists."
    line = text_of(error).partition("\n")[0][: 10 * LIMIT]
    values = [value for value in islice(_texts(parameters), MAX_VALUES + 1) if value]
    if len(values) > MAX_VALUES:
        return one_line(_QUOTED.sub("?", line), LIMIT)

    def hide(quoted: re.Match[str]) -> str:
        piece = quoted[0][1:-1]
        sent = any(value in piece or (len(piece) >= _SHORT and piece in value) for value in values)
        literal = statement is not None and f"'{piece}" in statement
        return f"{quoted[0][0]}?{quoted[0][0]}" if sent or literal else quoted[0]

    line = _QUOTED.sub(hide, line)
    for value in sorted({value for value in values if value in line}, key=len, reverse=True):
        line = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", "?", line)
    return one_line(line, LIMIT)


def _texts(parameters: Any) -> Iterator[str]:
    """The values in ``parameters``: of one statement or of many, by name or by position."""
    if parameters is None:
        return iter(())
    if isinstance(parameters, dict):
        return chain.from_iterable(map(_texts, parameters.values()))
    if isinstance(parameters, (list, tuple)):
        return chain.from_iterable(map(_texts, parameters))
    if isinstance(parameters, (bytes, bytearray)):
        return iter((bytes(parameters).decode("utf-8", "replace"),))
    return iter((text_of(parameters),))
