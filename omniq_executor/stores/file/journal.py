"""The journal of the file store: what makes a turn over many files one transaction.

    header    format, generation, how far the entries are applied, and the boot they were written in
    entry     who wrote it, its length, its checksum, and how much of it is about the counts; then what it says of
              the counts, see counts.py, and the new text of each task it changes
    entry     ...

A turn is appended as one entry, and is committed by that. Then the tasks' own files are written, and
last the header says so. Whoever takes the lock next and finds an entry that is not applied writes its
files again, which is harmless: every text carries the version of its task. A torn entry at the end was
never committed and is cut off.

It serves two more ends. Other processes read from it what has changed since they last looked, so
nobody lists folders. And with `durable` a turn costs one fsync, of the journal, however many tasks it
has: after a cut of the power the whole journal is applied again.

Once the entries take ROTATE_BYTES it is begun anew, as another file of the same name, whose first entry has the
counts so far: so they cannot be of another moment than the journal that goes on from them. Whoever had the old
one open reads its rest first; whoever missed more than one has to look at everything again.

An older version wrote entries that say nothing of the counts, and would take those of this one for torn. So the
version in the header rises before the first of these is written, and that one reads no further.

Every method is called under the store's lock.
"""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ...errors import StoreError, StoreVersionError
from .. import permissions
from .records import END

VERSION = 2
ROTATE_BYTES = 8 << 20
UNKNOWN = b"null"  # what an entry says of the counts after which nobody knows them
_HEADER_BYTES = 128
_HEAD_BYTES = 80  # that stand before an entry at most
_MAGIC = b"omniq-journal"
_UNCHECKED = "unchecked"  # instead of a boot

Place = tuple[int, int]  # generation, and where its entries end


class Entry(NamedTuple):
    """One turn: who took it (an owner's id, or 0), and the new texts of the tasks that it changed."""

    by: int
    texts: list[bytes]
    counts: bytes  # what it says of them, see counts.py


class Journal:
    """See the module's docstring."""

    def __init__(self, path: Path, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._fd = -1
        self._inode = 0
        self._generation = 0
        self._applied = _HEADER_BYTES  # where the entries end whose files are written
        self._read_to = _HEADER_BYTES  # where the entries end that this process knows of
        self._last = _HEADER_BYTES  # where the entry begins that was appended last
        self._first = _HEADER_BYTES  # where the entries begin that are not the counts so far
        self._boot = _boot_id()

    def open(self, counts: Callable[[], bytes]) -> tuple[bool, bool]:
        """Open it, or make it, with the counts there are then.

        Return whether it was made, and whether the machine was started anew since it was last written, or somebody
        died before all was checked. Then nothing is sure that an fsync did not make sure: all entries are taken
        for not applied.
        """
        made = False
        try:
            boot = self._attach()
        except (FileNotFoundError, ValueError):  # there is none, or a cut of power left half of one
            self.close()
            self._begin(1, _UNCHECKED, counts())
            self._attach()
            made, boot = True, self._boot
        self._read_to = self._applied
        if boot == self._boot:
            return made, False
        self._applied = self._read_to = _HEADER_BYTES
        return made, True

    def close(self) -> None:
        if self._fd != -1:
            os.close(self._fd)
            self._fd = -1

    def unread_entries(self) -> tuple[list[Entry], bool]:
        """Return the entries of others since the last look, and whether some are missing between them."""
        entries: list[Entry] = []
        missed = False
        found = os.stat(self._path, follow_symlinks=False)
        if found.st_ino != self._inode:
            entries = self._read(self._read_to)
            generation = self._generation
            os.close(self._fd)
            self._attach()
            self._read_to = _HEADER_BYTES
            missed = self._generation != generation + 1
        elif found.st_size > self._read_to:
            self._applied = _parse_header(os.pread(self._fd, _HEADER_BYTES, 0)).applied
        else:
            return entries, missed
        return entries + self._read(self._read_to), missed

    def unapplied(self) -> list[Entry]:
        """Return the entries whose files may not be written; a torn one at the end is cut off."""
        if os.fstat(self._fd).st_size <= self._applied:
            return []
        entries = self._read(self._applied)
        os.ftruncate(self._fd, self._read_to)
        return entries

    def append(self, by: int, texts: list[bytes], counts: bytes) -> None:
        """Commit a turn. Raises OSError, and leaves nothing behind, where that is not possible."""
        entry = memoryview(_entry(by, texts, counts))
        start = at = self._read_to
        try:
            while entry:
                written = os.pwrite(self._fd, entry, at)
                at += written
                entry = entry[written:]
            if self._durable:
                os.fsync(self._fd)
        except OSError:
            self._cut(start)
            raise
        was_applied = self.is_applied
        self._last, self._read_to = start, at
        if was_applied and not texts:
            self.mark_applied()  # there are no files of it

    def take_back(self) -> None:
        """Remove the entry that was appended last, which must not be applied and is known to nobody yet."""
        self._cut(self._last)

    def mark_applied(self) -> None:
        """Note that the files of all entries are written."""
        self._applied = self._read_to
        os.pwrite(self._fd, b"%020d" % self._applied, _APPLIED_AT)

    @property
    def is_applied(self) -> bool:
        """Whether the files of all entries that this process knows are written."""
        return self._applied >= self._read_to

    def mark_boot(self) -> None:
        """Note that all is as it should be since this start of the machine."""
        os.pwrite(self._fd, _header(self._generation, self._applied, self._boot), 0)

    def mark_unchecked(self) -> None:
        """Note that all is to be checked, until `mark_boot()`."""
        os.pwrite(self._fd, _header(self._generation, self._applied, _UNCHECKED), 0)

    @property
    def place(self) -> Place:
        """How far this process knows it."""
        return self._generation, self._read_to

    @property
    def is_long(self) -> bool:
        """Whether it should be begun anew."""
        return self._read_to > max(ROTATE_BYTES, 2 * self._first)

    def entries(self) -> list[Entry]:
        """Return all that are in it."""
        return self._read(_HEADER_BYTES)

    def rotate(self, counts: bytes) -> None:
        """Begin anew, with the counts. All entries must be applied, and with `durable` all their files be synced."""
        self._begin(self._generation + 1, self._boot, counts)
        os.close(self._fd)
        self._attach()
        self._read_to = self._applied

    def _begin(self, generation: int, boot: str, counts: bytes) -> None:
        first = _entry(0, [], counts) if counts else b""
        text = _header(generation, _HEADER_BYTES + len(first), boot) + first
        permissions.write_whole(self._path, text, self._durable)

    def _attach(self) -> str:
        """Open the file that is there now; returns the boot it was written in."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
        header = os.pread(self._fd, _HEADER_BYTES, 0)
        if not header.startswith(_MAGIC) and header.strip(b"\0"):
            raise StoreError(f"{self._path} is not a journal of this store")
        self._inode = os.fstat(self._fd).st_ino
        version, self._generation, self._applied, boot = _parse_header(header)
        if version < VERSION:  # before any entry that such a version would cut off
            os.pwrite(self._fd, _header(self._generation, self._applied, boot), 0)
        self._first = _HEADER_BYTES
        first = os.pread(self._fd, _HEAD_BYTES, _HEADER_BYTES).partition(b"\n")[0]
        if first and (head := _parse_head(first)) is not None and head.length == head.counts:
            self._first += len(first) + 1 + head.length
        return boot

    def _cut(self, end: int) -> None:
        os.ftruncate(self._fd, end)
        self._read_to = end
        if self._durable:
            os.fsync(self._fd)

    def _read(self, start: int) -> list[Entry]:
        """Return the whole entries from `start` on; sets where the last of them ends."""
        entries, length = parse_entries(read_all(self._fd, start))
        self._read_to = start + length
        return entries


class _Head(NamedTuple):
    by: int
    length: int
    checksum: int
    counts: int | None  # bytes, None of an older version


def _entry(by: int, texts: list[bytes], counts: bytes) -> bytes:
    body = b"".join([counts, *texts])
    return b"%d %d %d %d\n%b" % (by, len(body), zlib.crc32(body), len(counts), body)


def _parse_head(line: bytes) -> _Head | None:
    """Return what stands before an entry, or None if it is torn."""
    try:
        by, length, checksum, *counts = map(int, line.split())
    except ValueError:
        return None
    return _Head(by, length, checksum, counts[0] if counts else None)


def parse_entries(data: bytes) -> tuple[list[Entry], int]:
    """Return the whole entries with which data begins, and how much of it they take."""
    entries = []
    at = 0
    while (line_end := data.find(b"\n", at)) != -1:
        head = _parse_head(data[at:line_end])
        if head is None:
            break
        body = data[line_end + 1 : line_end + 1 + head.length]
        if len(body) < head.length or zlib.crc32(body) != head.checksum:
            break
        texts = [text + END for text in body[head.counts or 0 :].split(END)[:-1]]
        counts = body[: head.counts] if head.counts is not None else UNKNOWN if texts else b""
        entries.append(Entry(head.by, texts, counts))
        at = line_end + 1 + head.length
    return entries, at


def read_whole(path: Path) -> list[Entry]:
    """Return the entries of a journal as it stands just now, without the lock. Raises ValueError where it is torn."""
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise ValueError("not a journal")
    _parse_header(data[:_HEADER_BYTES])
    return parse_entries(data[_HEADER_BYTES:])[0]


def _header(generation: int, applied: int, boot: str) -> bytes:
    return (b"%s %06d %020d %020d %s" % (_MAGIC, VERSION, generation, applied, boot.encode())).ljust(127) + b"\n"


_APPLIED_AT = len(_MAGIC) + 1 + 6 + 1 + 20 + 1


class _Header(NamedTuple):
    version: int
    generation: int
    applied: int  # where the entries end that are
    boot: str


def _parse_header(header: bytes) -> _Header:
    """Return what a header says. Raises ValueError where it is torn."""
    magic, version, generation, applied, *boot = header.split(None, 4)
    if int(version) > VERSION:
        raise StoreVersionError(
            f"the journal has version {int(version)}, and this omniq_executor reads up to {VERSION}"
        )
    if magic != _MAGIC or int(applied) < _HEADER_BYTES:
        raise ValueError("a torn header")
    return _Header(int(version), int(generation), int(applied), boot[0].strip().decode() if boot else "")


def read_all(fd: int, start: int = 0) -> bytes:
    """Return what a file holds from `start` on."""
    pieces = []
    while piece := os.pread(fd, 1 << 20, start):
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def _boot_id() -> str:
    """Return what names the present start of the machine, where the system tells."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
