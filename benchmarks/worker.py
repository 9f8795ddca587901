"""A process that does one work for one peer, as often as it is told: ``worker.py WORK PEER URL``.

It says how many sessions one call is. Each line it reads is how many calls to time; it answers
with microseconds per session. Each has a process of its own, as Python's interpreter adapts itself
to the classes it meets: two kinds of session in one process slow one another.
"""

from __future__ import annotations

import sys
import timeit

from peers import PEERS
from works import WORKS


def main() -> None:
    work, peer, url = sys.argv[1:]
    run, sessions = WORKS[work](PEERS[peer], url)
    timeit.timeit(run, number=max(300 // sessions, 3))  # until it is warm
    print(sessions, flush=True)
    for line in sys.stdin:
        calls = int(line)
        print(timeit.timeit(run, number=calls) / calls / sessions * 1e6, flush=True)


if __name__ == "__main__":
    main()
