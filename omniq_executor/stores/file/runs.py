"""Who is there in a file store: owners, sessions and runs, and what runs take over. See store.py."""

import bisect
import contextlib
import logging
import os
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from ... import slots
from ...errors import StoreError
from ...model.task import FINISHED, Call, Claim, Event, Function, Status, Task, source
from ...value_files import names_in
from ..base import ADDS, SMALL, Leftover, Owner, Resumable, Run, Taken, TaskState, now
from ..owners import new_owner_id
from ..rules import PastRun, Resume, beside, can_be_taken, continued, ended, initializer_of
from .folders import WAITING
from .part import OfFiles, found, likeness_of
from .records import Record

TAKEN = ".taken"  # ends the name of the file with what a run has taken over, a task a line
RUN_FIELDS = {"queue", "owner", "continues", "started_at", "ended_at", "clean", "settled"}
_Changes = dict[int, dict[str, Any]]  # by run
OWNER_FIELDS = {"queue", "host", "pid", "opened_at"}
SESSION_FIELDS = {"host", "pid", "started_at"}

_log = logging.getLogger("omniq_executor")


class Runs(OfFiles):
    """Registers owners, sessions and runs, and forgets them."""

    def enter(self, queue: str) -> int:
        with self._tasks.locked():
            self.reserve.take()
            owner = new_owner_id(self._tasks.folders.numbers("owners"))
            self._owners.hold(owner)
            self._functions.forget()  # while no owner was registered, some may have been purged
            try:
                about = {"queue": queue, "host": self._owners.host, "pid": os.getpid(), "opened_at": now()}
                self._tasks.folders.write_json("owners", f"{owner}.json", about)
                self._tasks.journal.append(owner, [], b"")
                self._tasks.journal.mark_applied()
            except OSError:
                self._owners.let_go(owner)
                raise
            self._tasks.peers = None
            self._tasks.unread[owner] = []
            return owner

    def _leave(self, owner: int) -> None:
        with self._tasks.locked():
            self._unregister({owner: ()})
            self._tasks.unread.pop(owner, None)

    def owners(self) -> list[Owner]:
        with self._tasks.locked():
            return self._registered()

    def _registered(self) -> list[Owner]:
        owners = []
        for id in self._tasks.folders.numbers("owners"):
            about = self._about("owners", id, OWNER_FIELDS)
            alive = self._owners.is_alive(id, about["host"])
            owners.append(Owner(id, about["queue"], about["host"], about["pid"], about["opened_at"], alive))
        return sorted(owners, key=lambda owner: (owner.opened_at, owner.id))

    def peers(self, owner: int) -> list[int]:
        with self._tasks.locked():
            return [id for id in self._tasks.folders.numbers("owners") if id != owner]

    def reap(self, now: int) -> int:
        with self._tasks.locked():
            dead = self._suspects(owner.id for owner in self._registered() if not owner.alive)
            sessions = self._dead_sessions()
            orphaned = self._unregister(dead) if dead else 0
            self._forget("sessions", sessions)
        for id in [*dead, *sessions]:
            self._owners.forget(id)
        return orphaned

    def _dead_sessions(self) -> list[int]:
        about = {id: self._about("sessions", id, SESSION_FIELDS) for id in self._tasks.folders.numbers("sessions")}
        return [id for id, fields in about.items() if not self._owners.is_alive(id, fields["host"])]

    def _about(self, folder: str, id: int, fields: set[str]) -> dict[str, Any]:
        """Return what a file tells of an owner or a session. If it is damaged, only the lock tells if that lives."""
        about = self._tasks.folders.read_json(folder, f"{id}.json", fields)
        if about is None or not isinstance(about["host"], str):
            return {"queue": "", "host": self._owners.host, "pid": 0, "opened_at": 0}
        return about

    def _forget(self, folder: str, ids: Iterable[int]) -> None:
        """Remove the files of owners or sessions that are gone."""
        try:
            for id in ids:
                (self.path / folder / f"{id}.json").unlink(missing_ok=True)
            if folder == "owners":
                # Not marked as applied: files of the one before may not be written.
                self._tasks.journal.append(0, [], b"")
        except OSError as error:
            # What was done before is committed, and must not look as if it were not: the tasks of an owner are
            # released, and a session is over as soon as its process is dead.
            _log.warning("%s: %s that are gone are forgotten later: %s", self.path, folder, error)

    def _suspects(self, dead: Iterable[int]) -> dict[int, Collection[int] | None]:
        """Return of each dead owner the tasks that it had begun, or None if any may have been."""
        return {owner: slots.begun(self._owners.slots_path(owner)) for owner in dead}

    def _unregister(self, owners: Mapping[int, Collection[int] | None]) -> int:
        """Take back the tasks of owners that are gone, forget them, and return how many tasks that were.

        The tasks that are given with an owner are orphaned, all if it is None; others are released.
        """
        returned = self._take_back(lambda owner: owner in owners, owners)
        self._tasks.peers = None
        self._forget("owners", owners)
        return returned

    def _release_unowned(self, but: Collection[int] = ()) -> int:
        """RELEASE what is RUNNING without a registered owner, or one of `but`; return how many tasks."""
        here = {*self._tasks.folders.numbers("owners"), *but}
        return self._take_back(lambda owner: owner not in here, {})

    def _take_back(self, is_gone: Callable[[int], bool], suspects: Mapping[int, Collection[int] | None]) -> int:
        with self._tasks.changing() as changes:
            for record in self._tasks.all(Status.RUNNING):
                task, owner = record.task, record.task.owner or 0
                if is_gone(owner):
                    begun = suspects.get(owner, ())
                    event = Event.ORPHAN if begun is None or task.id in begun else Event.RELEASE
                    changes.change(record, record.after(event, now(), claim=Claim(owner, task.attempts)))
        return len(changes.new)

    def notify(self, owner: int) -> None:
        """Wake the other owners: something that they may wait for is committed."""
        if self._tasks.peers is None:
            with self._tasks.locked():
                self._tasks.peers = self._tasks.folders.numbers("owners")
        for peer in self._tasks.peers:
            if peer != owner:
                self._owners.notify(peer)

    def read_changes(self, owner: int) -> list[int]:
        with self._tasks.locked():
            unread, self._tasks.unread[owner] = self._tasks.unread.get(owner, []), []
            return unread

    def _register_session(self, session: int, now: int) -> None:
        with self._tasks.locked():
            about = {"host": self._owners.host, "pid": os.getpid(), "started_at": now}
            self._tasks.folders.write_json("sessions", f"{session}.json", about)

    def end_session(self, session: int, clean: bool, now: int, *, keep_broken: bool = False) -> list[Leftover]:
        with self._tasks.locked():
            runs = self._read_runs()
            own = {id for id, run in runs.items() if run["session"] == session and not run["settled"]}
            if clean:
                changes = self._ended(runs, own, keep_broken)
            else:
                changes = {id: {"clean": False} for id in own if runs[id]["clean"] is None}
            left = self._change_runs(runs, changes)
            # Last: whoever dies before that leaves a session that is over, and runs that are continued.
            self._forget("sessions", [session])
        self._owners.let_go(session)
        return left

    def _ended(self, runs: dict[int, dict[str, Any]], own: Collection[int], keep_broken: bool) -> _Changes:
        """Return what changes of which runs as these end clean.

        Those are the last: whoever dies before that leaves them to be continued.
        """
        clean, settled = ended(self._past(runs), own, keep_broken)
        others: _Changes = {id: {"settled": True} for id in settled - clean}
        return others | {id: {"clean": True, "settled": id in settled} for id in clean}

    def _change_runs(self, runs: dict[int, dict[str, Any]], changes: _Changes) -> list[Leftover]:
        """Write these changes of runs; returns what those have left that are settled by it."""
        settled = [id for id, change in changes.items() if change.get("settled")]
        left = self._left_by(settled)
        written: list[int] = []
        try:
            for id, change in changes.items():
                self._tasks.folders.write_json("runs", f"{id}.json", {**runs[id], **change})
                written.append(id)
        except OSError:
            with contextlib.suppress(OSError):
                for id in reversed(written):
                    self._tasks.folders.write_json("runs", f"{id}.json", runs[id])
            raise
        return [
            Leftover(id, runs[id]["queue"], runs[id]["started_at"], left[id], runs[id]["context"])
            for id in sorted(left)
        ]

    def _left_by(self, runs: Collection[int]) -> dict[int, int]:
        """Return by run how many PENDING tasks it has, of those that have some."""
        counts: Counter[int] = Counter()
        unsure = self._tasks.folders.names(WAITING)
        if any(run in runs for _, run, _ in self._tasks.lanes()):
            for number, places in self._tasks.in_order().items():
                of = {run for (_, run, _), _ in places}
                if len(of) > 1:
                    unsure.append(number)
                else:  # without a look into its file: there may be very many
                    counts[of.pop()] += 1
        counts.update(it.task.run for it in self._tasks.records(unsure) if it.task.status is Status.PENDING)
        return {run: counts[run] for run in runs if counts[run]}

    def _pending_of(self, is_meant: Callable[[str, int], bool]) -> list[Task]:
        """Return what is PENDING of certain queues and runs, waiting or not. It reads hardly any other files."""
        numbers = self._tasks.folders.names(WAITING)
        if any(is_meant(queue, run) for queue, run, _ in self._tasks.lanes()):
            for number, places in self._tasks.in_order().items():
                if any(is_meant(queue, run) for (queue, run, _), _ in places):
                    numbers.append(number)
        tasks = [record.task for record in self._tasks.records(sorted(numbers))]
        return [task for task in tasks if task.status is Status.PENDING and is_meant(task.queue, task.run)]

    def _past(self, runs: dict[int, dict[str, Any]], but: int = 0) -> list[PastRun]:
        """Return the runs as rules.py has them. The session `but` counts as one that is over."""
        owners = set(self._tasks.folders.numbers("owners"))
        sessions = set(self._tasks.folders.numbers("sessions")) - {but}
        return [
            PastRun(
                id, (run["queue"], run["context"]), run["continues"], run["session"],
                run["clean"] is False or run["ended_at"] is None, run["settled"],
                run["owner"] not in owners and run["session"] not in sessions,
            )
            for id, run in runs.items()
        ]  # fmt: skip

    def begin_run(
        self, queue: str, owner: int, resume: Resume, now: int, *,
        session: int = 0, context: str = "", since: int = 0, result_ttl: int | None = None,
    ) -> Run:  # fmt: skip
        self.reap(now)  # so that who is registered is alive
        with self._tasks.locked():
            runs = self._read_runs()
            past = [it for it in self._past(runs, session) if it.likeness == (queue, context) and it.is_over]
            failed = self._tasks.all(Status.FAILED) if resume == "failed" else ()
            continues = continued(past, resume, session, {record.task.run for record in failed})
            continues -= self._older(runs, continues, since)
            number = max(self._tasks.folders.numbers("runs"), default=0) + 1
            fields = {
                "queue": queue, "owner": owner, "continues": sorted(continues), "started_at": now, "ended_at": None,
                "clean": None, "settled": False, "session": session, "context": context, "result_ttl": result_ttl,
            }  # fmt: skip
            self._tasks.folders.write_json("runs", f"{number}.json", fields)
            runs[number] = fields
            begun = Run(number, queue, tuple(sorted(continues)), context=context)
            begun = begun._replace(beside=beside(number, {id: _life(of) for id, of in runs.items()}, continues))
            return self._offer(begun, frozenset(Status) - {Status.CANCELLED})

    def offer_again(self, run: Run) -> Run:
        with self._tasks.locked():
            own = run._replace(continues=tuple(sorted({*run.continues, run.id})))
            return self._offer(own, {Status.COMPLETED})

    def offer_more(self, run: Run, ids: Collection[int]) -> None:
        with self._tasks.locked():
            resumable, in_order = self._resumable[run.id], self._in_order[run.id]
            for record in self._tasks.records(ids):
                if record.task.status is Status.COMPLETED and record.task.run == run.id:
                    likeness, id = likeness_of(record), record.task.id
                    resumable[record.digest, likeness] = deque(sorted((*resumable[record.digest, likeness], id)))
                    bisect.insort(in_order[record.digest], (id, likeness))
                    self._resumable_functions[run.id][record.task.func_path].add(record.digest)

    def _offer(self, run: Run, statuses: Collection[Status]) -> Run:
        """Note what there is to be taken over of the runs that one continues; return that one with how much it is."""
        resumable = self._resumable[run.id] = defaultdict(deque)
        functions = self._resumable_functions[run.id] = defaultdict(set)
        in_order = self._in_order[run.id] = defaultdict(list)
        done = total = 0
        theirs = self._taken_by(run.beside)
        for record in self._tasks.all() if run.continues else ():
            task = record.task
            if task.run in run.continues and task.status in statuses and task.id not in theirs:
                likeness = likeness_of(record)
                resumable[record.digest, likeness].append(task.id)
                in_order[record.digest].append((task.id, likeness))
                functions[task.func_path].add(record.digest)
                total += 1
                done += task.status is Status.COMPLETED
        return run._replace(done=done, total=total)

    def _read_runs(self, ids: Iterable[int] | None = None) -> dict[int, dict[str, Any]]:
        """Return the fields of these or all runs, which an older version may have written, but for damaged ones."""
        found = {
            id: self._tasks.folders.read_json("runs", f"{id}.json", RUN_FIELDS)
            for id in (self._tasks.folders.numbers("runs") if ids is None else ids)
        }
        return {id: {"session": 0, "context": "", **fields} for id, fields in found.items() if fields is not None}

    def _older(self, runs: dict[int, dict[str, Any]], ids: Collection[int], since: int) -> set[int]:
        """Return those of the runs of which nothing has happened after `since`."""
        old = {id for id in ids if id in runs and max(runs[id]["started_at"], runs[id]["ended_at"] or 0) <= since}
        if old:  # a run that was killed may have been at work until then
            for record in self._tasks.all():
                task = record.task
                if task.run in old and max(task.enqueued_at, task.started_at or 0, task.finished_at or 0) > since:
                    old.discard(task.run)
        return old

    def end_run(self, run: Run, clean: bool, now: int) -> list[Leftover]:
        with self._tasks.locked():
            self._resumable.pop(run.id, None)
            self._resumable_functions.pop(run.id, None)
            self._in_order.pop(run.id, None)
            runs = self._read_runs()
            fields = runs[run.id]
            changes: _Changes = {run.id: {"clean": None if clean else False}}
            if clean and not fields["session"]:
                changes = self._ended(runs, {run.id}, False) if not fields["settled"] else {run.id: {"clean": True}}
            changes[run.id]["ended_at"] = now
            return self._change_runs(runs, changes)

    def _take_over(self, run: Run, function: Function, calls: Sequence[Call], now: int) -> list[TaskState | None]:
        taken: list[tuple[deque[int], int]] = []
        noted: list[Taken] = []
        try:
            with self._tasks.changing() as changes:
                given: list[Record | None] = []
                theirs = self._taken_by(run.beside)
                for call in calls:
                    left = self._resumable[run.id][function.digest, call.likeness]
                    while left and left[0] in theirs:
                        left.popleft()
                    record = None
                    if left:
                        taken.append((left, left.popleft()))
                        record = self._tasks.load(taken[-1][1])
                    if record is not None:
                        is_alike = self._is_alike(run, record.task.run)
                        record = record if can_be_taken(record.task.status, is_alike) else None
                    if record is not None and record.task.run != run.id:
                        noted.append(Taken(run.id, record.task.id, record.task.status, record.task.run))
                    if record is not None and record.task.status is Status.FAILED:
                        record = changes.change(record, record.after(Event.MANUAL_RETRY, now))
                    if record is not None and record.task.status is Status.PENDING and record.task.run != run.id:
                        record = changes.change(record, record.changed(record.task._replace(run=run.id)))
                    given.append(record)
                self._note_taken(run.id, noted)
        except StoreError:
            for left, number in reversed(taken):
                left.appendleft(number)
            raise
        failed = {it.task for it in noted if it.status is Status.FAILED}
        return [
            None if record is None else found(record)._replace(had_failed=record.task.id in failed) for record in given
        ]

    def ahead(self, run: Run, function: Function, after: int, most: int) -> list[tuple[str | bytes, TaskState]]:
        with self._tasks.locked():
            resumable, in_order = self._resumable[run.id], self._in_order[run.id][function.digest]
            seen: list[tuple[str | bytes, TaskState]] = []
            theirs = self._taken_by(run.beside)
            start = bisect.bisect_right(in_order, after, key=itemgetter(0))
            for id, likeness in in_order[start : start + most]:
                left = resumable.get((function.digest, likeness))
                record = self._tasks.load(id) if left and left[0] == id and id not in theirs else None
                if record is not None and _is_small(record) and self._is_alike(run, record.task.run):
                    seen.append((likeness, found(record)))
            return seen

    def note_given(self, run: Run, given: Mapping[int, tuple[bytes, str | bytes]]) -> None:
        with self._tasks.locked():
            for id, key in given.items():
                with contextlib.suppress(ValueError):
                    self._resumable[run.id][key].remove(id)
            tasks = (record.task for record in self._tasks.records(given))
            self._note_taken(run.id, [Taken(run.id, it.id, it.status, it.run) for it in tasks if it.run != run.id])

    def retry_for(self, run: Run, ids: Sequence[int], now: int) -> list[int]:
        with self._tasks.locked():
            ended = [it.task for it in self._tasks.records(ids) if it.task.status in source(Event.MANUAL_RETRY)]
            retried = self.retry(ids, now)
            self._note_taken(run.id, [Taken(run.id, task.id, task.status, task.run) for task in ended])
            return retried

    def _resumable_of(
        self, run: Run, path: str, likenesses: Collection[str | bytes]
    ) -> dict[str | bytes, list[Resumable]] | None:
        with self._tasks.locked():
            resumable, digests = self._resumable[run.id], self._resumable_functions[run.id].get(path)
            if digests is None:
                return None
            theirs = self._taken_by(run.beside)
            found: dict[str | bytes, list[Resumable]] = {}
            for likeness in likenesses:
                ids = [id for digest in digests for id in resumable.get((digest, likeness), ())]
                if records := [*self._tasks.records(id for id in sorted(ids) if id not in theirs)]:
                    found[likeness] = [Resumable(it.task.id, it.digest, it.task.status) for it in records]
            return found

    def taken(self) -> list[Taken]:
        with self._tasks.locked():
            return [it for run in self._tasks.folders.numbers("runs") for it in self._read_taken(run)]

    def _taken_by(self, runs: tuple[int, ...]) -> set[int]:
        """Return the tasks that runs have taken over. What has come to their files since the last time is read."""
        read, tasks = self._taken.setdefault(runs, ({}, set()))
        for run in runs:
            with contextlib.suppress(FileNotFoundError), self._taken_path(run).open("rb") as file:
                file.seek(read.get(run, 0))
                text = file.read()
                whole = text[: text.rfind(b"\n") + 1]
                read[run] = read.get(run, 0) + len(whole)
                tasks.update(int(line.split()[0]) for line in whole.splitlines() if line.strip())
        return tasks

    def _taken_path(self, run: int) -> Path:
        return self.path / "runs" / f"{run}{TAKEN}"

    def _read_taken(self, run: int) -> Iterator[Taken]:
        try:
            text = self._taken_path(run).read_bytes()
        except FileNotFoundError:
            return
        seen: set[int] = set()  # what was offered again is noted again: how it stood at first is what counts
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # a cut of the power may have torn one
                task, status, origin = map(int, line.split())
                if task not in seen:
                    seen.add(task)
                    yield Taken(run, task, Status(status), origin)

    def _note_taken(self, run: int, taken: Iterable[Taken], anew: bool = False) -> None:
        """Add to the file of what a run has taken over. It is looked at and no more, so it is not synced."""
        text = "".join(f"{it.task} {it.status:d} {it.origin}\n" for it in taken)
        if text:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_TRUNC if anew else os.O_APPEND)
            with open(os.open(self._taken_path(run), flags, 0o600), "wb") as file:
                file.write(text.encode())

    def adopt(self, run: Run, ids: Collection[int] | None, now: int, *, any_context: bool = False) -> int:
        with self._tasks.changing() as changes:
            owners = set(self._tasks.folders.numbers("owners"))
            if ids is not None:
                owners = {id for id in owners if self._about("owners", id, OWNER_FIELDS)["queue"] != ADDS}
            busy = {id for id, fields in self._read_runs().items() if fields["owner"] in owners} | {run.id}
            left, seen, anyhow = list(ids or ()), set[int](), set(ids or ()) if any_context else set[int]()
            if ids is None:
                left = [it.id for it in self._pending_of(lambda queue, of: queue == run.queue and of not in busy)]
            while left:
                number = left.pop()
                record = None if number in seen else self._tasks.load(number)
                seen.add(number)
                if record is None or record.task.status in FINISHED:
                    continue
                task = record.task
                if ids is not None:
                    left += task.after
                is_alike = not task.run or number in anyhow or self._is_alike(run, task.run, by_id=ids is not None)
                if task.status is Status.PENDING and task.run not in busy and is_alike:
                    changes.change(record, record.changed(task._replace(run=run.id)))
        return len(changes.new)

    def _is_alike(self, run: Run, other: int, by_id: bool = False) -> bool:
        """Return whether another run has the context of a run, or, by id, its initializer."""
        context = self.context_of(other)
        return context == run.context or (by_id and initializer_of(context) == initializer_of(run.context))

    def cancel_run(self, run: int, now: int) -> list[int]:
        with self._tasks.locked():
            return self.cancel([task.id for task in self._pending_of(lambda _, of: of == run)], now)


def _is_small(record: Record) -> bool:
    """Return whether a task is COMPLETED with a small result that refers to no file."""
    result = record.task.result if record.task.status is Status.COMPLETED else None
    return result is not None and len(result) <= SMALL and not (isinstance(result, bytes) and names_in(result))


def _life(fields: dict[str, Any]) -> tuple[int, str, str]:
    return fields["session"], fields["queue"], fields["context"]
