"""``make bench``: every figure of the README and the docs, measured on this machine.

It makes an environment for each SQLAlchemy, measures, prints the tables as Markdown and writes
benchmarks/results.json, from which ``scripts/figures.py`` copies them into the documentation.
``--quick`` measures less of each, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

import sampling  # noqa: E402
from figures import single, table  # noqa: E402
from peers import BARE, EVERYWHERE, FEW, MANY, METRICS, PEERS, REPEATS  # noqa: E402
from single import SINGLE  # noqa: E402
from usual_instrumentation import environment  # noqa: E402
from works import ON_POSTGRESQL, WORKS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

RESULTS = ROOT / "benchmarks" / "results.json"
SQLALCHEMYS = ("2.1.9", "2.0.58")


@contextmanager
def postgresql() -> Iterator[Any]:
    """A PostgreSQL of our own, or None where it is not installed."""
    from servers.postgres_server import BINARIES, postgres_running

    if not (BINARIES / "postgres").exists():
        print("No PostgreSQL 15 here: its rows are left out.", file=sys.stderr)
        yield None
        return
    with postgres_running() as server:
        server.empty()
        yield server


def measure(*, quick: bool) -> dict[str, Any]:
    """Everything: by SQLAlchemy, by work, by peer."""
    generations, rounds = (1, 10) if quick else (3, 30)
    found: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "works": {},
    }
    with postgresql() as server:
        for version in SQLALCHEMYS:
            python = environment("bench", version)
            for work in WORKS:
                if (work in ON_POSTGRESQL and server is None) or (
                    version != SQLALCHEMYS[0] and work != "session"
                ):
                    continue
                peers = {
                    "session": EVERYWHERE,
                    "ten_statements": [*FEW, REPEATS],
                    "processes": [BARE, METRICS, MANY],
                }.get(work, FEW)
                if version.startswith("2.0"):
                    peers = list(PEERS)
                url = server.url(work, unix_socket=True) if work in ON_POSTGRESQL else ""
                print(f"SQLAlchemy {version}: {work} ...", file=sys.stderr, flush=True)
                measured = sampling.measure(
                    python, work, peers, url, generations=generations, rounds=rounds
                )
                found["works"].setdefault(version, {})[work] = {
                    peer: told._asdict() for peer, told in measured.items()
                }
    return {**found, "single": measure_single()}


def measure_single() -> dict[str, dict[str, float]]:
    """What is measured once."""
    python, found = environment("bench", SQLALCHEMYS[0]), {}
    for name in SINGLE:
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [str(python), str(ROOT / "benchmarks" / "single.py"), name]
        said = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603
        found[name] = json.loads(said.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure less; write nothing")
    parser.add_argument("--single", action="store_true", help="measure anew what is measured once")
    args = parser.parse_args()
    if args.single:
        found = {**json.loads(RESULTS.read_text()), "single": measure_single()}
    else:
        found = measure(quick=args.quick)
    if not args.quick:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(found["machine"])
    for version, works in found["works"].items():
        for work, measured in works.items():
            print(f"\nSQLAlchemy {version}. {WORKS[work].__doc__}\n\n{table(measured)}")
    for name, figures in found["single"].items():
        print(f"\n{SINGLE[name].__doc__}\n\n{single(figures)}")


if __name__ == "__main__":
    main()
