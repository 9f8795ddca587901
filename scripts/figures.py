"""Copy the figures of ``make bench`` into the documentation, between the marks that ask for them.

``<!-- figures: 2.1.9 session -->`` … ``<!-- end -->`` holds the table of a work on a SQLAlchemy;
``<!-- figures: single record -->`` the figures of what is measured once, and
``<!-- figures: cost 2.1.9 -->`` one sentence for the README's beginning. ``--check`` changes
nothing, and fails where a page says something else than benchmarks/results.json.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import generated

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/performance.md")
MARKED = re.compile(r"(<!-- figures: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


SAID = {
    "1 factories": "1 factory",
    "plain_ms": "a plain dataclass",
    "mirrored_ms": "a `SessionMetrics`",
}
"""What a page says for the names of some figures."""


def table(work: dict[str, dict[str, float]]) -> str:
    """One work as a Markdown table."""
    lines = ["| | µs | ratio | 95 % |", "|---|---|---|---|"]
    lines += [
        f"| {peer} | {told['us']:.0f} | {told['ratio']:.2f} | "
        f"{told['low']:.2f} - {told['high']:.2f} |"
        for peer, told in work.items()
    ]
    return "\n".join(lines)


def single(figures: dict[str, float]) -> str:
    """What was measured once, as a Markdown table."""
    lines = ["| | |", "|---|---|"]
    lines += [
        f"| {SAID.get(what, what)} | {value:{'.2f' if value % 1 else '.0f'}} |"
        for what, value in figures.items()
    ]
    return "\n".join(lines)


def sentence(session: dict[str, dict[str, float]]) -> str:
    """What a session costs beside SQLAlchemy alone, in one sentence."""
    alone, ours, traced = (
        session[peer]["us"]
        for peer in (
            "SQLAlchemy alone",
            "ours: all metrics",
            "ours: all metrics, session and statement span sampled",
        )
    )
    return (
        f"On in-memory SQLite, a session of one statement takes {alone:.0f} µs by itself. "
        f"This package adds {ours - alone:.0f} µs,\n"
        f"or {traced - alone:.0f} µs when its spans are sampled: [what it costs](#what-it-costs)."
    )


def filled(page: str, results: dict[str, Any]) -> str:
    """``page`` with today's figures between its marks."""

    def fill(found: re.Match[str]) -> str:
        start, group, name, end = found.groups()
        if group == "single":
            told = single(results["single"][name])
        elif group == "cost":
            told = sentence(results["works"][name]["session"])
        else:
            told = table(results["works"][group][name])
        return f"{start}{told}\n{end}"

    return MARKED.sub(fill, page)


def main() -> None:
    """Fill the pages, or say which are not up to date."""
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    pages = [ROOT / name for name in PAGES]
    filled_in = {page: filled(page.read_text(), results) for page in pages}
    generated.write(filled_in, "python scripts/figures.py")


if __name__ == "__main__":
    main()
