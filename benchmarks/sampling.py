"""Measuring peers side by side: a process each, which take turns in short samples.

pyperf measures one after another, so that a machine which grows slower meanwhile is taken for a
slower peer. Here each sample has one of the bare session beside it, milliseconds away, and what is
told is the median of such pairs' ratios with its 95 % confidence interval (by order statistics:
Conover, Practical Nonparametric Statistics, 3.2).
"""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

HERE = Path(__file__).parent
SAMPLE_SECONDS = 0.02


class Measured(NamedTuple):
    """One peer in one work.

    Attributes:
        us: Microseconds per session: the least of the samples.
        ratio: The median of the pairs' ratios to the first peer.
        low: The lower end of its 95 % confidence interval.
        high: The upper end.
    """

    us: float
    ratio: float
    low: float
    high: float


class Process:
    """A worker that waits to be told how many calls to time.

    Attributes:
        sessions: How many sessions one call is.
    """

    def __init__(self, python: Path, work: str, peer: str, url: str) -> None:
        command = [str(python), str(HERE / "worker.py"), work, peer, url]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        said = self._answer()
        if not said:
            message = f"{peer!r} could not do {work!r}: see above."
            raise RuntimeError(message)
        self.sessions = int(said)

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return str(self._process.stdout.readline()).strip()

    def time(self, calls: int) -> float:
        """Microseconds per session, of ``calls`` calls."""
        assert self._process.stdin is not None
        print(calls, file=self._process.stdin, flush=True)
        return float(self._answer())

    def end(self) -> None:
        """Let it go."""
        self._process.communicate()


def measure(
    python: Path, work: str, peers: list[str], url: str, *, generations: int, rounds: int
) -> dict[str, Measured]:
    """Measure ``peers``, of which the first is what the others are compared with.

    Args:
        python: The interpreter of the environment to measure in.
        work: What the sessions do.
        peers: Their names.
        url: Where PostgreSQL is; "" where the work needs none.
        generations: How many processes there are of each, one after another: where things come to
            lie in memory is chance, and differs from one to the next.
        rounds: Samples of each process.
    """
    samples: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(generations):
        processes = {peer: Process(python, work, peer, url) for peer in peers}
        calls = {
            peer: max(int(SAMPLE_SECONDS * 1e6 / process.time(5)) // process.sessions, 1)
            for peer, process in processes.items()
        }
        for _ in range(rounds):
            for peer, process in processes.items():
                samples[peer].append(process.time(calls[peer]))
        for process in processes.values():
            process.end()
    return {peer: _told(taken, samples[peers[0]]) for peer, taken in samples.items()}


def _told(taken: Iterable[float], bare: Iterable[float]) -> Measured:
    taken = list(taken)
    ratios = sorted(a / b for a, b in zip(taken, bare, strict=True))
    reach = 1.96 * math.sqrt(len(ratios)) / 2
    low = ratios[max(math.floor(len(ratios) / 2 - reach), 0)]
    high = ratios[min(math.ceil(len(ratios) / 2 + reach), len(ratios) - 1)]
    return Measured(min(taken), median(ratios), low, high)
