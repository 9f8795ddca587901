"""Server processes of a test: on free ports of the loopback, stopped by the id they began with."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import time
import urllib.request
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HOST = "127.0.0.1"
PATIENCE = 60  # seconds that a server may take to do what a test waits for


PORTS = range(20_000, 32_000)
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and that nobody else is given.

    Not one of those that the kernel takes for outgoing connections: some client's might be on it
    before the server is there, or is there again.
    """
    for port in random.sample(PORTS, 100):
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
    raise OSError(f"no free port on {HOST} from {PORTS[0]} to {PORTS[-1]}")


def needs(what: str, path: Path | str | None) -> str:
    """``path`` where it is there; skips the test where it is not, and fails it in CI."""
    if path is not None and os.access(path, os.X_OK):
        return str(path)
    message = f"{what} is not on this machine: tests/servers/install puts it there"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@contextmanager
def running(
    command: list[str], log: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        with stopped_at_the_end(process):
            yield process


@contextmanager
def stopped_at_the_end(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def get_json(address: str) -> Any:
    with urllib.request.urlopen(address, timeout=10) as response:
        return json.load(response)


def wait_for(
    ask: Callable[[], Any], holds: Callable[[Any], bool], what: str, timeout: float = PATIENCE
) -> Any:
    """Ask until the answer holds; an answer that cannot be had yet does not."""
    ends = time.monotonic() + timeout
    answer: Any = None
    while time.monotonic() < ends:
        try:
            answer = ask()
        except OSError as refusal:
            answer = refusal
        else:
            if holds(answer):
                return answer
        time.sleep(0.2)
    pytest.fail(f"waited {timeout} s for {what}; the last answer was {answer!r}")


def wait_until_ready(
    process: subprocess.Popen[bytes], log: Path, ready: Callable[[], bool], what: str
) -> None:
    """Wait for a server just started; one that ends instead fails the test with what it said."""

    def ended_or_ready() -> bool:
        return process.poll() is not None or ready()

    wait_for(ended_or_ready, bool, f"{what} to be ready")
    if process.poll() is not None:
        said = log.read_text(errors="replace")[-2000:]
        pytest.fail(f"{what} ended with {process.returncode} instead of starting:\n{said}")
