"""The journal of the file store: what makes a turn over many files one transaction.

    header    format, generation, how far the entries are applied, and the boot they were written in
    entry     who wrote it, its length, its checksum; then the new text of each task it changes
    entry     ...

A turn is appended as one entry, and is committed by that. Then the tasks' own files are written, and
last the header says so. Whoever takes the lock next and finds an entry that is not applied writes its
files again, which is harmless: every text carries the version of its task. A torn entry at the end was
never committed and is cut off.

It serves two more ends. Other processes read from it what has changed since they last looked, so
nobody lists folders. And with `durable` a turn costs one fsync, of the journal, however many tasks it
has: after a cut of the power the whole journal is applied again.

Once the entries take ROTATE_BYTES it is begun anew, as another file of the same name. Whoever had the old
one open reads its rest first; whoever missed more than one has to look at everything again.

Every method is called under the store's lock.
"""

import os
import zlib
from pathlib import Path
from typing import NamedTuple

from ...errors import StoreError, StoreVersionError
from .. import permissions
from .records import END

VERSION = 1
ROTATE_BYTES = 8 << 20
_HEADER_BYTES = 128
_MAGIC = b"omniq-journal"


class Entry(NamedTuple):
    """One turn: who took it (an owner's id, or 0), and the new texts of the tasks that it changed."""

    by: int
    texts: list[bytes]


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
        self._boot = _boot_id()

    def open(self) -> bool:
        """Open it, or make it; returns whether the machine was started anew since it was last written.

        Then nothing is sure that an fsync did not make sure: all entries are taken for not applied.
        """
        try:
            boot = self._attach()
        except (FileNotFoundError, ValueError):  # there is none, or a cut of power left half of one
            self.close()
            permissions.write_whole(self._path, _header(1, _HEADER_BYTES, self._boot), self._durable)
            boot = self._attach()
        self._read_to = self._applied
        if boot == self._boot:
            return False
        self._applied = self._read_to = _HEADER_BYTES
        return True

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
            self._applied = _parse_header(os.pread(self._fd, _HEADER_BYTES, 0))[1]
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

    def append(self, by: int, texts: list[bytes]) -> None:
        """Commit a turn. Raises OSError, and leaves nothing behind, where that is not possible."""
        body = b"".join(texts)
        entry = memoryview(b"%d %d %d\n%b" % (by, len(body), zlib.crc32(body), body))
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
        self._read_to = at

    def take_back(self) -> None:
        """Remove the entry that was appended last, which must not be applied and is known to nobody yet."""
        self._cut(self._applied)

    def mark_applied(self) -> None:
        """Note that the files of all entries are written."""
        self._applied = self._read_to
        os.pwrite(self._fd, b"%020d" % self._applied, _APPLIED_AT)

    def mark_boot(self) -> None:
        """Note that all is as it should be since this start of the machine."""
        os.pwrite(self._fd, _header(self._generation, self._applied, self._boot), 0)

    @property
    def is_long(self) -> bool:
        """Whether it should be begun anew."""
        return self._read_to > ROTATE_BYTES

    def entries(self) -> list[Entry]:
        """Return all that are in it."""
        return self._read(_HEADER_BYTES)

    def rotate(self) -> None:
        """Begin anew. All entries must be applied, and with `durable` all files that they name be synced."""
        permissions.write_whole(self._path, _header(self._generation + 1, _HEADER_BYTES, self._boot), self._durable)
        os.close(self._fd)
        self._attach()
        self._read_to = self._applied

    def _attach(self) -> str:
        """Open the file that is there now; returns the boot it was written in."""
        self._fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW)
        header = os.pread(self._fd, _HEADER_BYTES, 0)
        if not header.startswith(_MAGIC) and header.strip(b"\0"):
            raise StoreError(f"{self._path} is not a journal of this store")
        self._inode = os.fstat(self._fd).st_ino
        self._generation, self._applied, boot = _parse_header(header)
        return boot

    def _cut(self, end: int) -> None:
        os.ftruncate(self._fd, end)
        self._read_to = end
        if self._durable:
            os.fsync(self._fd)

    def _read(self, start: int) -> list[Entry]:
        """Return the whole entries from `start` on; sets where the last of them ends."""
        data = read_all(self._fd, start)
        entries = []
        at = 0
        while (line_end := data.find(b"\n", at)) != -1:
            try:
                by, length, checksum = map(int, data[at:line_end].split())
            except ValueError:
                break
            body = data[line_end + 1 : line_end + 1 + length]
            if len(body) < length or zlib.crc32(body) != checksum:
                break
            entries.append(Entry(by, [text + END for text in body.split(END)[:-1]]))
            at = line_end + 1 + length
        self._read_to = start + at
        return entries


def _header(generation: int, applied: int, boot: str) -> bytes:
    return (b"%s %06d %020d %020d %s" % (_MAGIC, VERSION, generation, applied, boot.encode())).ljust(127) + b"\n"


_APPLIED_AT = len(_MAGIC) + 1 + 6 + 1 + 20 + 1


def _parse_header(header: bytes) -> tuple[int, int, str]:
    """Return generation, end of what is applied, and boot. Raises ValueError where it is torn."""
    magic, version, generation, applied, *boot = header.split(None, 4)
    if int(version) > VERSION:
        raise StoreVersionError(
            f"the journal has version {int(version)}, and this omniq_executor reads up to {VERSION}"
        )
    if magic != _MAGIC or int(applied) < _HEADER_BYTES:
        raise ValueError("a torn header")
    return int(generation), int(applied), boot[0].strip().decode() if boot else ""


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
