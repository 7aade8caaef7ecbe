"""The file store: a folder in which every task is a JSON file that anybody can read.

    ROOT/omniq.json    says that this is a store, and of which version
    ROOT/turn.lock     the lock that each turn holds (filelock)
    ROOT/journal       what makes a turn one transaction, see journal.py
    ROOT/order         in which order tasks are claimed, see order.py
    ROOT/tasks/ ...    see folders.py
    ROOT/runs/N.json   the runs, and in sessions/ the processes that have begun some and live
    ROOT/owners/       a file, a lock and a notification pipe for each owner, see owners.py
    ROOT/output/       what calls wrote, see output.py
    ROOT/reserve       some space, see reserve.py

Everything happens under the lock, after a look at what others have done meanwhile. What a process knows
without reading their files: which tasks are PENDING, in order, by lane, and those that it changed last.
So a claim reads the files that it takes and lists nothing. Likewise which tasks wait for which others, see
needs.py: so an end finds those that wait no more. A heap may hold entries that are out of date;
each is compared with its file when it is taken out.
"""

import base64
import contextlib
import heapq
import logging
import os
import random
import shutil
import stat
import threading
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from ... import slots
from ...errors import StoreError, StoreVersionError, TaskNotFound
from ...model import codec, schema
from ...model.task import (
    FINISHED,
    LAST_TIER,
    Call,
    Claim,
    Event,
    Function,
    Refused,
    Status,
    Task,
    format_id,
    is_waiting,
    parse_id,
    source,
    succeed,
)
from .. import permissions as safety
from ..base import (
    Batch,
    Claimed,
    Leftover,
    Outcome,
    Owner,
    PastRun,
    Problem,
    ResultBatch,
    Resume,
    Run,
    RunRecord,
    Store,
    TaskRow,
    TaskState,
    Turn,
    TurnResult,
    check_finished,
    continued,
    now,
    shares,
)
from ..output import Output
from ..owners import Owners, new_owner_id, new_session_id
from ..reserve import Reserve
from .dependency_index import Needs
from .folders import STATUS_FOLDERS, WAITING, Folders
from .journal import Entry, Journal
from .ready_index import Lane, Noted, Order, Place, Places, lane_of, place_of
from .records import Damaged, Record, from_text, to_text

FORMAT = "omniq-executor file store"
VERSION = schema.VERSION - 1  # the first one has what the tables of SQLite have since their second
BUSY_TIMEOUT_S = 30.0
_POLL_S = 0.001  # how often filelock tries; a turn takes about that long
_MARK = "omniq.json"
_LOCK = "turn.lock"
_JOURNAL = "journal"
_ORDER = "order"
_KNOWN_FUNCTIONS = 4096
_KNOWN_TASKS = 8192
_RUN_FIELDS = {"queue", "owner", "continues", "started_at", "ended_at", "clean", "settled"}
_OWNER_FIELDS = {"queue", "host", "pid", "opened_at"}
_SESSION_FIELDS = {"host", "pid", "started_at"}
_FUNCTION_FIELDS = {"path", "pickle"}

_log = logging.getLogger("omniq_executor")
_open_stores: "weakref.WeakSet[FileStore]" = weakref.WeakSet()


class FileStore(Store):
    """See the module's docstring, and Store for the methods.

    `durability="process"` keeps what is acknowledged through the death of any process; "power"
    also through a cut of the machine's power, at one fsync a turn.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Literal["process", "power"] = "process",
        create: bool = True,
        importing: bool = False,
    ):
        if durability not in ("process", "power"):
            raise ValueError(f"durability is 'process' or 'power', not {durability!r}")
        self.path = Path(path).absolute()
        self.address = str(self.path)
        durable = durability == "power"
        self._lock = threading.RLock()
        self._is_importing = importing  # whether a migration may be under way in it
        self._depth = 0  # of uses of the lock within one another
        self._closed = False
        self._folders = Folders(self.path, durable)
        self._journal = Journal(self.path / _JOURNAL, durable)
        self._order = Order(self.path / _ORDER)
        self._durable = durable
        self._owners = Owners(self.path / "owners")
        self.output = Output(self.path / "output")
        self.reserve = Reserve(self.path / "reserve")
        self._known: dict[int, Record] = {}  # not finished, and last changed by this process
        self._lanes: defaultdict[Lane, Places] | None = None  # None until somebody claims
        self._needs: Needs | None = None  # None until something ends
        self._functions: dict[bytes, Function] = {}
        self._resumable: dict[int, defaultdict[tuple[bytes, str | bytes], deque[int]]] = {}  # by run, see begin_run()
        self._unread: dict[int, list[int]] = {}  # by owner of this process: what others finished
        self._peers: list[int] | None = None  # the registered owners
        self._foreign = False  # whether another process has changed something since the last turn
        self._prepare(create)
        self._file_lock = FileLock(
            self.path / _LOCK, BUSY_TIMEOUT_S, mode=0o600, thread_local=False, poll_interval=_POLL_S
        )
        _open_stores.add(self)
        try:
            with self._locked():
                pass
        except BaseException:
            self.close()
            raise

    # opening and closing

    def _prepare(self, create: bool) -> None:
        """Make the folder, or see that it is one of ours; nothing is put in one that is not."""
        if not create and not (self.path / _MARK).exists():
            raise StoreError(f"there is no store at {self.path}")
        safety.check_place(self.path.parent)
        try:
            for folder in [*reversed(self.path.parents), self.path]:
                safety.make_folder(folder)
            for path in (self.path, *(self.path / name for name in (_MARK, _LOCK, _JOURNAL, _ORDER))):
                safety.check_private(path)
            if not stat.S_ISDIR(self.path.stat().st_mode):
                raise StoreError(f"{self.path} is not a folder; give a name that ends in .db, or the path of a folder")
            if not (self.path / _MARK).exists():
                others = [n for n in os.listdir(self.path) if n not in (_LOCK, _MARK) and not n.startswith("omniq.db")]
                if others and not (self.path / _MARK).exists():  # again: another process may have made it meanwhile
                    raise StoreError(
                        f"{self.path} holds other files, {others[0]!r} for one; give the store a folder of its own"
                    )
        except OSError as error:
            raise StoreError(f"the store {self.path} cannot be created: {safety.explain(error)}") from error

    def _open(self) -> None:
        """Under the lock, the first time: see to everything."""
        mark = self._folders.root / _MARK
        text = mark.read_bytes() if mark.exists() else b""
        if text.strip():
            content = self._check_mark(text)
            if content["version"] < VERSION:  # an older one would not heed what is new
                self._folders.write_json("", _MARK, {**content, "version": VERSION})
        else:  # first of all: a folder that holds it is ours, however far the making of it came
            fd = os.open(mark, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
            with open(fd, "w") as file:
                safety.have_mode(fd)
                file.write(f'{{"format": "{FORMAT}", "version": {VERSION}}}\n')
        self._folders.open()
        is_new_boot = self._journal.open()
        self._redo(self._journal.unapplied())
        self._folders.check()
        if is_new_boot:
            if self._durable:
                self._folders.sync(_numbers_in(self._journal.entries()))
            self._order.rewrite({})  # nobody had its lines synced
            self._journal.mark_boot()

    def _check_mark(self, text: bytes) -> dict[str, Any]:
        content = None
        with contextlib.suppress(ValueError):
            content = codec.decode(text.decode())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise StoreError(f"{self.path / _MARK} is not of a store; give the store a folder of its own")
        if content.get("version", 0) > VERSION:
            raise StoreVersionError(
                f"{self.path} has version {content['version']}, and this omniq_executor reads up to {VERSION}:"
                " install a newer one, or use another store"
            )
        if not self._is_importing and "migrating" in content:
            source = content["migrating"]
            raise StoreError(
                f"{self.path} holds a part of {source} only: run `omniq-executor migrate {source} {self.path}` again"
            )
        return content

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._folders.close()
            self._journal.close()
            self._order.close()
            self._is_open = False
            _open_stores.discard(self)

    _is_open = False

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock, with everything as it was committed last. OSErrors come out as StoreError."""
        with self._lock:
            if self._closed:
                raise StoreError(f"the store {self.path} has been closed")
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
            except Timeout as error:
                raise StoreError(
                    f"the store {self.path}: another process has held it for more than {BUSY_TIMEOUT_S:.0f} s"
                ) from error
            except OSError as error:
                raise StoreError(f"the store {self.path}: {safety.explain(error)}") from error

    # what others did, and what is left to do

    def _catch_up(self) -> None:
        if not self._is_open:
            self._open()
            self._is_open = True
            return
        entries, missed = self._journal.unread_entries()
        unapplied = self._journal.unapplied()
        if unapplied:
            self._redo(unapplied)
        for entry in entries:
            self._foreign = True
            if not entry.texts:
                self._peers = None
            records = [_parse(text) for text in entry.texts]
            self._take_in(entry.by, records)
            for record in records:
                self._known.pop(record.task.id, None)
        if missed:
            self._look_again()

    def _redo(self, entries: list[Entry]) -> None:
        """Write the files of entries, whose writer may have died over it."""
        for entry in entries:
            for text in entry.texts:
                self._folders.restore(_parse(text), text)
        if entries:
            self._journal.mark_applied()
            count = sum(bool(entry.texts) for entry in entries)
            if count:
                self._folders.repairs.append(Problem(f"{count} turns in the journal had files left to write", True))

    def _look_again(self) -> None:
        """Forget what is known, where it cannot be told what has changed."""
        self._lanes = self._peers = self._needs = None
        self._known.clear()
        self._foreign = True
        for unread in self._unread.values():
            for status in FINISHED:
                unread.extend(self._folders.names(STATUS_FOLDERS[status]))

    def _take_in(self, by: int, records: Iterable[Record]) -> None:
        """Know of what is committed: by an owner, or by 0 for what all are to read."""
        finished = []
        for record in records:
            task = record.task
            if record.is_removed:
                self._needs = None
                continue
            if task.status in FINISHED:
                self._known.pop(task.id, None)
            elif task.id in self._known or len(self._known) < _KNOWN_TASKS:
                self._known[task.id] = record
            if self._needs is not None:
                self._needs.take_in(task, self._is_finished)
            if task.status in FINISHED:
                finished.append(task.id)
            elif self._lanes is not None and _is_claimable(task):
                self._lanes[lane_of(task)].push(place_of(task))
        for owner, unread in self._unread.items():
            if owner != by:
                unread.extend(finished)

    def _known_lanes(self) -> defaultdict[Lane, Places]:
        """What is PENDING and does not wait."""
        if self._lanes is None:
            lanes: defaultdict[Lane, Places] = defaultdict(Places)
            for places in self._in_order().values():
                for lane, place in places:
                    lanes[lane].push(place)
            self._lanes = lanes
        return self._lanes

    def _in_order(self) -> Noted:
        """The same by id, as the order has it; the file of a task that is missing there is read."""
        pending = self._folders.names(STATUS_FOLDERS[Status.PENDING])
        found = self._order.read(set(pending))
        missing = []
        for number in pending:
            if number not in found and (record := self._load(number)) is not None:
                if _is_claimable(record.task):
                    missing.append(record.task)
                else:
                    self._folders.link(record)
        self._order.add(missing)
        found.update((task.id, {(lane_of(task), place_of(task))}) for task in missing)
        self._order.trim(found)
        return found

    def _known_needs(self) -> Needs:
        """Which tasks wait for which. The first time this reads all tasks that wait, once."""
        if self._needs is None:
            self._needs = Needs()
            for number in self._folders.names(WAITING):
                record = self._load(number)
                if record is not None:
                    self._needs.take_in(record.task, self._is_finished)
        return self._needs

    def _is_finished(self, number: int, changes: "_Changes | None" = None) -> bool:
        """Whether a task is, by what is committed and by `changes`. One that is not there is."""
        record = (changes.new.get(number) if changes is not None else None) or self._load(number)
        return record is None or record.task.status in FINISHED

    def _load(self, number: int) -> Record | None:
        """A task as it is committed, or None if there is none; one that is damaged is quarantined."""
        record = self._known.get(number)
        if record is None:
            try:
                record = self._folders.read(number)
            except Damaged:
                for entry in self._journal.entries():
                    for text in entry.texts:
                        if (kept := _parse(text)).task.id == number:
                            self._folders.restore(kept, text)
                            restored = Problem(f"{format_id(number)} was damaged, and is as the journal has it", True)
                            self._folders.repairs.append(restored)
                record = self._folders.relink(number)
        return record

    def _commit(self, by: int, changes: "_Changes") -> None:
        """Commit changes. Raises OSError, with nothing changed, where that is not possible."""
        if not changes.new:
            return
        texts = []
        for record in changes.new.values():
            text = to_text(record)
            record.size = max(len(text), record.size)
            texts.append(text)
        # Before the commit, so that there is no task that can be claimed and is not in the order.
        self._order.add(record.task for record in changes.new.values() if _is_claimable(record.task))
        self._journal.append(by, texts)
        added: list[Record] = []
        try:
            for record, text in zip(changes.new.values(), texts, strict=True):
                if record.task.id not in changes.old:
                    self._folders.create(record, text)
                    added.append(record)
        except OSError:
            for record in added:
                self._folders.remove(record)
            self._journal.take_back()
            raise
        try:
            for number, text in zip(changes.new, texts, strict=True):
                old = changes.old.get(number)
                if old is not None:
                    record = changes.new[number]
                    self._folders.rewrite(old, record, text)
                    record.size = len(text)
            self._journal.mark_applied()
        except OSError as error:
            # It is committed, since the journal has it. Whoever takes the lock next writes the files.
            _log.warning("%s: the files are written later: %s", self.path, error)
        self._take_in(by, changes.new.values())
        if self._journal.is_long and not self._journal.unapplied():
            self._rotate()

    def _rotate(self) -> None:
        try:
            if self._durable:
                self._folders.sync(_numbers_in(self._journal.entries()))
            self._journal.rotate()
            if self._order.is_long:
                self._in_order()
        except OSError as error:
            _log.warning("%s: the journal is begun anew later: %s", self.path, error)

    # who is there

    def enter(self, queue: str) -> int:
        with self._locked():
            self.reserve.take()
            owner = new_owner_id(self._folders.numbers("owners"))
            self._owners.hold(owner)
            self._functions.clear()  # while no owner was registered, some may have been purged
            try:
                about = {"queue": queue, "host": self._owners.host, "pid": os.getpid(), "opened_at": now()}
                self._folders.write_json("owners", f"{owner}.json", about)
                self._journal.append(owner, [])
                self._journal.mark_applied()
            except OSError:
                self._owners.let_go(owner)
                raise
            self._peers = None
            self._unread[owner] = []
            return owner

    def leave(self, owner: int) -> None:
        try:
            with self._locked():
                self._bury({owner: ()})
                self._unread.pop(owner, None)
        except StoreError:
            self._owners.let_go(owner, is_registered=True)
            raise
        self._owners.let_go(owner)

    def owners(self) -> list[Owner]:
        with self._locked():
            return self._registered()

    def _registered(self) -> list[Owner]:
        owners = []
        for id in self._folders.numbers("owners"):
            about = self._about("owners", id, _OWNER_FIELDS)
            alive = self._owners.is_alive(id, about["host"])
            owners.append(Owner(id, about["queue"], about["host"], about["pid"], about["opened_at"], alive))
        return sorted(owners, key=lambda owner: (owner.opened_at, owner.id))

    def peers(self, owner: int) -> list[int]:
        with self._locked():
            return [id for id in self._folders.numbers("owners") if id != owner]

    def reap(self, now: int) -> int:
        with self._locked():
            dead = self._suspects(owner.id for owner in self._registered() if not owner.alive)
            sessions = self._dead_sessions()
            orphaned = self._bury(dead) if dead else 0
            self._forget_sessions(sessions)
        for id in [*dead, *sessions]:
            self._owners.forget(id)
        return orphaned

    def _dead_sessions(self) -> list[int]:
        about = {id: self._about("sessions", id, _SESSION_FIELDS) for id in self._folders.numbers("sessions")}
        return [id for id, fields in about.items() if not self._owners.is_alive(id, fields["host"])]

    def _about(self, folder: str, id: int, fields: set[str]) -> dict[str, Any]:
        """What a file tells of an owner or a session. If it is damaged, only the lock tells whether that lives."""
        about = self._folders.read_json(folder, f"{id}.json", fields)
        if about is None or not isinstance(about["host"], str):
            return {"queue": "", "host": self._owners.host, "pid": 0, "opened_at": 0}
        return about

    def _forget_sessions(self, sessions: Iterable[int]) -> None:
        try:
            for session in sessions:
                with contextlib.suppress(FileNotFoundError):
                    (self.path / "sessions" / f"{session}.json").unlink()
        except OSError as error:
            # What was done before is committed. As soon as its process is dead, so is a session.
            _log.warning("%s: sessions that are over are forgotten later: %s", self.path, error)

    def _suspects(self, dead: Iterable[int]) -> dict[int, Collection[int] | None]:
        """Of each dead owner the tasks that it had begun, or None if any may have been."""
        return {owner: slots.begun(self._owners.slots_path(owner)) for owner in dead}

    def _bury(self, owners: Mapping[int, Collection[int] | None]) -> int:
        """Take back the tasks of owners that are gone, forget them, and return how many tasks that were.

        The tasks that are given with an owner are orphaned, all if it is None; others are released.
        """
        changes = _Changes()
        for number in self._folders.names(STATUS_FOLDERS[Status.RUNNING]):
            record = self._load(number)
            if record is not None and record.task.status is Status.RUNNING and record.task.owner in owners:
                begun = owners[record.task.owner or 0]
                is_suspect = begun is None or number in begun
                changes.change(record, record.orphan(now()) if is_suspect else record.release(now()))
        self._apply_waits(changes)
        self._commit(0, changes)
        self._peers = None
        try:
            for owner in owners:
                with contextlib.suppress(FileNotFoundError):
                    (self.path / "owners" / f"{owner}.json").unlink()
            self._journal.append(0, [])  # not marked as applied: the files of the entry before may still be to write
        except OSError as error:
            # What they had claimed is released, and must not look as if it were not.
            _log.warning("%s: owners that are gone are forgotten later: %s", self.path, error)
        return len(changes.new)

    def notify_path(self, owner: int) -> Path:
        """The FIFO that others write to for this owner."""
        self._opened()
        return self._owners.notify_path(owner)

    def slots_path(self, owner: int) -> Path:
        self._opened()
        return self._owners.slots_path(owner)

    def notify(self, owner: int) -> None:
        """Wake the other owners: something that they may wait for is committed."""
        if self._peers is None:
            with self._locked():
                self._peers = self._folders.numbers("owners")
        for peer in self._peers:
            if peer != owner:
                self._owners.notify(peer)

    def read_changes(self, owner: int) -> list[int]:
        with self._locked():
            unread, self._unread[owner] = self._unread.get(owner, []), []
            return unread

    # sessions and runs

    def begin_session(self, now: int) -> int:
        session = new_session_id()
        with self._locked():
            self._owners.hold(session, has_bell=False)
            try:
                about = {"host": self._owners.host, "pid": os.getpid(), "started_at": now}
                self._folders.write_json("sessions", f"{session}.json", about)
            except OSError:
                self._owners.let_go(session)
                raise
        return session

    def end_session(self, session: int, clean: bool, now: int, *, keep_broken: bool = False) -> list[Leftover]:
        with self._locked():
            runs = self._read_runs()
            own = {id for id, run in runs.items() if run["session"] == session and not run["settled"]}
            changes: dict[int, dict[str, Any]] = {}
            if clean:
                broken = {id for id in own if keep_broken and _is_broken(runs[id])}
                kept = {_likeness(runs[id]) for id in broken}
                changes = {id: {"clean": True} for id in own - broken}
                changes |= self._settled(runs, {id for id in own if _likeness(runs[id]) not in kept})
            else:
                changes = {id: {"clean": False} for id in own if runs[id]["clean"] is None}
            left = self._change_runs(runs, changes)
            # Last: whoever dies before that leaves a session that is over, and runs that are continued.
            self._forget_sessions([session])
        self._owners.let_go(session)
        return left

    def _settled(self, runs: dict[int, dict[str, Any]], own: Collection[int]) -> dict[int, dict[str, Any]]:
        """What changes of which runs, as these of them are settled, which end clean, and those like them that are over.

        Those that end clean are the last: whoever dies before that leaves them to be continued.
        """
        like = {_likeness(runs[id]) for id in own}
        others = (id for id in self._over(runs) if id not in own and _likeness(runs[id]) in like)
        settled = {id: {"settled": True} for id in others if not runs[id]["settled"]}
        return {**settled, **{id: {"settled": True, "clean": True} for id in own}}

    def _change_runs(self, runs: dict[int, dict[str, Any]], changes: dict[int, dict[str, Any]]) -> list[Leftover]:
        """Write these changes of runs; returns what those have left that are settled by it."""
        settled = [id for id, change in changes.items() if change.get("settled")]
        left = self._left_by(settled)
        written: list[int] = []
        try:
            for id, change in changes.items():
                self._folders.write_json("runs", f"{id}.json", {**runs[id], **change})
                written.append(id)
        except OSError:
            with contextlib.suppress(OSError):
                for id in reversed(written):
                    self._folders.write_json("runs", f"{id}.json", runs[id])
            raise
        return [Leftover(id, runs[id]["queue"], runs[id]["started_at"], left[id]) for id in sorted(left)]

    def _left_by(self, runs: Collection[int]) -> dict[int, int]:
        """By run, how many PENDING tasks it has, of those that have some."""
        counts: dict[int, int] = {}
        unsure = self._folders.names(WAITING)
        if any(run in runs for _, run, _ in self._known_lanes()):
            for number, places in self._in_order().items():
                of = {run for (_, run, _), _ in places}
                if len(of) > 1:
                    unsure.append(number)
                elif (run := of.pop()) in runs:  # without a look into its file: there may be very many
                    counts[run] = counts.get(run, 0) + 1
        for number in unsure:
            record = self._load(number)
            if record is not None and record.task.status is Status.PENDING and record.task.run in runs:
                counts[record.task.run] = counts.get(record.task.run, 0) + 1
        return counts

    def _pending_of(self, is_meant: Callable[[str, int], bool]) -> list[Task]:
        """What is PENDING and of certain queues and runs, waiting or not. The files of hardly any others are read."""
        numbers = self._folders.names(WAITING)
        if any(is_meant(queue, run) for queue, run, _ in self._known_lanes()):
            for number, places in self._in_order().items():
                if any(is_meant(queue, run) for (queue, run, _), _ in places):
                    numbers.append(number)
        tasks = [record.task for number in sorted(numbers) if (record := self._load(number)) is not None]
        return [task for task in tasks if task.status is Status.PENDING and is_meant(task.queue, task.run)]

    def _over(self, runs: dict[int, dict[str, Any]], session: int = 0) -> list[int]:
        """Those of the runs that have no registered owner and no session that goes on, but for `session`."""
        owners = set(self._folders.numbers("owners"))
        sessions = set(self._folders.numbers("sessions")) - {session}
        return [id for id, run in runs.items() if run["owner"] not in owners and run["session"] not in sessions]

    def begin_run(
        self, queue: str, owner: int, resume: Resume, now: int, *,
        session: int = 0, context: str = "", since: int = 0,
    ) -> Run:  # fmt: skip
        self.reap(now)  # so that who is registered is alive
        with self._locked():
            runs = self._read_runs()
            alike = {id: run for id, run in runs.items() if _likeness(run) == (queue, context)}
            past = [
                PastRun(id, alike[id]["session"], _is_broken(alike[id]), alike[id]["settled"], alike[id]["continues"])
                for id in self._over(alike, session)
            ]
            continues = continued(past, resume, session)
            continues -= self._older(runs, continues, since)
            number = max(self._folders.numbers("runs"), default=0) + 1
            fields = {
                "queue": queue, "owner": owner, "continues": sorted(continues), "started_at": now, "ended_at": None,
                "clean": None, "settled": False, "session": session, "context": context,
            }  # fmt: skip
            self._folders.write_json("runs", f"{number}.json", fields)
            resumable = self._resumable[number] = defaultdict(deque)
            done = total = 0
            for record in self._all() if continues else ():
                if record.task.run in continues and record.task.status is not Status.CANCELLED:
                    resumable[_call_of(record)].append(record.task.id)
                    total += 1
                    done += record.task.status is Status.COMPLETED
            return Run(number, queue, tuple(sorted(continues)), done, total)

    def _read_runs(self) -> dict[int, dict[str, Any]]:
        """The fields of the runs, which an older version may have written, but for those that are damaged."""
        found = {id: self._folders.read_json("runs", f"{id}.json", _RUN_FIELDS) for id in self._folders.numbers("runs")}
        return {id: {"session": 0, "context": "", **fields} for id, fields in found.items() if fields is not None}

    def _older(self, runs: dict[int, dict[str, Any]], ids: Collection[int], since: int) -> set[int]:
        """Those of the runs of which nothing has happened after `since`."""
        old = {id for id in ids if id in runs and max(runs[id]["started_at"], runs[id]["ended_at"] or 0) <= since}
        if old:  # a run that was killed may have been at work until then
            for record in self._all():
                task = record.task
                if task.run in old and max(task.enqueued_at, task.started_at or 0, task.finished_at or 0) > since:
                    old.discard(task.run)
        return old

    def end_run(self, run: Run, clean: bool, now: int) -> list[Leftover]:
        with self._locked():
            self._resumable.pop(run.id, None)
            runs = self._read_runs()
            fields = runs[run.id]
            changes: dict[int, dict[str, Any]] = {run.id: {"clean": None if clean else False}}
            if clean and not fields["session"]:
                changes = self._settled(runs, {run.id}) if not fields["settled"] else {run.id: {"clean": True}}
            changes[run.id]["ended_at"] = now
            return self._change_runs(runs, changes)

    def take_over(self, run: Run, function: Function, calls: Sequence[Call], now: int) -> list[TaskState | None]:
        if not run.continues:
            self._opened()
            return [None] * len(calls)
        with self._locked():
            given: list[Record | None] = []
            changes = _Changes()
            taken: list[tuple[deque[int], int]] = []
            try:
                for call in calls:
                    left = self._resumable[run.id][function.digest, _identity(call)]
                    record = None
                    while left and record is None:
                        taken.append((left, left.popleft()))
                        record = self._load(taken[-1][1])
                    if record is not None and record.task.status is Status.FAILED:
                        record = changes.change(record, record.after(Event.MANUAL_RETRY, now))
                    if record is not None and record.task.status is Status.PENDING and record.task.run != run.id:
                        record = changes.change(record, record.adopted(run.id))
                    given.append(record)
                self._apply_waits(changes)
                self._commit(0, changes)
            except OSError:
                for left, number in reversed(taken):
                    left.appendleft(number)
                raise
            return [None if record is None else _found(record) for record in given]

    def adopt(self, run: Run, ids: Collection[int] | None, now: int) -> int:
        with self._locked():
            owners = set(self._folders.numbers("owners"))
            busy = {id for id, fields in self._read_runs().items() if fields["owner"] in owners} | {run.id}
            changes = _Changes()
            left, seen = list(ids or ()), set[int]()
            if ids is None:
                left = [it.id for it in self._pending_of(lambda queue, of: queue == run.queue and of not in busy)]
            while left:
                number = left.pop()
                record = None if number in seen else self._load(number)
                seen.add(number)
                if record is None or record.task.status in FINISHED:
                    continue
                task = record.task
                if ids is not None and task.options is not None:
                    left += task.options.after
                is_meant = ids is not None or task.queue == run.queue
                if task.status is Status.PENDING and task.run not in busy and is_meant:
                    changes.change(record, record.adopted(run.id))
            self._commit(0, changes)
            return len(changes.new)

    def cancel_run(self, run: int, now: int) -> list[int]:
        with self._locked():
            return self.cancel([task.id for task in self._pending_of(lambda _, of: of == run)], now)

    # the work

    def turn(self, owner: int, run: Run, work: Turn) -> TurnResult:
        with self._locked():
            changes, refused = _Changes(), set[int]()
            for batch in work.adds:
                self._add(changes, owner, run, batch, work.now)
            for block in work.blocks:
                for number, outcome in _outcomes(block):
                    self._end(changes, refused, owner, number, outcome, work.now)
            for end in work.outcomes:
                self._end(changes, refused, owner, end.id, end, work.now)
            freed = self._apply_waits(changes)
            claimed: list[Record] = []
            lanes: list[Lane] = []
            try:
                if work.claim > 0:
                    lanes = self._lanes_of(changes, run, work)
                    claimed = self._claim(changes, owner, lanes, work.claim, work.now)
                self._commit(owner, changes)
            except OSError:
                self._lanes = None  # what was taken out of them is still PENDING
                raise
            foreign, self._foreign = self._foreign, False
            turned = TurnResult([_claimed(record) for record in claimed], refused, foreign, freed=freed)
            if len(claimed) < work.claim:
                turned.due = self._next_due(lanes)
                turned.next_tier = self._next_tier(run, work)
        return turned

    def add_claimed(self, owner: int, run: Run, number: int, function: Function, call: Call, now: int) -> None:
        batch = Batch(number, 1, function, calls=(call,), claimed=True)
        with self._locked():
            changes = _Changes()
            self._add(changes, owner, run, batch, now)
            self._commit(owner, changes)

    def _add(self, changes: "_Changes", owner: int, run: Run, batch: Batch, now: int) -> None:
        function = batch.function
        self._keep(function)
        if batch.key is not None and self._folders.by_key(run.queue, batch.key) is not None:
            raise StoreError(f"the store {self.path}: the queue {run.queue} has a task with the key {batch.key!r}")
        for needed in batch.options.after if batch.options is not None else ():
            if needed not in changes.new and self._load(needed) is None:
                raise TaskNotFound(
                    f"the store {self.path} holds no {format_id(needed)}, so there is no result of it that a call could"
                    " be given: it is of another store, or was purged"
                )
        claim = {"status": Status.RUNNING, "attempts": 1, "owner": owner, "started_at": now} if batch.claimed else {}
        for number, call in enumerate(batch.each(), batch.first):
            task = Task(
                id=number, queue=run.queue, run=run.id, func_path=function.path, func=b"", args=call.args,
                kwargs=call.kwargs, enqueued_at=now, key=batch.key, priority=batch.priority, eta=batch.eta,
                options=batch.options and batch.options.or_none(), **claim,  # type: ignore[arg-type]
            )  # fmt: skip
            changes.new[number] = Record(task, function.digest, call.identity, 1 + batch.claimed)

    def _end(self, changes: "_Changes", refused: set[int], owner: int, number: int, end: Outcome, now: int) -> None:
        record = changes.new.get(number) or self._load(number)
        if record is None:
            refused.add(number)
            return
        try:
            claim = Claim(owner, end.attempt)
            ended = record.after(end.event, now, claim=claim, result=end.result, error=end.error, eta=end.eta)
        except Refused:
            refused.add(number)
        else:
            changes.change(record, ended)
            if end.successor is not None and record.task.recurs:
                task = succeed(record.task, end.successor, now)
                changes.new[task.id] = Record(task, record.digest, record.identity, 1)

    def _claim(self, changes: "_Changes", owner: int, lanes: Sequence[Lane], most: int, now: int) -> list[Record]:
        """Claim the first tasks of these lanes. Those of a queue are as one, and each queue gives its share."""
        claimed: list[Record] = []
        known, of_queue = self._known_lanes(), defaultdict[str, list[Lane]](list)
        for lane in lanes:
            of_queue[lane[0]].append(lane)
        ours = set(lanes)
        for new in changes.new.values():
            if _is_claimable(new.task) and lane_of(new.task) in ours:
                known[lane_of(new.task)].push(place_of(new.task))
        for queue, share in shares(list(of_queue), most, claimed):
            enough = len(claimed) + share
            heap = [(place, lane) for lane in of_queue[queue] if (place := known[lane].first(now)) is not None]
            heapq.heapify(heap)
            while heap and len(claimed) < enough:
                place, lane = heapq.heappop(heap)
                known[lane].pop(now)
                if (next_place := known[lane].first(now)) is not None:
                    heapq.heappush(heap, (next_place, lane))
                record = changes.new.get(place[-1]) or self._load(place[-1])
                if record is not None and self._is_at(record, lane, place):
                    claimed.append(changes.change(record, record.claim(owner, now)))
        return claimed

    def _is_at(self, record: Record, lane: Lane, place: Place) -> bool:
        """Whether a task is in the lane and at the place that were taken for its own, or is put where it is."""
        if not _is_claimable(record.task):
            return False
        right = lane_of(record.task), place_of(record.task)
        if right != (lane, place):
            self._known_lanes()[right[0]].push(right[1])
        return right == (lane, place)

    def _lanes_of(self, changes: "_Changes", run: Run, work: Turn) -> list[Lane]:
        """The lanes that a turn claims from, those of a queue beside each other, and the queues in any order."""
        known = self._known_lanes()
        for lane in [lane for lane, places in known.items() if places.next() is None]:
            del known[lane]
        names = (run.queue,) if work.queues is None else work.queues
        found = {*known, *(lane_of(record.task) for record in changes.new.values() if _is_claimable(record.task))}
        if work.of_run:
            lanes = [lane for lane in found if lane[1:] == (run.id, work.tier)]
        else:
            lanes = [lane for lane in found if lane[2] == work.tier and (not names or lane[0] in names)]
        order = {queue: random.random() for queue, _, _ in lanes}
        return sorted(lanes, key=lambda lane: (order[lane[0]], lane))

    def _next_due(self, lanes: Sequence[Lane]) -> int | None:
        known = self._known_lanes()
        return min((due for lane in lanes if (due := known[lane].next_due()) is not None), default=None)

    def _next_of(self, lane: Lane) -> Place | None:
        """The next place of a lane, due or not; those before it that are out of date are taken out."""
        places = self._known_lanes()[lane]
        while (place := places.next()) is not None:
            places.drop_next()
            record = self._load(place[-1])
            if record is not None and self._is_at(record, lane, place):
                places.push(place)
                return place
        return None

    def _next_tier(self, run: Run, work: Turn) -> int | None:
        """The next tier that has PENDING tasks of what the turn claims from."""
        for tier in range(work.tier + 1, LAST_TIER + 1):
            while lanes := self._lanes_of(_Changes(), run, replace(work, tier=tier)):
                if any(self._next_of(lane) is not None for lane in lanes):
                    return tier
        return None

    def claim(self, owner: int, number: int, now: int) -> Claimed | None:
        with self._locked():
            record = self._load(number)
            if record is None or not _is_claimable(record.task):
                return None
            changes = _Changes()
            claimed = changes.change(record, record.claim(owner, now))
            self._commit(owner, changes)
            return _claimed(claimed)

    def _apply_waits(self, changes: "_Changes") -> bool:
        """Have those wait that should, after `changes`, and nobody else; returns whether some wait no more."""
        finished = [number for number, record in changes.new.items() if record.task.status in FINISHED]
        freed = False
        for number in [*changes.new, *(self._known_needs().waiting_for(finished) if finished else ())]:
            record = changes.new.get(number) or self._load(number)
            if record is None or record.task.status is not Status.PENDING:
                continue
            after = record.task.options.after if record.task.options is not None else ()
            settled = record.settled(not all(self._is_finished(needed, changes) for needed in reversed(after)))
            if settled is not record:
                changes.change(record, settled)
                freed = freed or is_waiting(record.task)
        return freed

    def cancel(self, ids: Sequence[int], now: int, running: bool = False) -> list[int]:
        with self._locked():
            changes = _Changes()
            records = list(filter(None, map(self._load, ids)))
            series = {record.task.series for record in records if record.task.recurs}
            records += self._occurrences(series) if series else ()
            cancelled = self._change(changes, records, Event.CANCEL, now)
            if running:
                cancelled += self._change(changes, records, Event.ABORT, now)
            for record in records:
                task = record.task
                if task.id not in changes.new and task.status is Status.RUNNING and task.recurs:
                    changes.change(record, record.last())
            self._apply_waits(changes)
            self._commit(0, changes)
            return cancelled

    def _occurrences(self, series: set[int]) -> Iterator[Record]:
        """What is PENDING or RUNNING of the given series."""
        for number in [*self._pending(), *self._folders.names(STATUS_FOLDERS[Status.RUNNING])]:
            record = self._load(number)
            if record is not None and record.task.recurs and record.task.series in series:
                yield record

    def retry(self, ids: Sequence[int], now: int) -> list[int]:
        with self._locked():
            changes = _Changes()
            retried = self._change(changes, filter(None, map(self._load, ids)), Event.MANUAL_RETRY, now)
            self._apply_waits(changes)
            self._commit(0, changes)
            return retried

    def _change(self, changes: "_Changes", records: Iterable[Record], event: Event, now: int) -> list[int]:
        """Let an event happen to those to which it may; returns which."""
        before = len(changes.new)
        for record in records:
            with contextlib.suppress(Refused):
                changes.change(record, record.after(event, now))
        return list(changes.new)[before:]

    # upkeep

    def purge(self, before: int, statuses: Collection[Status] = FINISHED, queue: str | None = None) -> int:
        check_finished(statuses)
        with self._locked():
            changes = _Changes()
            needed = self._needed()
            for status in statuses:
                for number in self._folders.names(STATUS_FOLDERS[status]):
                    record = self._load(number)
                    if record is None or record.task.status is not status:
                        continue
                    task = record.task
                    is_meant = (task.finished_at or 0) < before and (queue is None or task.queue == queue)
                    if is_meant and number not in needed:
                        changes.change(record, record.removed())
            self._commit(0, changes)
            if changes.new:
                self._drop_unused()
        self.output.remove_strays(self.ids)
        return len(changes.new)

    def _needed(self) -> set[int]:
        """What those come after that are not finished."""
        numbers = [*self._folders.names(STATUS_FOLDERS[Status.RUNNING]), *self._pending()]
        records = map(self._load, numbers)
        tasks = [record.task for record in records if record is not None and record.task.status not in FINISHED]
        return {number for task in tasks if task.options is not None for number in task.options.after}

    def _drop_unused(self) -> None:
        """Remove the functions and the runs that no task needs. See Store.purge()."""
        records = list(self._all())
        if not self._folders.numbers("owners"):
            used = {record.digest.hex() for record in records}
            for name in self._folders.json_names("functions"):
                if name not in used:
                    (self.path / "functions" / f"{name}.json").unlink()
            self._functions.clear()
        runs = {record.task.run for record in records}
        fields = self._read_runs()
        last = {run["queue"]: number for number, run in sorted(fields.items())}
        for number, run in fields.items():
            if run["settled"] and number not in runs and number != last[run["queue"]]:
                (self.path / "runs" / f"{number}.json").unlink()

    def backup(self, destination: Path) -> int:
        self._opened()
        with safety.appearing(destination) as fresh:
            safety.make_folder(fresh)
            safety.make_folder(fresh / "tasks")
            # Most of the work without the lock, which others wait for: what changes meanwhile is copied again.
            copied: dict[str, _Seen] = {}
            output = Output(fresh / "output")
            output.take_in(self.output)  # twice, as the tasks
            _copy_tasks(self.path / "tasks", fresh / "tasks", copied)
            with self._locked():
                output.take_in(self.output)
                _copy_tasks(self.path / "tasks", fresh / "tasks", copied)
                for name in (_MARK, _ORDER):
                    if (self.path / name).exists():
                        _copy_file(self.path / name, fresh / name)
                for folder in ("functions", "runs", "keys"):
                    safety.make_folder(fresh / folder)
                    for entry in os.scandir(self.path / folder):
                        if entry.is_symlink():
                            os.symlink(os.readlink(entry.path), fresh / folder / entry.name)
                        elif entry.name.endswith(".json") and entry.is_file():
                            _copy_file(entry.path, fresh / folder / entry.name)
            durability: Literal["process", "power"] = "power" if self._durable else "process"
            with contextlib.closing(FileStore(fresh, durability=durability)) as copy, copy._locked():
                copy._disown()
                numbers = copy._folders.names("tasks")
                output.remove_strays(lambda: numbers)
                if self._durable:
                    copy._folders.sync(set(numbers))
        return len(numbers)

    def _disown(self, but: Collection[int] = ()) -> int:
        """RELEASE what is RUNNING without a registered owner, or one of `but`; return how many tasks."""
        here = {*self._folders.numbers("owners"), *but}
        changes = _Changes()
        for number in self._folders.names(STATUS_FOLDERS[Status.RUNNING]):
            record = self._load(number)
            if record is not None and record.task.status is Status.RUNNING and record.task.owner not in here:
                changes.change(record, record.release(now()))
        self._apply_waits(changes)
        self._commit(0, changes)
        return len(changes.new)

    def check(self) -> list[Problem]:
        with self._locked():
            repairs = self._folders.repairs
            self._known.clear()
            self._folders.check()
            order: Noted = {}
            keys: dict[tuple[str, str], int] = {}
            digests: dict[bytes, int] = {}
            for record in self._all():
                task = record.task
                self._folders.check_link(record)
                digests[record.digest] = digests.get(record.digest, 0) + 1
                if _is_claimable(task):
                    order[task.id] = {(lane_of(task), place_of(task))}
                if task.key is not None and keys.setdefault((task.queue, task.key), task.id) != task.id:
                    first = format_id(keys[task.queue, task.key])
                    repairs.append(Problem(f"{task.task_id} has the key {task.key!r}, and so has {first}", False))
            self._order.rewrite(order)
            self._lanes = None
            self._folders.check_keys(keys)
            self._check_functions(digests)
            self._check_waiting()
            self._folders.check_json("runs", _RUN_FIELDS, "what that run left open is not continued")
            self._check_sessions()
            self._check_owners()
            strays = self.output.remove_strays(self.ids)
            if strays:
                repairs.append(Problem(f"{strays} files held what tasks wrote that are gone", True))
            found, self._folders.repairs = repairs, []
            return found

    def _check_waiting(self) -> None:
        """Have those wait that should, and nobody else."""
        self._needs = None
        changes = _Changes()
        for record in self._all():
            after = record.task.options.after if record.task.options is not None else ()
            if record.task.status is Status.PENDING and after:
                settled = record.settled(not all(map(self._is_finished, after)))
                if settled is not record:
                    changes.change(record, settled)
        self._commit(0, changes)
        if changes.new:
            what = f"{len(changes.new)} tasks waited for what is finished, or did not wait for what is not"
            self._folders.repairs.append(Problem(what, True))

    def _check_functions(self, digests: dict[bytes, int]) -> None:
        good = self._folders.check_json("functions", _FUNCTION_FIELDS, "its tasks cannot run")
        for digest, count in digests.items():
            if digest.hex() not in good:
                what = f"functions/{digest.hex()}.json is missing; {count} tasks cannot run"
                self._folders.repairs.append(Problem(what, False))

    def _check_sessions(self) -> None:
        """Write again what is damaged of those whose process lives, and forget the others."""
        dead = self._dead_sessions()
        self._forget_sessions(dead)
        for session in self._folders.numbers("sessions"):
            if self._folders.read_json("sessions", f"{session}.json", _SESSION_FIELDS) is None:
                fresh = {"host": self._owners.host, "pid": 0, "started_at": 0}
                self._folders.write_json("sessions", f"{session}.json", fresh)
                what = f"sessions/{session}.json was damaged, and is written again: its process lives"
                self._folders.repairs.append(Problem(what, True))
        for path in (self.path / "sessions").glob("*.new"):  # somebody died over it
            path.unlink()

    def _check_owners(self) -> None:
        repairs = self._folders.repairs
        registered = set(self._folders.numbers("owners"))
        good = set(
            map(int, self._folders.check_json("owners", _OWNER_FIELDS, "whether it lives is seen from its lock"))
        )
        nameless = {owner for owner in registered - good if self._owners.is_alive(owner, self._owners.host)}
        dead = [owner for owner in self._registered() if not owner.alive]
        for owner in dead:
            repairs.append(Problem(f"the owner {owner.id} of {owner.queue!r}, process {owner.pid}, is dead", True))
        released = self._bury(self._suspects(owner.id for owner in dead)) if dead else 0
        released += self._disown(but=nameless)
        if released:
            repairs.append(Problem(f"{released} tasks were RUNNING though their owners are gone", True))
        here = set(self._folders.json_names("owners"))
        for path in (self.path / "owners").glob("*.lock"):
            if path.stem not in here and not self._owners.is_alive(int(path.stem), self._owners.host):
                self._owners.forget(int(path.stem))

    # moving to another store

    def ids(self) -> list[int]:
        with self._locked():
            return self._folders.names("tasks")

    def stored(self, ids: Sequence[int]) -> list[TaskRow]:
        with self._locked():
            records = [record for number in ids if (record := self._load(number)) is not None]
            return [TaskRow(self._task(record), record.digest, record.identity) for record in records]

    def runs(self) -> list[RunRecord]:
        with self._locked():
            runs = self._read_runs()
        return [
            RunRecord(number, **{**run, "continues": tuple(run["continues"])}) for number, run in sorted(runs.items())
        ]

    def begin_filling(self, source: str) -> str | None:
        self.reap(now())
        with self._locked():
            mark = self._folders.read_json("", _MARK) or {}
            if "migrating" in mark:
                found: str = mark["migrating"]
                return found
            if self._folders.names("tasks") or self._folders.numbers("runs") or self._folders.numbers("owners"):
                return None
            self._folders.write_json("", _MARK, {**mark, "migrating": source})
            return source

    def put(self, tasks: Sequence[TaskRow] = (), runs: Sequence[RunRecord] = (), gone: Sequence[int] = ()) -> None:
        with self._locked():
            changes = _Changes()
            for number in gone:
                if (record := self._load(number)) is not None:
                    changes.change(record, record.removed())
            self._commit(0, changes)
            for run in runs:
                fields = run._asdict()
                self._folders.write_json("runs", f"{fields.pop('id')}.json", fields)
            changes = _Changes()
            for task, digest, identity in tasks:
                self._keep(Function(digest, task.func_path, task.func))
                new = Record(task._replace(func=b""), digest, identity, version=1)
                old = self._load(task.id)
                if old is None:
                    changes.new[task.id] = new
                else:
                    changes.change(old, replace(new, version=old.version + 1, size=old.size))
            self._commit(0, changes)

    def end_filling(self) -> None:
        with self._locked():
            os.sync()  # a file after the other would take minutes
            mark = self._folders.read_json("", _MARK) or {}
            self._folders.write_json("", _MARK, {name: mark[name] for name in mark if name != "migrating"})
            safety.sync(self.path / _MARK)
            safety.sync(self.path)

    # functions

    def _keep(self, function: Function) -> None:
        if function.digest not in self._functions:
            name = f"{function.digest.hex()}.json"
            if self._folders.read_json("functions", name, _FUNCTION_FIELDS) is None:
                content = {"path": function.path, "pickle": base64.b64encode(function.pickle).decode()}
                self._folders.write_json("functions", name, content)
            self._remember(function)

    def _remember(self, function: Function) -> None:
        if len(self._functions) == _KNOWN_FUNCTIONS:
            self._functions.clear()
        self._functions[function.digest] = function

    def function(self, digest: bytes) -> Function:
        found = self._functions.get(digest)
        if found is None:
            with self._locked():
                content = self._folders.read_json("functions", f"{digest.hex()}.json", _FUNCTION_FIELDS)
            if content is None:
                raise StoreError(f"{self.path} holds no function {digest.hex()}")
            found = Function(digest, content["path"], base64.b64decode(content["pickle"]))
            self._remember(found)
        return found

    # looking

    def get(self, task_id: int | str) -> Task:
        number = parse_id(task_id) if isinstance(task_id, str) else task_id
        with self._locked():
            record = self._load(number) if 0 <= number < 1 << 63 else None
            if record is None:
                raise TaskNotFound(
                    f"{self.path} holds no {format_id(number)}; `omniq-executor list` shows what it holds"
                )
            return self._task(record)

    def states(self, ids: Iterable[int]) -> list[TaskState]:
        with self._locked():
            return [_found(record) for number in ids if (record := self._load(number)) is not None]

    def by_key(self, queue: str, key: str) -> TaskState | None:
        with self._locked():
            number = self._folders.by_key(queue, key)
            record = None if number is None else self._load(number)
            return None if record is None else _found(record)

    def counts(self) -> dict[str, dict[Status, int]]:
        counts: dict[str, dict[Status, int]] = {}
        with self._locked():
            for record in self._all():
                of_queue = counts.setdefault(record.task.queue, {})
                of_queue[record.task.status] = of_queue.get(record.task.status, 0) + 1
        return {queue: dict(sorted(of_queue.items())) for queue, of_queue in sorted(counts.items())}

    def find(
        self,
        status: Status | None = None,
        queue: str | None = None,
        tags: Sequence[str] | None = None,
        limit: int | None = None,
    ) -> list[Task]:
        tasks: list[Task] = []
        with self._locked():
            if status is Status.PENDING:
                numbers = self._pending()
            else:
                numbers = self._folders.names("tasks" if status is None else STATUS_FOLDERS[status])
            for number in reversed(numbers):
                if limit is not None and len(tasks) >= limit:
                    break
                record = self._load(number)
                if record is None or (status is not None and record.task.status is not status):
                    continue
                given = () if record.task.options is None else record.task.options.tags
                if (queue is None or record.task.queue == queue) and set(tags or ()) <= set(given):
                    tasks.append(self._task(record))
        return tasks[::-1]

    def _pending(self) -> list[int]:
        """What is PENDING, waiting or not, oldest first."""
        return sorted([*self._folders.names(STATUS_FOLDERS[Status.PENDING]), *self._folders.names(WAITING)])

    def _all(self) -> Iterator[Record]:
        for number in self._folders.names("tasks"):
            record = self._load(number)
            if record is not None:
                yield record

    def _task(self, record: Record) -> Task:
        return record.task._replace(func=self.function(record.digest).pickle)

    def _opened(self) -> None:
        if self._closed:
            raise StoreError(f"the store {self.path} has been closed")


class _Changes:
    """What a transaction changes: of each task the record before it, if there was one, and the one after it."""

    def __init__(self) -> None:
        self.old: dict[int, Record] = {}
        self.new: dict[int, Record] = {}

    def change(self, old: Record, new: Record) -> Record:
        number = new.task.id
        if number not in self.new:
            self.old[number] = old
        self.new[number] = new
        return new


_Seen = tuple[int, int, int]  # inode, time of the last change, size
_SETTLED_S = 1.0  # a file that changed that lately may change again without another time


def _copy_tasks(source: Path, target: Path, copied: dict[str, _Seen]) -> None:
    """Copy the files that are not in `copied`, or have changed since they were, and note them there."""
    left = set(copied)
    for entry in list(os.scandir(source)):  # all at once: whoever adds files quickly would never let it end
        if not entry.name.endswith(".json") or not entry.is_file(follow_symlinks=False):
            continue
        left.discard(entry.name)
        with contextlib.suppress(FileNotFoundError):  # without the lock it may be purged at any time
            found = entry.stat(follow_symlinks=False)
            seen = found.st_ino, found.st_mtime_ns, found.st_size
            if copied.get(entry.name) != seen:
                if entry.name in copied:
                    (target / entry.name).unlink()
                is_settled = found.st_mtime_ns < time.time_ns() - _SETTLED_S * 1e9
                copied[entry.name] = seen if is_settled else (0, 0, 0)
                _copy_file(entry.path, target / entry.name)
    for name in left:
        (target / name).unlink()
        del copied[name]


def _copy_file(source: str | Path, target: Path) -> None:
    safety.make_file(target)
    shutil.copyfile(source, target)


_CLAIMED_FROM = source(Event.CLAIM)


def _is_broken(run: dict[str, Any]) -> bool:
    """Whether a run did not end, or not clean."""
    return run["clean"] is False or run["ended_at"] is None


def _likeness(run: dict[str, Any]) -> tuple[str, str]:
    """What a run has in common with those that continue and settle it."""
    return run["queue"], run["context"]


def _is_claimable(task: Task) -> bool:
    """Whether the task can be claimed, once it is due."""
    return task.status in _CLAIMED_FROM and not is_waiting(task)


def _outcomes(block: ResultBatch) -> Iterator[tuple[int, Outcome]]:
    for number, text in enumerate(codec.split(block.text), block.first):
        yield number, Outcome(number, block.attempt, Event.COMPLETE, text[1:-1])


def _parse(text: bytes) -> Record:
    """The record of a text in the journal, whose checksum is right."""
    number = parse_id(text[text.index(b'"task-') + 1 : text.index(b'",')].decode())
    return from_text(number, text)


def _numbers_in(entries: Iterable[Entry]) -> set[int]:
    return {_parse(text).task.id for entry in entries for text in entry.texts}


def _found(record: Record) -> TaskState:
    task = record.task
    return TaskState(task.id, task.status, task.owner, task.result, task.error)


def _claimed(record: Record) -> Claimed:
    task = record.task
    return Claimed(
        task.id, task.attempts, task.crashes, task.run, record.digest, task.args, task.kwargs, task.eta, task.options,
        task.owner_deaths,
    )  # fmt: skip


def _identity(call: Call) -> str | bytes:
    return call.identity if call.identity is not None else str(call.args) + (call.kwargs or "")


def _call_of(record: Record) -> tuple[bytes, str | bytes]:
    return record.digest, _identity(Call(record.task.args, record.task.kwargs, record.identity))


def _after_fork_in_child() -> None:
    for store in list(_open_stores):
        store._closed = True
        store._lock = threading.RLock()
        store._folders.close()
        store._journal.close()
        store._order.close()
    _open_stores.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
