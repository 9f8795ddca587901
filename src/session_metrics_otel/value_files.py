"""Doubles in the files that prometheus_client shares between processes, counted up in place.

In multi-process mode prometheus_client has, in ``PROMETHEUS_MULTIPROC_DIR``, a file per process and
kind of metric, mapped into memory: what is written there outlives the process, whatever ends it,
and ``MultiProcessCollector`` adds the files up. It makes the files here too, and gives each series
its place in them; only adding to one is done here, through a second mapping of the same file. Its
own way takes a lock and asks for the process's id each time, which is ten times the work.

``view[at] += 1.0`` is exact under threads: from its reading to its writing the interpreter runs
nothing but C code of its own, and lets no other thread in.
"""

from __future__ import annotations

import errno
import mmap
import os
import sys
import threading
from array import array
from typing import TYPE_CHECKING, Any, NamedTuple

from prometheus_client import values

from .catalog import Kind, label_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from .catalog import Metric
    from .series import Labels

_FILES = {
    Kind.COUNTER: ("counter", ""),
    Kind.HISTOGRAM: ("histogram", ""),
    Kind.UP_DOWN_COUNTER: ("gauge", "livesum"),  # they add up, over the processes that live
    Kind.GAUGE: ("gauge", "livemax"),  # these don't: the largest is shown
}

SPARE_BYTES = 1 << 20
"""Room that a disk must have for a series to be put there. Writing to a mapped file on a full disk
ends the process (SIGBUS), so it is asked before."""


def _closed() -> memoryview:
    view = memoryview(b"")
    view.release()
    return view


CLOSED: Any = _closed()
"""Where what has no place yet points to: using it is a ValueError, as after a fork."""


class Sample(NamedTuple):
    """One double: a line of /metrics."""

    metric: Metric
    labels: Labels
    suffix: str = ""
    bound: str = ""

    def new_value(self) -> Any:
        """Have prometheus_client give it a place; it is at 0 there, or where it was left."""
        kind, mode = _FILES[self.metric.kind]
        name = self.metric.prometheus_name
        named = zip(self.metric.attributes, self.labels, strict=True)
        labels = {label_name(name): text for name, text in named if text}
        if self.bound:
            labels["le"] = self.bound
        return values.ValueClass(
            kind, name.removesuffix("_total"), name + self.suffix,
            tuple(labels), tuple(labels.values()), self.metric.help, multiprocess_mode=mode,
        )  # fmt: skip


class Group:
    """Doubles that are given their places together, in one file.

    Attributes:
        view: The file, or ``CLOSED``.
        at: Where in it each of them is.
        samples: What they are.
    """

    __slots__ = ("_files", "_values", "at", "samples", "view")

    def __init__(self, files: ValueFiles, *samples: Sample) -> None:
        self._files = files
        self._values: list[Any] = []
        self.samples = samples
        self.view = CLOSED
        self.at: tuple[int, ...] = (0,) * len(samples)  # read before the view is

    def open(self) -> None:
        """See to it that they have their places. Never raises."""
        self._files.place(self)

    def at_work(self) -> None:
        """Say that this process counts events, and is not only there to have children."""
        self._files.at_work()

    @property
    def is_open(self) -> bool:
        """Whether they have."""
        try:
            self.view[0]
        except ValueError:
            return False
        return True

    def read(self) -> list[float]:
        """What they are at, in this process."""
        if not self.is_open:
            return [0.0] * len(self.samples)
        view, at = self.view, self.at
        return [view[index] for index in at]

    def find(self) -> tuple[str, tuple[int, ...]]:
        """The file that prometheus_client has put them in, and where they are there."""
        if self._values:
            for value in self._values:
                value.get()  # in a child after a fork, it goes on in a file of its own
        else:
            self._values = [sample.new_value() for sample in self.samples]
        found = [(value._file, value._file._positions[value._key]) for value in self._values]
        return found[0][0]._fname, tuple(position // 8 for _, position in found)


class ValueFiles:
    """The files of this process.

    Nobody waits here for anybody: a session may be collected, and come to count, inside any call at
    all, with any lock held. Who finds another at work counts in memory, and leaves it to that one
    to put it into the file.

    Args:
        complain: Told of each fault: a directory that is not there, or cannot be written.
        at_work: Called where an event is the first of its series.

    Attributes:
        lock: Held while places are given; by one who has nobody wait for him.
    """

    def __init__(self, complain: Callable[[Exception], None], at_work: Callable[[], None]) -> None:
        self._complain = complain
        self.at_work = at_work
        self.lock = threading.Lock()
        self._maps: dict[str, memoryview[float]] = {}
        self._views: list[memoryview[float]] = []
        self._memory: dict[Group, memoryview[float]] = {}
        self._put_off: list[Group] = []
        self._gauges: list[Group] = []
        self._retired = False

    def place(self, group: Group) -> None:
        """Give ``group`` its places: in its file, or in memory for as long as that is not to be."""
        if group.is_open:
            return
        fault = None
        if not _inside_prometheus_client() and self.lock.acquire(blocking=False):
            fault = self._place(group)
            self.lock.release()
        if not group.is_open:
            self._place_in_memory(group)
        if fault is None:
            self.settle()
        else:
            self._complain(fault)

    def settle(self) -> None:
        """Put into the files what is counted in memory, where that can be done."""
        if self._put_off and not _inside_prometheus_client() and self.lock.acquire(blocking=False):
            for _ in range(len(self._put_off)):
                group = self._put_off.pop(0)
                if self._place(group) is not None:
                    self._put_off.insert(0, group)
                    break
            self.lock.release()

    def leave_to_parent(self) -> None:
        """Let go of all places: what is counted in a child belongs in a file of its own."""
        for view in (*self._views, *self._memory.values()):
            view.release()
        self._views.clear()
        self._maps.clear()
        self._memory.clear()
        self._put_off.clear()
        self._gauges.clear()

    def retire_gauges(self) -> None:
        """Put every gauge to 0; from here on they are written nowhere."""
        with self.lock:
            self._retired = True
            for group in self._gauges:
                view, group.view = group.view, memoryview(bytearray(group.view.nbytes)).cast("d")
                for index in group.at:
                    view[index] = 0.0

    def _place(self, group: Group) -> Exception | None:
        try:
            self._place_in_file(group)
        except Exception as fault:  # noqa: BLE001 - never the session's trouble
            return fault
        return None

    def _place_in_file(self, group: Group) -> None:
        is_gauge = group.samples[0].metric.kind in (Kind.UP_DOWN_COUNTER, Kind.GAUGE)
        if is_gauge and self._retired:
            return
        _ask_for_room()
        name, at = group.find()
        view = self._map(name, max(at))
        if is_gauge and group not in self._gauges:
            self._gauges.append(group)
            for index in at:
                view[index] = 0.0  # what another left that had the same process id
        # As with counting, nothing comes between these two.
        group.at = at
        group.view = view
        memory = self._memory.get(group)
        if memory is not None:
            for number, index in enumerate(at):
                amount = memory[number]
                memory[number] = 0.0  # nor between these: another may be about to come back to it
                view[index] += amount

    def _place_in_memory(self, group: Group) -> None:
        size = len(group.samples)
        new: Any = memoryview(array("d", [0.0] * size))
        memory, at = self._memory.setdefault(group, new), tuple(range(size))
        group.at = at
        group.view = memory
        self._put_off.append(group)

    def _map(self, name: str, last: int) -> memoryview[float]:
        view = self._maps.get(name)
        if view is None or len(view) <= last:
            with open(name, "r+b") as file:  # noqa: PTH123 - for its number
                _allocate(file.fileno())
                view = memoryview(mmap.mmap(file.fileno(), 0)).cast("d")
            # The one that it takes the place of stays mapped for those who have it.
            self._maps[name] = view
            self._views.append(view)
        return view


def _ask_for_room() -> None:
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if directory and hasattr(os, "statvfs"):
        disk = os.statvfs(directory)
        if disk.f_bavail * disk.f_frsize < SPARE_BYTES:
            message = (
                f"PROMETHEUS_MULTIPROC_DIR={directory!r} has less than {SPARE_BYTES} bytes left. "
                "What is new is counted in this process's memory until there is room."
            )
            raise OSError(message)


def _allocate(file: int) -> None:
    """Have the disk's blocks for the whole file, which prometheus_client made with a hole."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, os.fstat(file).st_size)
        except OSError as refusal:
            if refusal.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise  # others come of file systems that don't know how


def _inside_prometheus_client() -> bool:
    """Whether this thread is just now where prometheus_client holds its lock.

    A session collected there, or a signal handler's, may come to count; its lock is not reentrant.
    """
    frame: Any = sys._getframe()
    while frame is not None:
        if frame.f_globals is vars(values):
            return True
        frame = frame.f_back
    return False
