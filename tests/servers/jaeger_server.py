"""A real Jaeger that receives spans by OTLP and is asked for them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from servers.processes import HOST, free_port, get_json, needs, running, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VERSION = "1.76.0"


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


@dataclass(frozen=True)
class Jaeger:
    otlp: str
    address: str

    def spans(self, service: str) -> list[Span]:
        asked = urlencode({"service": service, "limit": 1000})
        answer = get_json(f"{self.address}/api/traces?{asked}")
        return [_span(raw) for trace in answer["data"] for raw in trace["spans"]]

    def trace(self, trace_id: str) -> list[Span]:
        answer = get_json(f"{self.address}/api/traces/{trace_id}")
        return [_span(raw) for trace in answer["data"] for raw in trace["spans"]]

    def wait_for_spans(self, service: str, holds: Callable[[list[Span]], bool]) -> list[Span]:
        spans: list[Span] = wait_for(lambda: self.spans(service), holds, f"spans of {service}")
        return spans


def _tags(raw: list[dict[str, Any]]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in raw}


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
    command = [server, "--memory.max-traces=20000", "--log-level=warn"]
    command += [f"--{name}.host-port={HOST}:{port}" for name, port in ports.items()]
    # Where Jaeger would send spans of its own.
    environment = {"OTEL_TRACES_SAMPLER": "always_off", "JAEGER_DISABLED": "true"}
    with running(command, folder / "jaeger.log", environment):
        jaeger = Jaeger(
            f"http://{HOST}:{ports['collector.otlp.http']}",
            f"http://{HOST}:{ports['query.http-server']}",
        )
        wait_for(
            lambda: get_json(f"{jaeger.address}/api/services"),
            lambda answer: "data" in answer,
            "Jaeger to be ready",
        )
        yield jaeger
