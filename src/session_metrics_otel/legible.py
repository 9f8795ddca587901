"""Text that anybody may have made up, as it can be shown in labels, spans and logs.

An id or a name may hold line breaks that forge a line of a log, control characters that a parser
stops at, halves of surrogate pairs that no encoder takes, or a megabyte.
"""

from __future__ import annotations

LINE_LIMIT = 255
"""Characters of a name or an id that are shown."""

TEXT_LIMIT = 8192
"""Characters of a longer text that are shown."""


def one_line(text: object, limit: int = LINE_LIMIT) -> str:
    """``text`` in one line of printable characters; what is not printable is escaped as in Python.

    Args:
        text: A name or an id; what is no string is made one.
        limit: How long it may be; of a longer one the beginning is shown.
    """
    if not isinstance(text, str):
        text = encodable(text, limit)
    if len(text) <= limit and text.isprintable():
        return text
    escaped = "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii")
        for sign in text[:limit]
    )
    return escaped if len(text) <= limit and len(escaped) <= limit else f"{escaped[: limit - 3]}..."


def encodable(text: object, limit: int = TEXT_LIMIT) -> str:
    """``text`` as UTF-8 can hold it, with its line breaks, and no longer than ``limit``."""
    if not isinstance(text, str):
        try:
            text = str(text)
        except Exception:  # noqa: BLE001 - whatever a stranger's __str__ raises
            text = type(text).__name__
    if len(text) > limit:
        text = f"{text[: limit - 3]}..."
    if text.isascii():
        return text
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
