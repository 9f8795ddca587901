"""``doctor``: what of an application is instrumented, what is not, and how to mend it."""

from __future__ import annotations

import importlib
import os
import re
import sys
import urllib.request
from http.client import HTTPException
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from opentelemetry import trace
from opentelemetry.trace import ProxyTracerProvider
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from sqlalchemy import Engine
from sqlalchemy import __version__ as sqlalchemy_version
from sqlalchemy.orm import Session

from session_metrics_otel.instrument import asyncio_class, factory_name_of

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

OPENMETRICS = "application/openmetrics-text"
TIMEOUT = 10


class Finding(NamedTuple):
    """One thing that was looked at.

    Attributes:
        level: ``well``, ``mend``, or ``note`` where it is neither good nor bad.
        says: What was found.
        mend: What to do about it, or "".
    """

    level: Literal["well", "note", "mend"]
    says: str
    mend: str = ""


def add_to(commands: argparse._SubParsersAction[Any]) -> None:
    """Add the command to the command line."""
    parser = commands.add_parser(
        "doctor",
        help="say what is instrumented, what is not, and how to mend it",
        description="Say what is instrumented in an application, what is not, and how to mend it. "
        "The application is imported, as its own program would import it; nothing is sent to its "
        "database. A running /metrics is read once.",
        epilog="Examples: doctor shop.db:Session; doctor http://127.0.0.1:9464/metrics. "
        "Exit code: 0 if all is well, 1 if there is something to mend, "
        "2 if TARGET cannot be examined.",
    )
    parser.add_argument(
        "target",
        metavar="TARGET",
        help="a sessionmaker, engine or Session class as module:attribute, or the address of a "
        "running /metrics such as http://127.0.0.1:9464/metrics",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Look, print what was found, and exit with 1 where something is to be mended."""
    is_address = "://" in options.target
    findings = list(of_address(options.target) if is_address else of_object(options.target))
    for level, says, mend in findings:
        print(f"{level.upper() if level == 'mend' else level}  {says}")
        if mend:
            print(f"      {mend}")
    sys.exit(1 if any(finding.level == "mend" for finding in findings) else 0)


def _give_up(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


def of_object(name: str) -> Iterator[Finding]:
    """What there is to say of the target at ``module:attribute``, and of its process."""
    target = _load(name)
    yield Finding("note", f"SQLAlchemy {sqlalchemy_version}, Python {sys.version.split()[0]}")
    try:
        factory = factory_name_of(target) or _counted_elsewhere(target)
    except TypeError as refusal:
        _give_up(str(refusal))
    if factory is None:
        yield Finding(
            "mend",
            f"{name} is not instrumented: none of its sessions is counted",
            f"Call instrument({name.partition(':')[2]}, name=...) where it is made. An application "
            "that opentelemetry-instrument runs is instrumented by that: run this by it too.",
        )
    else:
        yield Finding("well", f"{name} is instrumented: its series have factory={factory!r}")
    yield from _of_process()


def _counted_elsewhere(target: Any) -> str | None:
    """The name of the factory that counts the sessions of ``target`` by their class or engine."""
    maker = getattr(target, "session_factory", target)  # a scoped_session's
    classes = getattr(maker, "class_", maker if isinstance(maker, type) else object).__mro__
    owners = [
        owner for owner in classes if issubclass(owner, (Session, asyncio_class("AsyncSession")))
    ]
    bound = getattr(maker, "kw", {}).get("bind")
    if isinstance(bound, (Engine, asyncio_class("AsyncEngine"))):
        owners.append(bound)
    return next(filter(None, map(factory_name_of, owners)), None)


def _load(name: str) -> Any:
    module, _, attribute = name.partition(":")
    if not attribute:
        _give_up(f"{name!r} is neither an address nor module:attribute. Try myapp.db:Session.")
    if re.match(r"[\w.-]+:\d+(/|$)", name):
        _give_up(f"{name!r} is no address. Give http://{name}, with the path of its /metrics.")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as refusal:
        _give_up(f"Cannot look at {name}: {refusal}. Run this where the application runs.")
    except (Exception, SystemExit) as fault:  # noqa: BLE001 - it is the application's
        said = f"{type(fault).__name__}: {fault}"
        _give_up(
            f"Cannot look at {name}: importing {module} ended with {said}. Run this with the "
            "environment that the application has."
        )
    return found


def _of_process() -> Iterator[Finding]:
    if isinstance(trace.get_tracer_provider(), ProxyTracerProvider):
        yield Finding(
            "note",
            "no tracer provider is set: there are no spans and no exemplars",
            "Set one before the first session (trace.set_tracer_provider), or run the application "
            "by opentelemetry-instrument.",
        )
    else:
        yield Finding("well", "a tracer provider is set: sessions that do something have spans")
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is not None:
        if Path(folder).is_dir() and os.access(folder, os.W_OK):
            yield Finding("well", f"multi-process mode writes to {folder} (which has no exemplars)")
        else:
            yield Finding(
                "mend",
                f"PROMETHEUS_MULTIPROC_DIR is {folder!r}: no folder that can be written to",
                "Make it, empty, before the first worker starts.",
            )
    try:
        usual = version("opentelemetry-instrumentation-sqlalchemy")
    except PackageNotFoundError:
        return
    yield Finding(
        "note",
        f"opentelemetry-instrumentation-sqlalchemy {usual} is installed too",
        "Where both are on, each statement has two spans: leave one out "
        "(OTEL_PYTHON_DISABLED_INSTRUMENTATIONS=sqlalchemy).",
    )


def of_address(address: str) -> Iterator[Finding]:
    """What a running /metrics says of the process behind it."""
    text, kind = _fetch(address)
    parse = openmetrics if OPENMETRICS in kind else plain
    try:
        samples = [sample for family in parse(text) for sample in family.samples]
    except ValueError as refusal:
        _give_up(f"{address} does not answer as /metrics does: {refusal}. Give its full address.")
    sums: dict[str, float] = {}
    for sample in samples:
        sums[sample.name] = sums.get(sample.name, 0) + sample.value
    # A counter: in multi-process mode, gauges go with the last worker that had a session.
    counts = [sample for sample in samples if sample.name == "sqlalchemy_session_creations_total"]
    factories = sorted({sample.labels.get("factory", "") for sample in counts})
    if factories:
        yield Finding("well", f"sessions are counted, of the factories {', '.join(factories)}")
    else:
        yield Finding(
            "mend",
            "no sessions are counted here",
            "Import session_metrics_otel and instrument() the sessionmaker in this process; behind "
            "several workers, see multi-process mode.",
        )
    if sums.get("sqlalchemy_pools"):
        yield Finding("well", f"{sums['sqlalchemy_pools']:.0f} pools are observed")
    else:
        yield Finding(
            "note",
            "no pool is observed yet",
            "It is from the first connection of an instrumented session or engine on.",
        )
    faults = sums.get("sqlalchemy_session_telemetry_faults_total", 0)
    if faults:
        yield Finding(
            "mend",
            f"the instrumentation itself failed {faults:.0f} times",
            "The log has the first fault of each kind: 'Session telemetry (...) failed'.",
        )
    yield from _of_exemplars(kind, samples)


def _of_exemplars(kind: str, samples: list[Any]) -> Iterator[Finding]:
    if OPENMETRICS not in kind:
        yield Finding(
            "note",
            "this address does not speak OpenMetrics: exemplars cannot be shown",
            "Serve /metrics by prometheus_client's own application, which asks what is wanted.",
        )
    elif any(getattr(sample, "exemplar", None) for sample in samples):
        yield Finding("well", "exemplars lead from the histograms to traces")
    else:
        yield Finding(
            "note",
            "there are no exemplars",
            "They need a tracer provider, and sampled sessions; multi-process mode has none.",
        )


def _fetch(address: str) -> tuple[str, str]:
    if not address.startswith(("http://", "https://")):
        _give_up(f"{address!r} is no address of /metrics. Give http://host:port/metrics.")
    try:
        asked = urllib.request.Request(address, headers={"Accept": OPENMETRICS})  # noqa: S310
        with urllib.request.urlopen(asked, timeout=TIMEOUT) as answer:  # noqa: S310
            return answer.read().decode(), answer.headers.get("Content-Type", "")
    except (HTTPException, OSError, ValueError) as refusal:
        _give_up(f"{address} cannot be read: {refusal}. Is the application running there?")
