"""How worker processes come to be, for each start method.

forkserver, spawn: multiprocessing starts them. It would import the script in each of them, which
runs an unguarded script again; workers need nothing of it, since what is defined there travels by
value, so that import is left out.

fork: a process that has threads must not fork, and ours has some as soon as it works. So a fork server
is forked with the first call, before it has any, and all workers are forked by the fork server, which does
nothing else. What they have of the script is as it was then, as with ProcessPoolExecutor.

    parent --request, descriptors-> fork server --fork--> worker
           <--started, ended--------

All of them, and what multiprocessing needs beside them, are in process groups of their own, in the
session of the executor's process. What is sent to a whole group is the parent's to heed: Ctrl-C, or
what a Jupyter kernel sends to its group when it shuts down or interrupts a cell. It would wait for
the end of each process of its group, and the resource tracker of multiprocessing ignores SIGTERM.
Workers learn that the parent is gone by the end of their sockets, however it went.
"""

import contextlib
import functools
import io
import mmap
import os
import pickle
import selectors
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection, reduction
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from ...code.modules import Snapshot, script
from ...slots import Slots, row_of
from ...value_files import Files
from . import worker
from .starting import our_start

Initializer = Callable[..., object] | None
OnDeath = Callable[[], None]


class Process:
    """A worker process, as far as the parent knows it; what is public of multiprocessing's is here too."""

    def __init__(self, on_death: OnDeath) -> None:
        self.pid: int | None = None  # not known before a fork server has said so
        self.exitcode: int | None = None  # None while it lives; -N after signal N
        self._on_death: OnDeath | None = on_death
        self._ended = threading.Event()

    def died(self) -> None:
        """Tell of its death, once; whoever is told is not kept alive any longer."""
        self._ended.set()
        on_death, self._on_death = self._on_death, None
        if on_death is not None:
            on_death()

    def is_alive(self) -> bool:
        """Whether its end has not been heard of."""
        return not self._ended.is_set()

    def join(self, timeout: float | None = None) -> None:
        """Wait until its end has been heard of, for `timeout` seconds at most."""
        self._ended.wait(timeout)

    def terminate(self) -> None:
        """End it by SIGTERM."""
        self.kill(signal.SIGTERM)

    def kill(self, signal_number: int | None = None) -> None:
        """Send a signal, SIGKILL if none is named, if it lives."""
        if self.pid is not None and self.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                # Named here, not as the default: the module is imported where there is no SIGKILL too.
                os.kill(self.pid, signal.SIGKILL if signal_number is None else signal_number)


def describe_exit(code: int | None) -> str:
    """Return in words how a process ended."""
    if code is None:
        return "an unknown cause"
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"signal {signal.Signals(-code).name}"
        return f"signal {-code}"
    return f"exit code {code}"


class Launcher:
    """Starts workers and tells of their deaths. `start()` uses multiprocessing; ForkServerLauncher differs."""

    def __init__(self, context: BaseContext, slots: Slots, initializer: Initializer, initargs: Sequence[Any]) -> None:
        self._context = context
        self._slots = slots
        # Without an initializer nobody sees its arguments, and they need not travel.
        self._setup = _Setup(initializer, initargs if initializer is not None else (), script())
        self.snapshot: Snapshot | None = None
        """What its workers have of the script by a fork."""
        self._selector: selectors.BaseSelector | None = None
        self._alive: dict[Process, Any] = {}

    def keep_large(self, files: Files) -> None:
        """Have workers that start keep large values in files."""
        self._setup = self._setup._replace(files=files)

    def attach(self, selector: selectors.BaseSelector) -> None:
        """Have deaths waited for by `selector`."""
        self._selector = selector

    def prepare(self) -> None:
        """Do what is to be done before a first call is described."""

    def start(self, slot: int, data: socket.socket, control: socket.socket, on_death: OnDeath) -> Process:
        """Start the worker of a slot with its ends of the sockets; `on_death` is called when it has ended."""
        made = self._context.Process(  # type: ignore[attr-defined]  # every concrete context has it
            target=worker.enter, args=(data, control, functools.partial(self._slots.row, slot), self._setup)
        )
        with our_start():
            try:
                made.start()
            except (EOFError, ConnectionError):  # the forkserver has died; it is started anew by the next start
                made.start()
        process = Process(on_death)
        process.pid = made.pid
        self._alive[process] = made
        if self._selector is not None:
            self._selector.register(made.sentinel, selectors.EVENT_READ, lambda _: self._ended(process))
        return process

    def _ended(self, process: Process) -> None:
        made = self._alive.pop(process)
        if self._selector is not None:
            self._selector.unregister(made.sentinel)
        made.join()
        process.exitcode = made.exitcode
        made.close()
        process.died()

    def close(self, kill_after_s: float | None = None) -> None:
        """Wait until all workers have ended; they have been told to. Those that do not in time are killed."""
        deadline = None if kill_after_s is None else time.monotonic() + kill_after_s
        for process in list(self._alive):
            made = self._alive[process]
            made.join(None if deadline is None else max(deadline - time.monotonic(), 0))
            if made.is_alive():
                made.kill()
            self._ended(process)
        self._selector = None
        self._setup = _Setup()

    def leave_to_parent(self) -> None:
        """After a fork, in the child: these are not its processes."""
        self._alive.clear()
        self._selector = None


class ForkServerLauncher(Launcher):
    """Starts workers by the fork of a process that has no threads."""

    _REQUEST = struct.Struct("!qq")  # process number, slot
    _MESSAGE = struct.Struct("!qqq")  # process number, pid, exit code or _STARTED
    _STARTED = 1 << 40

    def __init__(self, context: BaseContext, slots: Slots, initializer: Initializer, initargs: Sequence[Any]) -> None:
        super().__init__(context, slots, initializer, initargs)
        self._socket, theirs = socket.socketpair()
        self._numbers: dict[int, Process] = {}
        self._count = 0
        self._is_gone = False  # the fork server
        self._theirs: socket.socket | None = theirs  # until the fork server has it
        self._nursery: Any = None

    def prepare(self) -> None:
        """Fork the fork server, unless it is there."""
        if self._theirs is None:
            return
        # The child lets go of what the launcher has, and this is the child's.
        theirs, self._theirs = self._theirs, None
        self.snapshot = Snapshot()
        self._nursery = self._context.Process(target=self._tend, args=(theirs,))  # type: ignore[attr-defined]
        self._nursery.start()
        theirs.close()

    def attach(self, selector: selectors.BaseSelector) -> None:
        """Have the fork server's messages waited for by `selector`."""
        super().attach(selector)
        selector.register(self._socket, selectors.EVENT_READ, lambda _: self._receive())

    def start(self, slot: int, data: socket.socket, control: socket.socket, on_death: OnDeath) -> Process:
        """As in Launcher; the pid is known later."""
        self.prepare()
        if self._is_gone:
            raise RuntimeError("the process that forks the workers has died")
        socket.send_fds(
            self._socket, [self._REQUEST.pack(self._count, slot)], [data.fileno(), control.fileno(), self._slots.fd]
        )
        process = self._numbers[self._count] = Process(on_death)
        self._count += 1
        return process

    def _receive(self) -> bool:
        """Take in one message; False when there will be no more."""
        data = b""
        while len(data) < self._MESSAGE.size:
            with contextlib.suppress(ConnectionResetError):
                if more := self._socket.recv(self._MESSAGE.size - len(data)):
                    data += more
                    continue
            if self._selector is not None:
                self._selector.unregister(self._socket)
                self._selector = None
            self._is_gone = True
            for process in list(self._numbers.values()):
                process.died()
            self._numbers.clear()
            return False
        number, pid, code = self._MESSAGE.unpack(data)
        process = self._numbers[number]
        process.pid = pid
        if code != self._STARTED:
            del self._numbers[number]
            process.exitcode = code
            process.died()
        return True

    def close(self, kill_after_s: float | None = None) -> None:
        """Wait until all workers and the fork server have ended."""
        if self._socket.fileno() == -1:  # closed before
            return
        if self._theirs is not None:  # there never was a fork server
            self._theirs.close()
        else:
            self._socket.shutdown(socket.SHUT_WR)
            self._socket.settimeout(kill_after_s)
            receiving = True
            while receiving:
                try:
                    receiving = self._receive()
                except TimeoutError:
                    self._socket.settimeout(None)
                    for process in self._numbers.values():
                        process.kill()
            self._nursery.join()
            # Another thread that starts a process may have seen its end just now, and not noted it yet.
            with contextlib.suppress(ValueError):
                self._nursery.close()
        self._socket.close()
        super().close()

    def leave_to_parent(self) -> None:
        """After a fork, in the child: neither is the fork server."""
        super().leave_to_parent()
        self._socket.close()
        if self._theirs is not None:
            self._theirs.close()

    def _tend(self, parent: socket.socket) -> None:
        """The fork server's own life: start workers on request, tell of their ends, end after the last."""
        os.setpgid(0, 0)  # first, so that there is hardly a moment in which Ctrl-C reaches it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._socket.close()
        children: dict[int, tuple[int, Any]] = {}
        listening = True
        while listening or children:
            for ready in connection.wait([parent, *children] if listening else list(children)):
                if ready is parent:
                    request, fds, _, _ = socket.recv_fds(parent, self._REQUEST.size, 3)
                    if not request:
                        listening = False
                        continue
                    number, slot = self._REQUEST.unpack(request)
                    made = self._context.Process(target=self._run_worker, args=(parent, fds, slot))  # type: ignore[attr-defined]
                    made.start()
                    for fd in fds:
                        os.close(fd)
                    children[made.sentinel] = number, made
                    code = self._STARTED
                else:
                    number, made = children.pop(ready)  # type: ignore[arg-type]  # a sentinel is an int here
                    made.join()
                    code = made.exitcode
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    parent.sendall(self._MESSAGE.pack(number, made.pid, code))

    def _run_worker(self, parent: socket.socket, fds: Sequence[int], slot: int) -> None:
        parent.close()
        data, control = (socket.socket(fileno=fd) for fd in fds[:2])
        shared = mmap.mmap(fds[2], 0)  # its file was made after the fork server
        os.close(fds[2])
        worker.enter(data, control, functools.partial(row_of, shared, slot), self._setup)


def make_launcher(context: BaseContext, slots: Slots, initializer: Initializer, initargs: Sequence[Any]) -> Launcher:
    """The launcher for a context's start method."""
    forks = context.get_start_method() == "fork"
    return (ForkServerLauncher if forks else Launcher)(context, slots, initializer, initargs)


class _Setup(NamedTuple):
    """What a worker needs before its first call, on its way there.

    The initializer and its arguments may hold locks and queues of multiprocessing, which can be
    pickled only while a process is being started, and functions of the script, which must go by
    value. The worker unpacks them itself, so that it can report what goes wrong there.
    """

    initializer: Initializer = None
    initargs: Sequence[Any] = ()
    script: tuple[str, str] | None = None  # how a worker can import it, if it must: ("path" or "name", which)
    is_forked: bool = True  # whether the worker has all that the script had when the executor was made
    files: Files | None = None  # where large values are

    def __reduce__(self) -> Any:
        if self.initializer is None:
            return _Packed, (pickle.dumps((None, ())), self.script, False, self.files)
        from ...code import namespaces  # 30 ms of imports

        # What multiprocessing knows of connections may be in it. Once only: each time, they are handed to the
        # process that is being started.
        table = reduction.ForkingPickler(io.BytesIO()).dispatch_table
        data = namespaces.dump((self.initializer, self.initargs), table=table).data
        return _Packed, (data, self.script, False, self.files)

    def unpack(self) -> Any:
        """It is unpacked where it was inherited by a fork."""
        return self.initializer, self.initargs


class _Packed(NamedTuple):
    """A _Setup that has arrived in a worker."""

    data: bytes
    script: tuple[str, str] | None
    is_forked: bool = False
    files: Files | None = None

    def unpack(self) -> Any:
        """Return the initializer and its arguments. Raises whatever their loading raises."""
        return pickle.loads(self.data)
