"""Files that calls read: what stands for their content, so that a resumed run sees whether it is another.

A digest is remembered with what `stat` says of the file: size, times of change of content and inode, and inode. None of
them can be trusted alone. Whoever writes can set the modification time back, but not that of the inode; and both are
the kernel's clock, which stands still for some milliseconds: what is written twice within them has the same times.
So a digest is remembered only of a file whose last change was over for a while when it was read.
"""

import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import NamedTuple

from . import hashes
from .errors import InputError, InputIsFolder, InputNotFound

_PIECE_BYTES = 1 << 20
_SETTLED_NS = 2 * 10**9  # how long a change is over before another one surely has another time: FAT's clock has 2 s
_MOST_READINGS = 3  # of a file that is written to meanwhile
_MOST_KNOWN = 100_000
_KINDS = {errno.ENOENT: InputNotFound, errno.ENOTDIR: InputNotFound, errno.EISDIR: InputIsFolder}
_COMPILED = "__pycache__"  # appears by the code being run


class InputFile(os.PathLike[str]):
    """A path of a file that a call reads. Its content is part of what identifies the call.

        executor.submit(parse, InputFile("data/jan.csv"))

    It is accepted wherever a path is: `open(file)`, `pathlib.Path(file)`, `os.fspath(file)`. In a run that is resumed
    the call runs again if the file's content is another, whatever its times are. What counts is the content when the
    call is submitted, and the path as it is given: a relative one stays the same when a project is moved.

    A call whose file is missing (InputNotFound), a folder (InputIsFolder), or cannot be read (InputError) is not
    stored, and its future fails with that.

    >>> Path("jan.csv").write_text("1,2")
    3
    >>> executor.submit(os.path.getsize, InputFile("jan.csv")).result()
    3
    """

    __slots__ = ("_path",)
    _path: str

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        if not isinstance(text, str):
            raise TypeError(f"an InputFile has a path that is text, not {path!r}")
        if not text:
            raise ValueError("an InputFile has a path, and this one is empty")
        object.__setattr__(self, "_path", text)

    @property
    def path(self) -> str:
        """The path, as it was given."""
        return self._path

    def __fspath__(self) -> str:
        return self._path

    def __str__(self) -> str:
        return self._path

    def __repr__(self) -> str:
        return f"InputFile({self._path!r})"

    def __eq__(self, other: object) -> bool:
        return self._path == other._path if isinstance(other, InputFile) else NotImplemented

    def __hash__(self) -> int:
        return hash((InputFile, self._path))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an InputFile cannot be changed: make another one instead of setting {name!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an InputFile cannot be changed: {name!r} stays")

    def __reduce__(self) -> tuple[type["InputFile"], tuple[str]]:
        return InputFile, (self._path,)


class _Stat(NamedTuple):
    """What changes with the content of a file, as far as can be seen without reading it."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    device: int

    @classmethod
    def of(cls, found: os.stat_result) -> "_Stat":
        return cls(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)

    def is_settled(self, moment_ns: int) -> bool:
        """Return whether a change after that moment would be seen."""
        return max(self.modified_ns, self.changed_ns) + _SETTLED_NS < moment_ns


_known: dict[str, tuple[_Stat, bytes]] = {}  # by absolute path


def file_digest(path: str) -> bytes:
    """Return 16 bytes that stand for the content of a file. It is read once, as long as `stat` says the same of it.

    Raise InputError where there is no such file, or none that can be read.
    """
    place = os.path.abspath(path)  # the current folder may change
    try:
        known = _known.get(place)
        if known is not None and _Stat.of(os.stat(place)) == known[0]:
            return known[1]
        return _read(path, place)
    except OSError as error:
        if isinstance(error, InputError):
            raise
        raise _error(error.errno or 0, path, error.strerror or str(error)) from error


def _read(path: str, place: str) -> bytes:
    mode = os.stat(place).st_mode
    if stat.S_ISREG(mode):  # before it is opened: a FIFO would wait for a writer
        with open(place, "rb", buffering=0) as file:
            for _ in range(_MOST_READINGS):
                moment_ns = time.time_ns()
                before = _Stat.of(os.fstat(file.fileno()))
                hashed = hashes.begin(before.size)
                file.seek(0)
                while piece := file.read(_PIECE_BYTES):
                    hashed.update(piece)
                if before == _Stat.of(os.fstat(file.fileno())):
                    digest = hashes.end(hashed)
                    if before.is_settled(moment_ns):
                        if len(_known) >= _MOST_KNOWN:
                            _known.clear()
                        _known[place] = before, digest
                    return digest
        raise _error(errno.EBUSY, path, "it is written to while it is read, so nothing stands for its content")
    if stat.S_ISDIR(mode):
        raise _error(errno.EISDIR, path, "it is a folder, and an InputFile is one file")
    raise _error(errno.EINVAL, path, "it is no regular file, so it cannot be read twice")


def _error(number: int, path: str, what: str) -> InputError:
    kind = _KINDS.get(number, InputError)
    where = "" if os.path.isabs(path) else f" (in {os.getcwd()})"
    return kind(number, f"{what}{where}", path)


def files_digest(path: str) -> bytes:
    """Return what stands for the content of a file, or of all files in a folder, with their names in it.

    Raise InputError where there is nothing, or a file that cannot be read.
    """
    if not os.path.isdir(path):
        return file_digest(path)
    whole = hashes.begin(0)
    for name, place in sorted(_files(path)):
        encoded = name.encode("utf-8", "surrogateescape")
        # A socket, or a link to nothing, as editors leave them, has no content.
        whole.update(b"%d:%b" % (len(encoded), encoded) + (file_digest(place) if os.path.isfile(place) else bytes(16)))
    return hashes.end(whole)


def _files(folder: str) -> Iterator[tuple[str, str]]:
    """Yield the files in a folder, also in those that links lead to: their paths within it, and as a whole."""

    def fail(error: OSError) -> None:
        raise _error(error.errno or 0, error.filename or folder, error.strerror or str(error)) from error

    seen: set[tuple[int, int]] = set()  # folders, which links may lead back to
    for place, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        found = os.stat(place)
        if (found.st_dev, found.st_ino) in seen:
            folders.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        folders[:] = sorted(name for name in folders if name != _COMPILED)
        for name in names:
            whole = os.path.join(place, name)
            yield os.path.relpath(whole, folder), whole
