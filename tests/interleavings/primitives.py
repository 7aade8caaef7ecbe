"""What the package uses of threads, clocks, pipes and signals, as virtual ones: each operation hands over control.

A `World` has them all, for one schedule, and puts them into a copy of the package's modules (instrument.py) in place of
the modules `threading`, `time`, `os` and so on. They do what the real ones do as far as the package relies on it. What
would be undefined with real ones (to write to a file that is closed, to let go of a lock that another thread has) fails
the schedule.
"""

import concurrent.futures._base as futures
import contextlib
import os
import selectors
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty
from types import SimpleNamespace
from typing import Any

from instrument import Copy
from scheduler import Scheduler, VirtualThread, replaced

EPOCH_US = 1_790_000_000_000_000
PIPE_BYTES = 65_536


class World:
    """See the module's docstring."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.files = Files(scheduler)
        self.threading = SimpleNamespace(
            Lock=lambda: Lock(scheduler),
            RLock=lambda: RLock(scheduler),
            Event=lambda: Event(scheduler),
            Condition=lambda: Condition(scheduler),
            Thread=lambda target, name, daemon=None: VirtualThread(scheduler, target, name),
            get_ident=lambda: self._me().ident,
            current_thread=self._me,
            main_thread=lambda: scheduler.threads[0],
        )
        self.time = SimpleNamespace(monotonic=scheduler.clock, time_ns=lambda: self.now() * 1000)
        files = self.files
        self.os = SimpleNamespace(
            pipe=files.pipe, read=files.read, write=files.write, open=files.open, close=files.close,
            set_blocking=lambda fd, blocking: None, O_RDWR=os.O_RDWR, O_NONBLOCK=os.O_NONBLOCK, O_WRONLY=os.O_WRONLY,
            O_NOFOLLOW=os.O_NOFOLLOW,
        )  # fmt: skip
        self.selectors = SimpleNamespace(
            EVENT_READ=selectors.EVENT_READ, SelectorKey=selectors.SelectorKey, BaseSelector=selectors.BaseSelector,
            DefaultSelector=lambda: Selector(scheduler, files),
        )  # fmt: skip

    def now(self) -> int:
        """The time, as `stores.base.now()` has it."""
        return EPOCH_US + int(self.scheduler.clock() * 1e6)

    @contextlib.contextmanager
    def installed(self, copy: Copy) -> Iterator[None]:
        """Have the copy's modules, and futures, use it."""
        names: dict[str, Any] = {
            "threading": self.threading, "time": self.time, "os": self.os, "selectors": self.selectors,
            "SimpleQueue": lambda: SimpleQueue(self.scheduler), "now": self.now, "getsignal": self._getsignal,
            "set_signal": lambda number, handler: self.scheduler.set_handler(handler), "_log": _Silent(),
            "get_ident": self.threading.get_ident, "set_wakeup_fd": lambda fd, warn_on_full_buffer=True: -1,
            "sessions": SimpleNamespace(leave=lambda address: None), "open_pipe": self._open_pipe,
            "_making": RLock(self.scheduler),
        }  # fmt: skip
        for module in copy.modules.values():
            module.__dict__.update(__point__=self.scheduler.point, __signals__=self.scheduler.signals)
            for name in names.keys() & module.__dict__.keys():
                module.__dict__[name] = names[name]
        # In the order of their addresses, wait() would take the locks of futures, and no seed would replay.
        futures.__dict__.setdefault("id", id)
        with replaced(futures, threading=self.threading, id=lambda future: future._number):
            yield

    def _open_pipe(self, path: Any) -> int:
        return self.files.open(path, os.O_RDWR)

    def _getsignal(self, number: int) -> Any:
        return self.scheduler.handler

    def _me(self) -> VirtualThread:
        assert self.scheduler.current is not None
        return self.scheduler.current


class _Silent:
    """A log that nobody reads."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **how: None


class Lock:
    """As threading.Lock, which any thread may let go of."""

    _is_reentrant = False

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._holder: VirtualThread | None = None
        self._count = 0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        scheduler = self._scheduler
        scheduler.operation()
        if self._is_reentrant and self._holder is scheduler.current:
            self._count += 1
            return True
        if self._holder is not None:
            if not blocking:
                return False
            deadline = None if timeout < 0 else scheduler.clock() + timeout
            if not scheduler.block(f"a lock that {self._holder.name} has", lambda: self._holder is None, deadline):
                return False
        self._holder, self._count = scheduler.current, 1
        return True

    def release(self) -> None:
        if self._holder is None or (self._is_reentrant and self._holder is not self._scheduler.current):
            self._scheduler.fail("a lock is let go of that the thread does not have")
        self._count -= 1
        if not self._count:
            self._holder = None
            self._scheduler.operation()

    def locked(self) -> bool:
        return self._holder is not None

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class RLock(Lock):
    """As threading.RLock."""

    _is_reentrant = True

    def _is_owned(self) -> bool:
        return self._holder is self._scheduler.current


class Condition(threading.Condition):
    """As threading.Condition, of which futures use no wait(). It is written in Python, so signals come within."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(RLock(scheduler))  # type: ignore[arg-type]
        self._scheduler = scheduler

    def __enter__(self) -> bool:
        entered = super().__enter__()
        self._scheduler.signals()
        return entered


class Event:
    """As threading.Event."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._is_set = False

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        self._scheduler.operation()

    def clear(self) -> None:
        self._is_set = False
        self._scheduler.operation()

    def wait(self, timeout: float | None = None) -> bool:
        scheduler = self._scheduler
        scheduler.operation()
        deadline = None if timeout is None else scheduler.clock() + timeout
        return scheduler.block("an event", self.is_set, deadline)


class SimpleQueue:
    """As queue.SimpleQueue."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._items: deque[Any] = deque()

    def put(self, item: Any) -> None:
        self._items.append(item)
        self._scheduler.operation()

    def empty(self) -> bool:
        return not self._items

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        scheduler = self._scheduler
        scheduler.operation()
        deadline = None if timeout is None else scheduler.clock() + timeout
        if not scheduler.block("an item of a queue", lambda: bool(self._items), deadline):
            raise Empty
        return self._items.popleft()


class _Pipe:
    """What is in a pipe: only how many bytes matter."""

    def __init__(self) -> None:
        self.size = 0
        self.is_silent = False  # whether its readers are gone


class Files:
    """Pipes by file descriptor, which is never used twice, and FIFOs by path."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._open: dict[int, _Pipe] = {}
        self._fifos: dict[str, _Pipe] = {}
        self._made = 100

    def pipe(self) -> tuple[int, int]:
        pipe = _Pipe()
        return self._add(pipe), self._add(pipe)

    def open(self, path: object, flags: int) -> int:
        pipe = self._fifos.setdefault(str(path), _Pipe())
        if pipe.is_silent:
            raise OSError("nobody listens")
        return self._add(pipe)

    def notify(self, path: object) -> None:
        """Write to a FIFO, as another process does."""
        self._fifos.setdefault(str(path), _Pipe()).size += 1
        self._scheduler.operation()

    def silence(self, path: object) -> None:
        """Have the readers of a FIFO be gone, as those of a process that dies."""
        self._fifos.setdefault(str(path), _Pipe()).is_silent = True
        self._scheduler.operation()

    def close(self, fd: int) -> None:
        self._pipe(fd, "closed")
        del self._open[fd]
        self._scheduler.operation()

    def write(self, fd: int, data: bytes) -> int:
        if fd not in self._open and self._scheduler.failure is not None:
            return 0
        pipe = self._pipe(fd, "written to")
        if pipe.size + len(data) > PIPE_BYTES:
            raise BlockingIOError
        pipe.size += len(data)
        self._scheduler.operation()
        return len(data)

    def read(self, fd: int, count: int) -> bytes:
        pipe = self._pipe(fd, "read")
        self._scheduler.operation()
        if not pipe.size:
            raise BlockingIOError
        taken = min(count, pipe.size)
        pipe.size -= taken
        return b"!" * taken

    def is_readable(self, fd: int) -> bool:
        pipe = self._open.get(fd)
        return pipe is not None and (pipe.size > 0 or pipe.is_silent)

    def left_open(self, kept: tuple[int, ...]) -> int:
        """How many there are, but for those that are never closed."""
        return len(self._open.keys() - kept)

    def _add(self, pipe: _Pipe) -> int:
        self._made += 1
        self._open[self._made] = pipe
        return self._made

    def _pipe(self, fd: int, how: str) -> _Pipe:
        if fd not in self._open:
            self._scheduler.fail(f"a file is {how} that is closed, by {self._scheduler.current.name}")  # type: ignore[union-attr]
        return self._open[fd]


class Selector:
    """As selectors.DefaultSelector, for reading."""

    def __init__(self, scheduler: Scheduler, files: Files) -> None:
        self._scheduler = scheduler
        self._files = files
        self._keys: dict[int, selectors.SelectorKey] = {}
        self._is_closed = False

    def register(self, fd: int, events: int, data: Any = None) -> selectors.SelectorKey:
        key = self._keys[fd] = selectors.SelectorKey(fd, fd, events, data)
        self._scheduler.operation()
        return key

    def unregister(self, fd: int) -> selectors.SelectorKey:
        self._scheduler.operation()
        return self._keys.pop(fd)

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        scheduler = self._scheduler
        scheduler.operation()
        if self._is_closed:
            scheduler.fail("a selector is asked that is closed")
        deadline = None if timeout is None else scheduler.clock() + max(timeout, 0)
        scheduler.block("events", self._has_some, deadline)
        return [(key, key.events) for key in self._ready()]

    def close(self) -> None:
        self._is_closed = True
        self._keys.clear()
        self._scheduler.operation()

    def _has_some(self) -> bool:
        return any(map(self._files.is_readable, self._keys))

    def _ready(self) -> list[selectors.SelectorKey]:
        return [key for fd, key in self._keys.items() if self._files.is_readable(fd)]
