"""What the tests have workers run. Workers find this module by the parent's sys.path."""

import copyreg
import ctypes
import os
import pickle
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

WAIT_S = 30.0

seen: list[Any] = []  # what an initializer left in this worker


def square(n: Any) -> Any:
    return n * n


def echo(value: Any) -> Any:
    return value


class Block(bytearray):
    """Hands out its buffer, as the documentation of pickle has it."""

    def __reduce_ex__(self, _: Any) -> Any:
        return Block, (pickle.PickleBuffer(self),)


def block(size: int, content: int = 1) -> Block:
    return Block(bytes([content]) * size)


def add(*numbers: int, also: int = 0) -> int:
    return sum(numbers) + also


def pid(_: object = None) -> int:
    return os.getpid()


def note(path: Path, line: object) -> None:
    """Append a line; whole, whoever else appends."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def noted(path: Path, line: Any) -> Any:
    """A call with a side effect that can be counted; gives back what it wrote."""
    note(path, line)
    return line


def noted_fail(path: Path, line: Any) -> NoReturn:
    """Append a line, and fail with it."""
    note(path, line)
    raise ValueError(line)


def noted_if(path: Path, line: Any, gate: Path, needs_gate: bool) -> Any:
    """Append a line, and fail if a file is needed and is not there."""
    note(path, line)
    if needs_gate:
        gate.stat()
    return line


def noted_pid(path: Path, _: object = None) -> int:
    note(path, os.getpid())
    return os.getpid()


def wait_for(gate: Path) -> str:
    """Wait until a file is there."""
    deadline = time.monotonic() + WAIT_S
    while not gate.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{gate} did not come")
        time.sleep(0.002)
    return gate.name


def noted_wait(path: Path, line: Any, gate: Path) -> Any:
    """Append a line, then wait until a file is there."""
    note(path, line)
    wait_for(gate)
    return line


def gated(path: Path, gate: Path, closed: int, n: int) -> int:
    """Append n at once; but if it is `closed`, wait for the gate first."""
    if n == closed:
        wait_for(gate)
    note(path, n)
    return n


def remember(*values: Any) -> None:
    """An initializer."""
    seen[:] = values


def remembered(_: object = None) -> list[Any]:
    return seen


def count_start(path: Path) -> None:
    note(path, os.getpid())


def fail_to_start(path: Path) -> NoReturn:
    note(path, os.getpid())
    raise ValueError("this initializer fails")


def die_at_start(path: Path) -> NoReturn:
    note(path, os.getpid())
    os._exit(7)


def die_unless_first(path: Path) -> None:
    """An initializer that only the first worker survives."""
    note(path, os.getpid())
    if len(path.read_text().splitlines()) > 1:
        os._exit(7)


def use_queue(queue: Any, lock: Any) -> None:
    """An initializer with what multiprocessing shares only with the processes that it starts."""
    with lock:
        queue.put(os.getpid())


# --- Failures ---


class TwoArguments(Exception):
    """An exception that pickle cannot rebuild: it calls the class with one argument."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class Unloadable(Exception):
    """An exception whose loading raises another."""

    def __reduce__(self) -> Any:
        return int, ("not a number",)


class BadText(Exception):
    """An exception that cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class KeepsALock(Exception):
    """An exception that cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("held")
        self.lock = threading.Lock()


def raise_two_arguments() -> NoReturn:
    raise TwoArguments("one", "two")


def raise_unloadable() -> NoReturn:
    raise Unloadable("as it was raised")


def raise_bad_text() -> NoReturn:
    raise BadText


def raise_keeping_a_lock() -> NoReturn:
    raise KeepsALock


def throw(error: BaseException) -> NoReturn:
    raise error


class Outer:
    class Inner:
        @staticmethod
        def double(n: int) -> int:
            return 2 * n


def raise_value_error(text: str) -> NoReturn:
    raise ValueError(text)


def raise_chained() -> NoReturn:
    try:
        raise KeyError("inner")
    except KeyError as error:
        raise ValueError("outer") from error


def raise_bad_bytes_where_copyreg_pickles_less() -> NoReturn:
    copyreg.pickle(UnicodeDecodeError, _less)  # type: ignore[arg-type]
    b"\xff".decode()
    raise AssertionError


def _less(error: UnicodeDecodeError) -> Any:
    return UnicodeDecodeError.__new__, (UnicodeDecodeError,)


def raise_stop_iteration(_: int) -> NoReturn:
    raise StopIteration


def fork_and_come_back(how: str) -> str:
    child = os.fork()
    if not child:
        if how == "exit":
            raise SystemExit(3)
        if how == "raise":
            raise ValueError("of the child")
        return "child"
    _, status = os.waitpid(child, 0)
    return f"parent of {os.waitstatus_to_exitcode(status)}"


def raise_system_exit(code: int) -> NoReturn:
    raise SystemExit(code)


def raise_keyboard_interrupt() -> NoReturn:
    raise KeyboardInterrupt


def fail_at(failing: int, n: int) -> int:
    if n == failing:
        raise ValueError(f"item {n}")
    return n


def noted_fail_at(path: Path, failing: int, n: int) -> int:
    note(path, n)
    return fail_at(failing, n)


def make_lock(_: object = None) -> Any:
    return threading.Lock()


def make_deep(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def recurse(n: int = 0) -> int:
    return recurse(n + 1) + 1


class LoadsBy:
    """A value that is loaded by calling something."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> Any:
        return self.function, self.args


def make_unloadable(_: object = None) -> LoadsBy:
    return LoadsBy(raise_value_error, "it cannot be loaded")


def make_exit_on_load(_: object = None) -> LoadsBy:
    return LoadsBy(raise_system_exit, 3)


class ForThisProcess:
    """A value that loads only in the process that made it."""

    def __init__(self) -> None:
        self.pid = os.getpid()

    def __reduce__(self) -> Any:
        return load_here, (self.pid,)


def load_here(maker: int) -> ForThisProcess:
    if os.getpid() != maker:
        raise RuntimeError("only the process that made it can load it")
    return ForThisProcess()


def make_for_this_process() -> ForThisProcess:
    return ForThisProcess()


# --- Deaths ---


def kill_self(_: object = None, *, by: int = signal.SIGKILL) -> NoReturn:
    os.kill(os.getpid(), by)
    time.sleep(WAIT_S)  # a signal need not arrive before os.kill() returns
    raise AssertionError("the signal did not come")


def exit_self(code: int) -> NoReturn:
    os._exit(code)


def crash_self() -> None:
    ctypes.string_at(0)


def die_if_missing(path: Path, by: str) -> str:
    """Die, but only the first time."""
    if not path.exists():
        note(path, "died")
        if by == "kill":
            kill_self()
        os._exit(1)
    return "lived"


def die_on(path: Path, deadly: int, n: int) -> int:
    note(path, n)
    if n == deadly:
        kill_self()
    return n


def noted_pid_slowly(path: Path, n: int) -> int:
    note(path, f"{os.getpid()} {n}")
    time.sleep(0.002)
    return n


def noted_slowly(path: Path, n: int) -> int:
    note(path, n)
    time.sleep(0.01)
    return n


def noted_pid_wait(path: Path, gate: Path) -> int:
    note(path, os.getpid())
    wait_for(gate)
    return os.getpid()


def die_with(_: bytes) -> NoReturn:
    kill_self()


# --- What holds the interpreter's lock, or has a stack to show ---


def noted_hold_gil(path: Path, fifo: Path) -> int:
    """Append this process's id; then hold the interpreter's lock until a byte comes through a FIFO."""
    fd = os.open(fifo, os.O_RDONLY)
    note(path, os.getpid())
    ctypes.PyDLL(None).read(fd, ctypes.create_string_buffer(1), 1)  # PyDLL: as a C function that keeps the lock
    os.close(fd)
    return os.getpid()


def noted_match(path: Path) -> Any:
    """As good as endless, in C and with the lock held: a pattern that backtracks."""
    note(path, os.getpid())
    return re.fullmatch("(a+)+", "a" * 200 + "b")


def noted_power(path: Path) -> int:
    """Likewise: the multiplications of one pow()."""
    note(path, os.getpid())
    big = (1 << 400_000) - 1
    return pow(3, big, big)


def noted_descent(path: Path, gate: Path, depth: int) -> str:
    """Wait for a file some frames down."""
    if depth:
        return noted_descent(path, gate, depth - 1)
    note(path, os.getpid())
    return wait_for(gate)


def sum_below(n: int) -> int:
    """Busy for a millisecond or so with 20,000."""
    return sum(range(n))


# --- Waiting for one another ---


def zeros(size: int) -> bytes:
    return bytes(size)


def wait_or_open(gate: Path, waiting: int, opening: int, n: int) -> int:
    """Item `waiting` waits for a file, and item `opening` makes it."""
    if n == waiting:
        wait_for(gate)
    if n == opening:
        gate.touch()
    return n


def wait_or_echo(gate: Path, n: int) -> int:
    wait_for(gate)
    return n


def noted_pid_then_gate(path: Path, gate: Path) -> str:
    """Append this process's id, then wait until a file is there."""
    note(path, os.getpid())
    return wait_for(gate)


def fail_until(path: Path, good: int) -> int:
    """Raises ValueError until its `good`-th try; returns the number of the try."""
    note(path, os.getpid())
    tries = len(path.read_text().splitlines())
    if tries < good:
        raise ValueError(f"try {tries}")
    return tries


class Unstable:
    """What has no stable form, so that nobody can tell two of them apart or equal."""

    def __reduce__(self) -> Any:
        return Unstable, (), {"lambda": iter(())}

    def __setstate__(self, state: Any) -> None:
        pass


def size_of(path: Path) -> int:
    """The size of a file. Raises FileNotFoundError if it is not there."""
    return path.stat().st_size


def print_and_wait(text: str, gate: Path) -> str:
    """Print a line, then wait until a file is there."""
    print(text, flush=True)  # noqa: T201 - that is the point
    return wait_for(gate)


def result_of(future: Any) -> tuple[str, Any]:
    """What a future that is given as itself has for a kind, and its result."""
    return next(kind.__name__ for kind in type(future).__mro__ if kind.__name__ == "DurableFuture"), future.result(
        WAIT_S
    )
