"""The command line: what needs a terminal and not an application."""

from __future__ import annotations

import argparse

from . import demo, doctor, export, top


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        prog="python -m session_metrics_otel",
        description="Prometheus and OpenTelemetry instrumentation for SQLAlchemy sessions.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo.add_to(commands)
    export.add_to(commands)
    doctor.add_to(commands)
    top.add_to(commands)
    options = parser.parse_args(arguments)
    options.run(options)
