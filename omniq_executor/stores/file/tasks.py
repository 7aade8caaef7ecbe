"""The tasks of a file store: the lock, what is committed, and how it is changed.

Everything happens under the lock, after a look at what others have done meanwhile. What a process knows
without reading their files: which tasks are PENDING, in order, by lane, and those that it changed last.
So a claim reads the files that it takes and lists nothing. Likewise which tasks wait for which others, see
dependency_index.py: so an end finds those that wait no more. A heap may hold entries that are out of date;
each is compared with its file when it is taken out.
"""

import contextlib
import logging
import os
import weakref
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock

from ...errors import StoreError
from ...interrupts import SafeLock, interrupts
from ...model.task import FINISHED, Event, Status, Task, format_id, is_waiting, parse_id, source, with_wait
from .. import permissions
from ..base import Problem
from ..permissions import BUSY_TIMEOUT_S
from .counts import Counts, Kept, count_in, states, text_of_all, text_of_changes
from .dependency_index import DependencyIndex
from .folders import STATUS_FOLDERS, WAITING, Folders
from .journal import Entry, Journal
from .mark import JOURNAL, LOCK, MARK, ORDER, VERSION, prepare, read_mark
from .ready_index import Lane, Noted, Places, ReadyIndex, lane_of, place_of
from .records import Damaged, Record, from_text, to_text

_POLL_S = 0.001  # how often filelock tries; a turn takes about that long
_KNOWN_TASKS = 8192

_log = logging.getLogger("omniq_executor")
_open: "weakref.WeakSet[Tasks]" = weakref.WeakSet()


class Changes:
    """What a transaction changes: of each task the record before it, if there was one, and the one after it."""

    def __init__(self) -> None:
        self.old: dict[int, Record] = {}
        self.new: dict[int, Record] = {}

    def change(self, old: Record, new: Record) -> Record:
        """Note a change, which may follow another one of the same task; returns the new record."""
        number = new.task.id
        if number not in self.new:
            self.old[number] = old
        self.new[number] = new
        return new


class Tasks:
    """See the module's docstring. But for `locked()` and `close()`, every method is called under the lock."""

    @interrupts
    def __init__(self, path: Path, durable: bool, create: bool, importing: bool) -> None:
        self.path = path
        self.durable = durable
        self.folders = Folders(path, durable)
        self.journal = Journal(path / JOURNAL, durable)
        self.counts = Kept(self.journal)
        self.ready_index = ReadyIndex(path / ORDER)
        self.unread: dict[int, list[int]] = {}  # by owner of this process: what others finished
        self.peers: list[int] | None = None  # the registered owners
        self.is_foreign = False  # whether another process has changed something; who looks at it sets it back
        self._lock = SafeLock()
        self._is_importing = importing  # whether a migration may be under way in it
        self._depth = 0  # of uses of the lock within one another
        self._closed = self._is_open = self._is_checked = False
        self._known: dict[int, Record] = {}  # not finished, and last changed by this process
        self._lanes: defaultdict[Lane, Places] | None = None  # None until somebody claims
        self._dependencies: DependencyIndex | None = None  # None until something ends
        self.needed: set[int] | None = None  # what unfinished tasks come after, while an expiry has that kept
        prepare(path, create)
        self._file_lock = FileLock(path / LOCK, BUSY_TIMEOUT_S, mode=0o600, thread_local=False, poll_interval=_POLL_S)
        _open.add(self)
        try:
            with self.locked():
                pass
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        """See to everything that somebody may have left undone, under the lock, the first time. It lists no folder.

        What is not as it should be without that anybody died over it, as where a person has removed something, is
        found when it is asked for, see `linked()` and `load()`.
        """
        mark = read_mark(self.path, self._is_importing)
        made, is_new_boot = self.journal.open(lambda: b"" if self.folders.has_tasks() else text_of_all({}))
        is_older = mark["version"] < VERSION
        if is_older or self.folders.missing():
            self.journal.mark_unchecked()  # first: who dies over it leaves it to be checked by whoever comes next
            made = True
        if is_older:  # which would not heed what is new
            self.folders.write_json("", MARK, {**mark, "version": VERSION})
        self.folders.open()
        unapplied = self.journal.unapplied()
        self._redo(unapplied)
        if made or is_new_boot or any(entry.texts for entry in unapplied):
            self.check_folders()
        if is_new_boot:
            if self.durable:
                self.folders.sync(_numbers_in(self.journal.entries()))
            self.ready_index.rewrite({})  # nobody had its lines synced
            try:
                self.counts.note(None)  # nor the files of others, which may be as they were before
            except OSError as error:
                _log.warning("%s: all is checked once more later: %s", self.path, error)
                return
        if made or is_new_boot:
            self.journal.mark_boot()

    def close(self) -> None:
        """Let go of all files."""
        with self._lock:
            self._let_go()
            vars(self).pop("_file_lock", None)  # here, where Ctrl-C is put off, and not in a finalizer
            self._is_open = False
            _open.discard(self)

    def _let_go(self) -> None:
        self._closed = True
        self.folders.close()
        self.journal.close()
        self.ready_index.close()

    def check_open(self) -> None:
        """Raise StoreError after close()."""
        if self._closed:
            raise StoreError(f"the store {self.path} has been closed")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock, with everything as it was committed last. OSErrors come out as StoreError."""
        with self._lock:
            self.check_open()
            if self._depth:
                yield
                return
            try:
                self._file_lock.acquire()
                self._depth = 1
                try:
                    self._catch_up()
                    yield
                finally:
                    self._depth = 0
                    self._file_lock.release()
            except OSError as error:
                raise StoreError(f"the store {self.path}: {permissions.explain(error)}") from error

    @contextlib.contextmanager
    def changing(self) -> Iterator[Changes]:
        """Hold the lock, and commit the changes that are made meanwhile, with what they mean for what waits."""
        with self.locked():
            changes = Changes()
            yield changes
            self.apply_waits(changes)
            self.commit(0, changes)

    # what others did, and what is left to do

    def _catch_up(self) -> None:
        if not self._is_open:
            self._open()
            self._is_open = True
            return
        place = self.journal.place
        entries, missed = self.journal.unread_entries()
        if entries:
            self.counts.follow(place, entries)
        unapplied = self.journal.unapplied()
        if unapplied:
            self._redo(unapplied)
        for entry in entries:
            self.is_foreign = True
            if not entry.texts:
                self.peers = None
            records = [parse(text) for text in entry.texts]
            self._take_in(entry.by, records)
            for record in records:
                self._known.pop(record.task.id, None)
        if missed:
            self._look_again()

    def _redo(self, entries: list[Entry]) -> None:
        """Write the files of entries, whose writer may have died over it."""
        for entry in entries:
            for text in entry.texts:
                self.folders.restore(parse(text), text)
        if entries:
            self.journal.mark_applied()
            count = sum(bool(entry.texts) for entry in entries)
            if count:
                self.folders.repairs.append(Problem(f"{count} turns in the journal had files left to write", True))

    def _look_again(self) -> None:
        """Forget what is known, where it cannot be told what has changed."""
        self.forget()
        self.counts.forget()
        self.peers = None
        self.is_foreign = True
        for unread in self.unread.values():
            for status in FINISHED:
                unread.extend(self.folders.names(STATUS_FOLDERS[status]))

    def _take_in(self, by: int, records: Iterable[Record]) -> None:
        """Take in what is committed: by an owner, or by 0 for what all are to read."""
        finished = []
        for record in records:
            task = record.task
            if record.is_removed:
                if self._dependencies is not None and self._dependencies.knows(task.id):
                    self._dependencies = None
                continue
            if self.needed is not None and task.status not in FINISHED:
                self.needed.update(task.after)
            if task.status in FINISHED:
                self._known.pop(task.id, None)
            elif task.id in self._known or len(self._known) < _KNOWN_TASKS:
                self._known[task.id] = record
            if self._dependencies is not None:
                self._dependencies.take_in(task, self.is_finished)
            if task.status in FINISHED:
                finished.append(task.id)
            elif self._lanes is not None and is_claimable(task):
                self._lanes[lane_of(task)].push(place_of(task))
        for owner, unread in self.unread.items():
            if owner != by:
                unread.extend(finished)

    # what is there

    def load(self, number: int) -> Record | None:
        """Return a task as it is committed, or None if there is none; one that is damaged is quarantined."""
        record = self._known.get(number)
        if record is None:
            try:
                record = self.folders.read(number)
            except Damaged:
                for entry in self.journal.entries():
                    for text in entry.texts:
                        if (kept := parse(text)).task.id == number:
                            self.folders.restore(kept, text)
                            restored = Problem(f"{format_id(number)} was damaged, and is as the journal has it", True)
                            self.folders.repairs.append(restored)
                record = self.folders.relink(number)
                self._note_lost()
        return record

    def by_key(self, queue: str, key: str) -> Record | None:
        """Return the task with a key. A link to one that somebody has removed is put aside: the key is free."""
        number = self.folders.by_key(queue, key)
        record = None if number is None else self.load(number)
        if number is not None and record is None:
            self.folders.free_key(queue, key)
        return record

    def records(self, numbers: Iterable[int]) -> Iterator[Record]:
        """Give those of these tasks that are there."""
        return filter(None, map(self.load, numbers))

    def all(self, *statuses: Status, newest_first: bool = False) -> Iterator[Record]:
        """Give what is in these states, or in any if none is named, oldest first."""
        numbers = set(self.linked(*statuses)) if statuses else self.folders.names("tasks")
        for record in self.records(sorted(numbers, reverse=newest_first)):
            if not statuses or record.task.status in statuses:
                yield record

    def linked(self, *statuses: Status) -> list[int]:
        """Return what is linked as being in these states, those that wait too, in any order.

        Nobody but who changes a task moves its link, so as many are there as are counted. Else somebody has removed
        some, or put some there, and all links are checked first; if that was not it, all tasks are read.
        """
        found = self._links(statuses)
        if not self._is_right(found, statuses):
            self._redo(self.journal.unapplied())  # what could not be written a moment ago must not be counted as it was
            self.check_folders()
            found = self._links(statuses)
            if not self._is_right(found, statuses):
                self.count()
                found = self._links(statuses)
        return found

    def _links(self, statuses: Iterable[Status]) -> list[int]:
        folders = [STATUS_FOLDERS[status] for status in statuses]
        if Status.PENDING in statuses:
            folders.append(WAITING)
        return [number for folder in folders for number in self.folders.names(folder)]

    def _is_right(self, found: list[int], statuses: Iterable[Status]) -> bool:
        counts = self.counts.now()
        return self._is_checked if counts is None else len(found) == states(counts, *statuses)

    def check_folders(self) -> None:
        """Have every task linked once, from the folder of its status, and put aside what is no task."""
        self.folders.check()
        self._is_checked = True
        self._note_lost()

    def _note_lost(self) -> None:
        """Have the journal say that tasks are gone, of which nobody knows in what state they were."""
        if self.folders.has_lost:
            with contextlib.suppress(OSError):  # then this is tried again
                self.counts.note(None)
                self.folders.has_lost = False

    def counted(self) -> Counts:
        """Return the counts; nobody reads a file for them, unless they are unknown."""
        counts = self.counts.now()
        return self.count() if counts is None else counts

    def count(self) -> Counts:
        """Read all tasks, have each linked from the right folder, and have the counts be as they are found."""
        counts: Counts = {}
        for record in self.all():
            self.folders.check_link(record)
            count_in(counts, [record], [record.size])
        with contextlib.suppress(OSError):  # then others count again
            self.counts.note(counts)
        return counts

    def needed_by_unfinished(self) -> set[int]:
        """Return the tasks that unfinished ones come after. It reads all of those."""
        return {number for record in self.all(Status.PENDING, Status.RUNNING) for number in record.task.after}

    def forget(self) -> None:
        """Forget what is known of tasks, which somebody may have changed without a word in the journal."""
        self._lanes = self._dependencies = self.needed = None
        self._known.clear()

    def lanes(self) -> defaultdict[Lane, Places]:
        """Return what is PENDING and does not wait."""
        if self._lanes is None:
            lanes: defaultdict[Lane, Places] = defaultdict(Places)
            for places in self.in_order().values():
                for lane, place in places:
                    lanes[lane].push(place)
            self._lanes = lanes
        return self._lanes

    def in_order(self) -> Noted:
        """Return the same by id, as the order has it; the file of a task that is missing there is read."""
        pending = self.linked(Status.PENDING)
        waiting = set(self.folders.names(WAITING))
        if waiting:
            pending = [number for number in pending if number not in waiting]
        found = self.ready_index.read(set(pending))
        missing = []
        for number in pending:
            if number not in found and (record := self.load(number)) is not None:
                if is_claimable(record.task):
                    missing.append(record.task)
                else:
                    self.folders.link(record)
        self.ready_index.add(missing)
        found.update((task.id, {(lane_of(task), place_of(task))}) for task in missing)
        self.ready_index.trim(found)
        return found

    def dependencies(self) -> DependencyIndex:
        """Return which tasks wait for which. The first time this reads all tasks that wait, once."""
        if self._dependencies is None:
            self._dependencies = DependencyIndex()
            for record in self.records(self.folders.names(WAITING)):
                self._dependencies.take_in(record.task, self.is_finished)
        return self._dependencies

    def is_finished(self, number: int, changes: Changes | None = None) -> bool:
        """Return whether a task is, by what is committed and by `changes`. One that is not there is."""
        record = (changes.new.get(number) if changes is not None else None) or self.load(number)
        return record is None or record.task.status in FINISHED

    # changes

    def apply_waits(self, changes: Changes) -> bool:
        """Have those wait that should, after `changes`, and nobody else; returns whether some wait no more."""
        finished = [number for number, record in changes.new.items() if record.task.status in FINISHED]
        freed = False
        for number in [*changes.new, *(self.dependencies().waiting_for(finished) if finished else ())]:
            record = changes.new.get(number) or self.load(number)
            if record is not None and record.task.status is Status.PENDING:
                freed = self.apply_wait(changes, record) or freed
        return freed

    def apply_wait(self, changes: Changes, record: Record) -> bool:
        """Likewise have one that is PENDING wait, or not; returns whether it waits no more."""
        waits = not all(self.is_finished(needed, changes) for needed in reversed(record.task.after))
        settled = record.changed(with_wait(record.task, waits=waits))
        if settled is record:
            return False
        changes.change(record, settled)
        return is_waiting(record.task)

    def commit(self, by: int, changes: Changes) -> None:
        """Commit changes. Raises OSError, with nothing changed, where that is not possible."""
        if not changes.new:
            return
        texts = []
        counts: Counts = {}
        count_in(counts, changes.old.values(), [record.size for record in changes.old.values()], -1)
        for record in changes.new.values():
            text = to_text(record)
            record.size = max(len(text), record.size)
            texts.append(text)
        count_in(counts, changes.new.values(), map(len, texts))
        # Before the commit, so that there is no task that can be claimed and is not in the order.
        self.ready_index.add(record.task for record in changes.new.values() if is_claimable(record.task))
        place, was_applied = self.journal.place, self.journal.is_applied
        self.journal.append(by, texts, text_of_changes(counts))
        added: list[Record] = []
        try:
            for record, text in zip(changes.new.values(), texts, strict=True):
                if record.task.id not in changes.old:
                    self.folders.create(record, text)
                    added.append(record)
        except OSError:
            for record in added:
                self.folders.remove(record)
            self.journal.take_back()
            raise
        self.counts.follow_own(place, counts)
        try:
            for number, text in zip(changes.new, texts, strict=True):
                old = changes.old.get(number)
                if old is not None:
                    record = changes.new[number]
                    self.folders.rewrite(old, record, text)
                    record.size = len(text)
            if was_applied:  # else those of an entry before this one may be missing, and are written with the next lock
                self.journal.mark_applied()
        except OSError as error:
            # It is committed, since the journal has it. Whoever takes the lock next writes the files.
            _log.warning("%s: the files are written later: %s", self.path, error)
        self._take_in(by, changes.new.values())
        if self.journal.is_long and not self.journal.unapplied():
            self._rotate()

    def _rotate(self) -> None:
        try:
            if self.durable:
                self.folders.sync(_numbers_in(self.journal.entries()))
            self.counts.rotate()
            if self.ready_index.is_long:
                self.in_order()
        except OSError as error:
            _log.warning("%s: the journal is begun anew later: %s", self.path, error)


_CLAIMED_FROM = source(Event.CLAIM)


def is_claimable(task: Task) -> bool:
    """Return whether the task can be claimed, once it is due."""
    return task.status in _CLAIMED_FROM and not is_waiting(task)


def parse(text: bytes) -> Record:
    """Return the record of a text in the journal, whose checksum is right."""
    number = parse_id(text[text.index(b'"task-') + 1 : text.index(b'",')].decode())
    return from_text(number, text)


def _numbers_in(entries: Iterable[Entry]) -> set[int]:
    return {parse(text).task.id for entry in entries for text in entry.texts}


def _after_fork_in_child() -> None:
    for tasks in list(_open):
        tasks._lock = SafeLock()
        tasks._let_go()
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
