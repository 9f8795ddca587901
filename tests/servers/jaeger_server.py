"""A real Jaeger that receives spans by OTLP and is asked for them."""

from __future__ import annotations

import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from servers.processes import (
    HOST,
    PATIENCE,
    free_port,
    get_json,
    needs,
    running,
    wait_for,
    wait_until_ready,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

VERSION = "1.76.0"
MAX_TRACES = 20_000  # that it keeps, and so the most that an answer can hold


@dataclass(frozen=True)
class Event:
    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    attributes: dict[str, Any]
    events: list[Event] = field(default_factory=list)
    start_us: int = 0
    duration_us: int = 0

    @property
    def status(self) -> str:
        """``UNSET``, ``OK`` or ``ERROR``."""
        return str(self.attributes.get("otel.status_code", "UNSET"))


@dataclass(frozen=True)
class Jaeger:
    otlp: str
    address: str
    otlp_grpc: str

    def services(self) -> list[str]:
        return sorted(get_json(f"{self.address}/api/services")["data"] or [])

    def traces(
        self,
        service: str,
        *,
        operation: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> list[list[Span]]:
        """The traces with a span of ``service`` by that name and with those attributes.

        The spans of a trace come in the order of their start.
        """
        asked = {"service": service, "limit": str(MAX_TRACES)}
        if operation is not None:
            asked["operation"] = operation
        if attributes is not None:
            asked["tags"] = json.dumps(dict(attributes))
        answer = get_json(f"{self.address}/api/traces?{urlencode(asked)}")
        return [_in_order(_span(raw) for raw in trace["spans"]) for trace in answer["data"]]

    def spans(self, service: str) -> list[Span]:
        return [span for trace in self.traces(service) for span in trace]

    def trace(self, trace_id: str) -> list[Span]:
        answer = get_json(f"{self.address}/api/traces/{trace_id}")
        return [_span(raw) for trace in answer["data"] for raw in trace["spans"]]

    def wait_for_traces(
        self, service: str, count: int, timeout: float = PATIENCE
    ) -> list[list[Span]]:
        """The traces of ``service`` once there are ``count``; more than that fail the test.

        A trace is there with its first span: where the rest matters, use ``wait_for_spans``.
        """
        traces: list[list[Span]] = wait_for(
            lambda: self.traces(service),
            lambda traces: len(traces) >= count,
            f"{count} traces of {service}",
            timeout,
        )
        assert len(traces) == count
        return traces

    def wait_for_spans(self, service: str, holds: Callable[[list[Span]], bool]) -> list[Span]:
        spans: list[Span] = wait_for(lambda: self.spans(service), holds, f"spans of {service}")
        return spans


def _tags(raw: list[dict[str, Any]]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in raw}


def _in_order(spans: Iterable[Span]) -> list[Span]:
    return sorted(spans, key=lambda span: (span.start_us, span.span_id))


def _span(raw: dict[str, Any]) -> Span:
    parents = [link["spanID"] for link in raw["references"] if link["refType"] == "CHILD_OF"]
    events = []
    for log in sorted(raw["logs"], key=lambda log: log["timestamp"]):
        attributes = _tags(log["fields"])
        events.append(Event(attributes.pop("event", ""), attributes))
    return Span(
        raw["traceID"],
        raw["spanID"],
        parents[0] if parents else None,
        raw["operationName"],
        _tags(raw["tags"]),
        events,
        raw["startTime"],
        raw["duration"],
    )


def binary() -> Path:
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "session-metrics-otel" / f"jaeger-{VERSION}"


@contextmanager
def jaeger_running(folder: Path) -> Iterator[Jaeger]:
    server = needs(f"Jaeger {VERSION}", binary())
    ports = {
        name: free_port()
        for name in (
            "admin.http",
            "collector.grpc-server",
            "collector.http-server",
            "collector.otlp.grpc",
            "collector.otlp.http",
            "query.grpc-server",
            "query.http-server",
        )
    }
    command = [server, f"--memory.max-traces={MAX_TRACES}", "--log-level=warn"]
    command += [f"--{name}.host-port={HOST}:{port}" for name, port in ports.items()]
    # Where Jaeger would send spans of its own.
    environment = {"OTEL_TRACES_SAMPLER": "always_off", "JAEGER_DISABLED": "true"}
    log = folder / "jaeger.log"
    with running(command, log, environment) as process:
        jaeger = Jaeger(
            f"http://{HOST}:{ports['collector.otlp.http']}",
            f"http://{HOST}:{ports['query.http-server']}",
            f"{HOST}:{ports['collector.otlp.grpc']}",
        )
        # Its health check says yes once every listener is up.
        health = f"http://{HOST}:{ports['admin.http']}/"
        wait_until_ready(process, log, lambda: bool(get_json(health)), "Jaeger")
        yield jaeger
