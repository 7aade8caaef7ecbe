"""Pickles whose large parts are in files of a store, see value_files.py.

    writing()    what is pickled in this thread meanwhile has its large parts written: by a Writer
    Reference    stands in the pickle, which is stored and sent, for what is in files
    reading()    what is loaded in this thread meanwhile finds its files

A pickle that refers to files anywhere within begins in one way (`is_reference()`), and has their names as they are: so
a store finds what refers to a file without loading anything.
"""

import contextlib
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .errors import StoreError, ValueLost
from .value_files import Files, Pin, Place, names_in, place_of, size_of

MOST_PARTS = 128  # files of a pickle, each of which is open until what refers to it is stored; the rest stays together
LARGE = 1 << 18  # bytes, from which a file costs less than the way through row and pipe: see docs/design.md


class Reference:
    """Is pickled as what loads a value from files."""

    def __init__(self, stream: "bytes | str", parts: Sequence["bytearray | str"], loader: str) -> None:
        self._call = stream, parts, loader

    def __reduce__(self) -> Any:
        return load, self._call


class _Held:
    """Is pickled as what loads a pickle, so that it begins as a Reference does."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __reduce__(self) -> Any:
        return held, (self._data, None)


class Writer:
    """What large parts of pickles go into, while there is one in this thread."""

    def __init__(self, files: Files, task: str = "") -> None:
        """With `task` they are those of the result of that task."""
        self.task = task
        self.pins: list[Pin] = []
        """What keeps them from being removed."""
        self.failed: OSError | StoreError | None = None
        """Why some could not be written, which stay in the pickle."""
        self._files = files
        self._hashes: dict[Place, bytes] = {}
        self._alive: list[Any] = []  # else other things might be in their places

    def reference(self, stream: bytes, buffers: Sequence[memoryview], loader: str) -> Reference:
        """Return what stands for a pickle and its buffers, of which those that are large are in files now."""
        parts = [self._part(buffer) for buffer in buffers]
        whole: bytes | str = stream
        if len(stream) >= LARGE:
            part = self._part(memoryview(stream))
            whole = part if isinstance(part, str) else stream
        return Reference(whole, parts, loader)

    def _part(self, data: memoryview) -> "bytearray | str":
        try:
            if self.task:
                return self._files.keep_result(data, self.task)
            name, digest, pin = self._files.keep(data)
        except (OSError, StoreError) as error:
            self.failed = error
            return bytearray(data)
        self.pins.append(pin)
        place = place_of(data)
        if place is not None and not self.task:
            self._alive.append(data)
            self._hashes[place] = digest
        return name

    def hash_of(self, data: memoryview) -> bytes | None:
        """Return the hash of a buffer, if it was written, and so is known."""
        place = place_of(data)
        return None if place is None else self._hashes.get(place)

    def check(self) -> None:
        """Raise StoreError if something could not be written."""
        if isinstance(self.failed, StoreError):
            raise self.failed
        if self.failed is not None:
            raise StoreError(
                f"a large value cannot be kept in {self._files.folder}: {self.failed.strerror}; free some space, or use"
                " a store in a folder that you can write to"
            ) from self.failed


class _Here(threading.local):
    writer: Writer | None = None
    files: Files | None = None  # where values are read from

    def __init__(self) -> None:
        self.pins: list[Pin] = []  # of a call that is about to be added


here = _Here()
default: Files | None = None
"""Where a worker reads values from, all of whose calls are of one store."""


@contextlib.contextmanager
def writing(files: Files | None) -> Iterator[Writer | None]:
    """Have large parts of what is pickled in this thread go into files, if there are any."""
    before = here.writer
    here.writer = writer = None if files is None else Writer(files)
    try:
        yield writer
        if writer is not None:
            writer.check()
    except BaseException:
        if writer is not None:
            release(writer.pins)
        raise
    finally:
        here.writer = before


@contextlib.contextmanager
def reading(files: Files | None) -> Iterator[None]:
    """Have what is loaded in this thread find its files."""
    before, here.files = here.files, files
    try:
        yield
    finally:
        here.files = before


def release(pins: list[Pin]) -> None:
    """Let go of pins: what refers to the files is committed, or will never be."""
    while pins:
        pins.pop().release()


def is_long(args: str, kwargs: str | None) -> bool:
    """Return whether the arguments of a call are so long, as JSON, that they are pickled to be in a file."""
    return len(args) >= LARGE or (kwargs is not None and len(args) + len(kwargs) >= LARGE)


def dumps(value: Any) -> bytes:
    """Return a value as a pickle, without what is large if somebody takes that."""
    writer = here.writer
    if writer is None:
        return pickle.dumps(value, 5)
    buffers: list[memoryview] = []
    stream = pickle.dumps(value, 5, buffer_callback=collector(buffers))
    return finish(stream, buffers)


def finish(stream: bytes, buffers: Sequence[memoryview], loader: str = "") -> bytes:
    """Return a pickle, without what is large: its buffers that were collected, and itself.

    `loader` says which of `loaders` is to load it.
    """
    writer = here.writer
    if writer is None or not (buffers or len(stream) >= LARGE):
        return stream
    return pickle.dumps(writer.reference(stream, buffers, loader), 5)


def collector(buffers: list[memoryview]) -> Callable[[pickle.PickleBuffer], bool]:
    """Return what takes the large buffers of a pickle, as its `buffer_callback`."""

    def take(buffer: pickle.PickleBuffer) -> bool:
        try:
            data = buffer.raw()
        except BufferError:  # not all in one place
            return True
        if data.nbytes < LARGE or len(buffers) == MOST_PARTS:
            return True
        buffers.append(data)
        return False

    return take


def held(data: bytes, _: None = None) -> Any:
    """Return what a pickle holds that refers to files somewhere within."""
    return pickle.loads(data)


def hold(data: bytes) -> bytes:
    """Return a pickle that refers to files as one that shows it by its beginning."""
    return data if is_reference(data) else pickle.dumps(_Held(data), 5)


def is_reference(data: bytes) -> bool:
    """Return whether a pickle begins as those do that refer to files."""
    return data[BEGINS_AT : BEGINS_AT + len(BEGINNING)] == BEGINNING


def size_with_files(data: bytes) -> int:
    """Return how many bytes a pickle has, with those of the files to which it refers."""
    return len(data) + (sum(map(size_of, names_in(data))) if is_reference(data) else 0)


BEGINS_AT = 11  # behind the protocol, and the length of the frame
BEGINNING = b"\x8c%c%b" % (len(__name__), __name__.encode())


loaders: dict[str, Callable[[Any, list[Any]], Any]] = {"": lambda data, buffers: pickle.loads(data, buffers=buffers)}
"""What loads pickles, given one and its buffers."""


def load(stream: bytes | str, parts: Sequence[bytearray | str], loader: str) -> Any:
    """Return the value of a Reference. Raises ValueLost."""
    files = here.files or default
    if files is None:
        raise ValueLost("a large value is in a file of its store, and is loaded without it: ask a future for it")
    buffers = [memoryview(files.open(part)) if isinstance(part, str) else part for part in parts]
    return loaders[loader](files.open(stream) if isinstance(stream, str) else stream, buffers)


def hash_of(data: memoryview) -> bytes | None:
    """Return the hash of a buffer that was written just now in this thread, or None."""
    writer = here.writer
    return None if writer is None or data.nbytes < LARGE else writer.hash_of(data)


def _after_fork_in_child() -> None:
    here.writer, here.pins = None, []


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
