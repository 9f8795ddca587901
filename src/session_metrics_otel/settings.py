"""The options of ``instrument()`` in environment variables.

They are for applications that do not call it: under ``opentelemetry-instrument``, and with
``?plugin=session_metrics`` in a database URL.

- ``SESSION_METRICS_NAME``: ``name``.
- ``SESSION_METRICS_SPANS``: ``spans``: ``span``, ``attributes`` or ``off``.
- ``SESSION_METRICS_USER_ID``: ``user_id``: ``plain`` or ``hashed``.
- ``SESSION_METRICS_STATEMENT_SPANS``, ``SESSION_METRICS_TRANSACTION_SPANS``: ``true`` or ``false``.
- ``SESSION_METRICS_SQL_COMMENTS``: what comments in SQL contain: any of ``traceparent``,
  ``db_driver``, ``db_framework``, ``framework``, separated by commas; empty for no comments.
- ``SESSION_METRICS_EXPORT``: whether ``opentelemetry-instrument`` also exports the metrics through
  OpenTelemetry: ``true`` (the default) or ``false``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .hooks.comments import SqlComments

if TYPE_CHECKING:
    from collections.abc import Mapping

_WORDS = {"true": True, "1": True, "yes": True, "on": True}
_WORDS |= {"false": False, "0": False, "no": False, "off": False}

_TEXTS = {"name": "NAME", "spans": "SPANS", "user_id": "USER_ID"}
_SWITCHES = {"statement_spans": "STATEMENT_SPANS", "transaction_spans": "TRANSACTION_SPANS"}
_COMMENTS = ("traceparent", "db_driver", "db_framework", "framework")


def options_from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The options that ``environment`` sets, as ``instrument()`` takes them.

    Raises:
        ValueError: A variable has a value that it does not take.
    """
    options: dict[str, Any] = {}
    for option, name in _TEXTS.items():
        if text := environment.get(f"SESSION_METRICS_{name}"):
            options[option] = text
    for option, name in _SWITCHES.items():
        variable = f"SESSION_METRICS_{name}"
        if environment.get(variable):
            options[option] = switch(environment, variable, default=False)
    if said := environment.get("SESSION_METRICS_SQL_COMMENTS"):
        options["sql_comments"] = _comments(said)
    return options


def switch(environment: Mapping[str, str], variable: str, *, default: bool) -> bool:
    """Whether ``variable`` says yes; ``default`` where it is not set.

    Raises:
        ValueError: It says neither yes nor no.
    """
    text = environment.get(variable, "")
    if not text:
        return default
    try:
        return _WORDS[text.lower()]
    except KeyError:
        message = f"{variable}={text!r} is not taken; give true or false."
        raise ValueError(message) from None


def _comments(text: str) -> SqlComments:
    said = [word.strip() for word in text.split(",")]
    for word in said:
        if word not in _COMMENTS:
            message = (
                f"SESSION_METRICS_SQL_COMMENTS={text!r} is not taken: {word!r} is none of "
                f"{', '.join(_COMMENTS)}."
            )
            raise ValueError(message)
    chosen: dict[str, Any] = {word: word in said for word in _COMMENTS}
    return SqlComments(**chosen)
