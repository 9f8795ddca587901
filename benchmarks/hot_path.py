"""How much of our code one session runs: counts that do not drift with the machine.

``python benchmarks/hot_path.py`` prints them, and fails where they have grown beyond what is kept
in hot_path.json; ``--write`` keeps them.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from peers import METRICS, PEERS
from works import session, ten_statements

import session_metrics_otel

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

KEPT = Path(__file__).with_suffix(".json")
OURS = str(Path(session_metrics_otel.__file__).parent)
PYTHON = "{}.{}".format(*sys.version_info)
WARM = 300
MARGIN = 1.03  # releases of SQLAlchemy and OpenTelemetry differ by a call here and there
SESSIONS = {"a session of one statement": session, "a session of ten": ten_statements}
UNSAMPLED = "ours: all metrics, spans unsampled"


class Count(NamedTuple):
    """What one session runs of ours.

    Attributes:
        calls: Functions of ours that are called.
        instructions: Instructions of Python's virtual machine that these execute.
        by_function: The same, by function.
    """

    calls: int
    instructions: int
    by_function: dict[str, int]


def count(run: Callable[[], object]) -> Count:
    """Count one call of ``run``, once everything is warm that can be."""
    for _ in range(WARM):
        run()
    calls = 0
    executed: Counter[str] = Counter()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal calls
        if event == "call":
            if not frame.f_code.co_filename.startswith(OURS):
                return None
            calls += 1
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            code = frame.f_code
            executed[f"{Path(code.co_filename).stem}.{code.co_name}"] += 1
        return trace

    before = sys.gettrace()
    for _ in range(3):  # Python 3.12 reports instructions of code that was traced before
        calls = 0
        executed.clear()
        sys.settrace(trace)
        try:
            run()
        finally:
            sys.settrace(before)
    return Count(calls, sum(executed.values()), dict(executed.most_common()))


def measure() -> dict[str, Count]:
    """By what is done, and for whom."""
    return {
        f"{what}, {peer.removeprefix('ours: ')}": count(work(PEERS[peer], "").run)
        for what, work in SESSIONS.items()
        for peer in (METRICS, UNSAMPLED)
    }


def kept() -> dict[str, dict[str, list[int]]]:
    """By Python version, what was measured last."""
    found: dict[str, dict[str, list[int]]] = json.loads(KEPT.read_text())
    return found


def grown(found: dict[str, Count]) -> list[str]:
    """What runs more of our code than is kept, by more than ``MARGIN``."""
    before = kept()[PYTHON]
    return [
        f"{what}: {count.calls} calls and {count.instructions} instructions of ours, where it was "
        "{} and {}. Make it cheaper; or where it is worth that, keep the new counts with "
        "`python benchmarks/hot_path.py --write` on each Python.".format(*before[what])
        for what, count in found.items()
        if count.calls > before[what][0] * MARGIN or count.instructions > before[what][1] * MARGIN
    ]


if __name__ == "__main__":
    found = measure()
    for what, (calls, instructions, _) in found.items():
        print(f"{what}: {calls} calls, {instructions} instructions")
    if "--write" in sys.argv:
        everything = kept() if KEPT.exists() else {}
        everything[PYTHON] = {what: list(counted[:2]) for what, counted in found.items()}
        KEPT.write_text(json.dumps(dict(sorted(everything.items())), indent=1) + "\n")
    sys.exit("\n".join(grown(found)) or None)
