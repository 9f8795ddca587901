"""The text of a statement: without what is secret in it, and in a few words.

A scanner and no parser: it knows SQL's quoting and its verbs, and never fails on what it does not
know. It is asked once for a compiled statement, and its answers are cached.
"""

from __future__ import annotations

import re
from functools import lru_cache

TEXT_LIMIT = 8192
"""Characters of a statement that are read and shown; the rest is left away."""

SUMMARY_LIMIT = 255
"""Characters of a summary, as OpenTelemetry's database conventions have it."""

_KEPT_READINGS = 512

# Filled in by SQLAlchemy when the statement is sent: the values of an IN list, and schemas.
_LATE_VALUES = re.compile(r"__\[POSTCOMPILE_\S+?]")
_LATE_SCHEMA = re.compile(r"__\[SCHEMA_\w+]\.?")
_IN_LIST = re.compile(r"\bIN\s*\(\s*\?(?:\s*,\s*\?)+\s*\)", re.IGNORECASE)
_SAVEPOINT = re.compile(r"(?:RELEASE |ROLLBACK TO )?SAVEPOINT\b", re.IGNORECASE)

# A quote that is never closed ends with the text: cut off or not, no literal shows.
_COMMENT = r"--[^\n]*|/\*.*?(?:\*/|\Z)"
_HASH_COMMENT = r"#[^\n]*"  # MySQL's; of PostgreSQL's operators some begin so
_STRING = r"(?:\b(?:[bnrx]|u&))?'(?:[^']|'')*(?:'|\Z)"
_ESCAPED_STRING = r"(?:\b[ebnrx])?'(?:[^'\\]|\\.|'')*(?:'|\\?\Z)"
_DOUBLE_QUOTED_STRING = r'"(?:[^"\\]|\\.|"")*(?:"|\\?\Z)'
_POSTGRESQL_STRINGS = r"\be'(?:[^'\\]|\\.|'')*(?:'|\\?\Z)|\$(?P<tag>\w*)\$.*?(?:\$(?P=tag)\$|\Z)"
_ORACLE_STRING = (  # q'[it's]': ended by the same character, or the other bracket, and a quote
    r"\bn?q'(?:\[.*?(?:]'|\Z)|\{.*?(?:}'|\Z)|\(.*?(?:\)'|\Z)|<.*?(?:>'|\Z)"
    r"|(?P<end>\S).*?(?:(?P=end)'|\Z))"
)
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?\w*"
_PLACEHOLDER = r"%\(\w+\)s|::|[:@]\w+|\$\d+"
_WORD = r"[^\W\d][\w$]*"


@lru_cache(maxsize=8)
def _scanner(quote: str) -> re.Pattern[str]:
    """Finds what to hide, and steps over what only looks like it.

    Args:
        quote: What the dialect opens a quoted name with. One that uses backticks takes double
            quotes, and backslashes, for those of strings.
    """
    comment = _COMMENT
    if quote == "`":
        comment = f"{_COMMENT}|{_HASH_COMMENT}"
        literals, names = f"{_ESCAPED_STRING}|{_DOUBLE_QUOTED_STRING}", r"`[^`]*`?"
    else:
        literals = f"{_POSTGRESQL_STRINGS}|{_ORACLE_STRING}|{_STRING}"
        names = r'"[^"]*"?'
    if quote == "[":
        names = rf"{names}|\[[^\]]*\]?"
    kept = f"{names}|{_PLACEHOLDER}|{_WORD}"
    pattern = f"(?P<comment>{comment})|(?P<literal>{literals})|(?:{kept})|(?P<number>{_NUMBER})"
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


def _hide(found: re.Match[str]) -> str:
    if found["comment"] is not None:
        return ""
    if found["literal"] is not None or found["number"] is not None:
        return "?"
    return found[0]


@lru_cache(maxsize=_KEPT_READINGS)
def sanitised(text: str, quote: str) -> str:
    """``text`` with ``?`` for every literal, without comments, and with any IN list as ``IN (?)``.

    Args:
        text: The statement.
        quote: What the dialect opens a quoted name with.
    """
    text = _LATE_SCHEMA.sub("", _LATE_VALUES.sub("?", text))
    return _IN_LIST.sub("IN (?)", _scanner(quote).sub(_hide, text).strip())


_PART = r'(?:"[^"]*"|`[^`]*`|\[[^\]]*\]|[^\W\d][\w$]*)'
_TOKENS = re.compile(rf"{_PART}(?:\.{_PART})*|[(),;]")

_NESTED_VERBS = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
_READING_VERBS = frozenset({"SELECT", "DELETE", "UPDATE", "MERGE"})
_SCHEMA_VERBS = frozenset({"CREATE", "DROP", "ALTER", "TRUNCATE", "COMMENT"})
_NAMING_VERBS = frozenset({"CALL", "EXEC", "EXECUTE", "PRAGMA", "TABLE"})
_SCHEMA_KINDS = frozenset(
    {"DATABASE", "FUNCTION", "INDEX", "PROCEDURE", "ROLE", "SCHEMA", "SEQUENCE", "TABLE",
     "TRIGGER", "TYPE", "USER", "VIEW", "EXTENSION"}
)  # fmt: skip
_BEFORE_TARGET = frozenset({"FROM", "JOIN", "INTO", "USING"})
_NO_TARGET = frozenset(
    {"ONLY", "LATERAL", "IF", "NOT", "EXISTS", "CONCURRENTLY", "OR", "IGNORE", "REPLACE"}
)
_AFTER_TARGETS = frozenset(
    {"WHERE", "SET", "VALUES", "GROUP", "ORDER", "HAVING", "LIMIT", "RETURNING", "UNION",
     "EXCEPT", "INTERSECT", "WINDOW", "FETCH", "OFFSET", "FOR"}
)  # fmt: skip


class _Summary:
    """The operations and their targets, in the order they stand in the text."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._open: list[tuple[str, bool]] = []  # per open bracket: what it interrupted
        self._verb = ""  # of the statement, or the subquery, that we are in
        self._awaited = False  # the next name is a target
        self._listing = False  # a comma brings another target
        self._before = ""  # the word before

    def take(self, piece: str) -> None:
        word = piece.upper()
        if piece in "(),;":
            self._mark(piece)
        elif word == "SELECT" or (word in _NESTED_VERBS and self._before in ("", "(", ")", ";")):
            self._begin(word)
        elif not self.words:
            self._open_with(word)
        elif self._verb in _SCHEMA_VERBS and not self._awaited:
            self._name_kind(word)
        else:
            self._look_for_target(piece, word)
        self._before = word

    def _open_with(self, word: str) -> None:
        if word == "WITH":
            self._verb = word  # what follows are names, until the first bracket
        elif not self._verb:
            self._begin(word)

    def _name_kind(self, word: str) -> None:
        if word in _SCHEMA_KINDS:
            self.words.append(word)
            self._awaited = True
            self._verb = "."  # one thing is made or dropped: the rest is what it is made of

    def _look_for_target(self, piece: str, word: str) -> None:
        if word in _BEFORE_TARGET:
            # Not in EXTRACT(year FROM ...), nor in IS DISTINCT FROM.
            reads = self._verb in _READING_VERBS or word == "INTO"
            self._awaited = reads and self._before != "DISTINCT"
        elif self._awaited and word not in _NO_TARGET:
            self.words.append(piece)
            self._awaited = False
            self._listing = self._verb in _READING_VERBS
        elif word in _AFTER_TARGETS:
            self._listing = self._awaited = False

    def _begin(self, verb: str) -> None:
        self.words.append(verb)
        self._verb = verb
        self._awaited = verb == "UPDATE" or verb in _NAMING_VERBS
        self._listing = False

    def _mark(self, piece: str) -> None:
        if piece == "(":
            self._open.append((self._verb, self._listing or self._awaited))
            self._verb, self._listing, self._awaited = ".", False, False
        elif piece == ")":
            if self._open:
                self._verb, self._listing = self._open.pop()
            self._awaited = False
        elif piece == ",":
            self._awaited = self._listing
        else:
            self._verb, self._awaited, self._listing = "", False, False


@lru_cache(maxsize=_KEPT_READINGS)
def summary_of(text: str) -> str:
    """The operations of a sanitised ``text`` and the tables of each: ``SELECT orders items``.

    It is ``db.query.summary`` by OpenTelemetry's database conventions.
    """
    savepoint = _SAVEPOINT.match(text)
    if savepoint is not None:  # its name is a running number
        return savepoint[0].upper()
    summary = _Summary()
    for piece in _TOKENS.findall(text):
        summary.take(piece)
    kept = ""
    for word in summary.words:
        longer = f"{kept} {word}" if kept else word
        if len(longer) > SUMMARY_LIMIT:
            break
        kept = longer
    return kept
