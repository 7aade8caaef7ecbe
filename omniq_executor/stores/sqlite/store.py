"""The SQLite store: one database file in WAL mode, opened by any number of processes.

    omniq.db           the tasks; the view `tasks` is meant for people
    omniq.db-wal/-shm  SQLite's own
    omniq.db-owners/   who is alive, see owners.py
    omniq.db-output/   what calls wrote, see output.py
    omniq.db-values/   large arguments and results, see values.py
    omniq.db-reserve   some space, see reserve.py

database.py says what keeps it whole.
"""

import contextlib
import os
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path

from ... import slots
from ...errors import FunctionLost, StoreError
from ...model.ids import NODES
from ...model.task import Call, FailedCall, Function, Status, Task, format_id
from .. import permissions
from ..base import (
    NO_RUN,
    Batch,
    Claimed,
    Leftover,
    Owner,
    PastCall,
    Problem,
    Resumable,
    Resume,
    Run,
    RunRecord,
    Store,
    Taken,
    TaskRow,
    TaskState,
    Turn,
    TurnResult,
    Usage,
    now,
    of_the_dead,
)
from ..glances import Glance, Wanted
from ..output import Output
from ..owners import new_owner_id
from ..reserve import size_on_disk
from ..retention import expired
from ..values import ValueFiles
from . import looking, retention, runs, tables, tally, turns, upkeep, waits
from .database import Database, Durability, drive, explained
from .glance import look

_KNOWN_FUNCTIONS = 4096  # whose numbers are kept
_NONE_YET = (1 << 63) - 1  # above each id
_id_of = attrgetter("id")
_STEP_S = 0.005  # that a step of an expiry takes at most, roughly: it looks at so many tasks
_FIRST_LOOK, _MOST_LOOKED_AT = 250, 2000


class SQLiteStore(Store):
    """See the module's docstring, and Store for the methods.

    `durability="process"` keeps what is acknowledged through the death of any process; "power"
    also through a cut of the machine's power, at about ten times the cost of a lone commit.
    """

    scheme = "sqlite:///"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: Durability = "process",
        create: bool = True,
        importing: bool = False,
    ):
        super().__init__(path, durability, ("-owners", "-output", "-values", "-reserve"))
        self._functions: dict[bytes, int] = {}
        self._queues: dict[str, int] = {}
        self._first: dict[int, int] = {}  # by owner that entered here: no task before it was claimed for it
        self._added = 0  # tasks since the mark of the counts was moved up last
        self._adopted: dict[int, set[int]] = {}  # by run: the other queues that it has adopted tasks of
        self.db = Database(self.path, self._owners, durability, create, importing)

    def close(self) -> None:
        self.db.close()

    def _check_open(self) -> None:
        self.db.opened()

    # who is there

    def enter(self, queue: str) -> int:
        self.reserve.take()
        with self.db.lock:
            while True:
                owner = new_owner_id(id for (id,) in self.db.read(runs.OWNERS))
                self._owners.hold(owner)
                self._functions.clear()  # while no owner was registered, some may have been purged
                if self.db.write(runs.enter(owner, NODES, queue, self._owners.host, os.getpid(), now())):
                    self.db.forget_peers()  # this connection's own change of the owners does not count there
                    self._first[owner] = _NONE_YET
                    return owner
                self._owners.let_go(owner)  # another was faster with such an id

    def _leave(self, owner: int) -> None:
        self.db.write(runs.leave(owner, self._first.get(owner, 0)))
        self._first.pop(owner, None)
        self.db.forget_peers()

    def note_claim(self, owner: int, number: int) -> None:
        """Note that a task is claimed, or may be: before that is committed, or at once where which is not known."""
        if number < self._first.get(owner, 0):
            self._first[owner] = number

    def owners(self) -> list[Owner]:
        rows = self.db.read("SELECT id, queue, host, pid, opened_at FROM owner ORDER BY opened_at, id")
        # One process at a time: a lock that another one is trying just now looks like that of a living owner.
        with self.db.one_at_a_time():
            return [
                Owner(id, queue, host, pid, opened_at, self._owners.is_alive(id, host))
                for id, queue, host, pid, opened_at in rows
            ]

    def peers(self, owner: int) -> list[int]:
        return [id for (id,) in self.db.read("SELECT id FROM owner WHERE id <> ?", (owner,))]

    def reap(self, now: int) -> int:
        dead = [owner.id for owner in self.owners() if not owner.alive]
        sessions = self._dead_sessions()
        if not dead and not sessions:
            return 0
        suspects = {id: slots.begun(self._owners.slots_path(id)) for id in dead}
        orphaned = self.db.write(runs.release_dead(suspects, sessions))
        self.db.forget_peers()
        for id in [*dead, *sessions]:
            self._owners.forget(id)
        return orphaned

    def _dead_sessions(self) -> list[int]:
        rows = self.db.read(runs.SESSIONS)
        if not rows:
            return []
        with self.db.one_at_a_time():
            return [id for id, host in rows if not self._owners.is_alive(id, host)]

    def notify(self, owner: int) -> None:
        self._check_open()
        self.notify_all(self.db.peers, owner)

    def notify_all(self, owners: Iterable[int], but: int) -> None:
        """Wake these owners, all but one."""
        for owner in owners:
            if owner != but:
                self._owners.notify(owner)

    def read_changes(self, owner: int) -> list[int]:
        # Without the writer's lock: most notifications are for others.
        return self.db.write(runs.read_changes(owner)) if self.db.read(runs.HAS_CHANGES, (owner, owner)) else []

    # sessions and runs

    def _register_session(self, session: int, now: int) -> None:
        about = session, self._owners.host, os.getpid(), now
        with self.db.lock:
            self.db.execute(("INSERT INTO session VALUES (?, ?, ?, ?)", about))

    def end_session(self, session: int, clean: bool, now: int, *, keep_broken: bool = False) -> list[Leftover]:
        left = self.db.write(runs.end_session(session, clean, keep_broken))
        self._owners.let_go(session)
        return left

    def begin_run(
        self, queue: str, owner: int, resume: Resume, now: int, *,
        session: int = 0, context: str = "", since: int = 0, result_ttl: int | None = None,
    ) -> Run:  # fmt: skip
        self.reap(now)  # so that who is registered is alive
        about = session, context, since, result_ttl
        text = runs.begin_run(self._queue(queue), queue, owner, resume, now, *about)
        run = self.db.write(text)
        self._adopted[run.id] = set()
        return run

    def end_run(self, run: Run, clean: bool, now: int) -> list[Leftover]:
        left = self.db.write(runs.end_run(run, clean, now))
        self._adopted.pop(run.id, None)
        return left

    def offer_again(self, run: Run) -> Run:
        return self.db.write(runs.offer_again(run))

    def offer_more(self, run: Run, ids: Collection[int]) -> None:
        self.db.write(runs.offer_more(run.id, ids))

    def _take_over(self, run: Run, function: Function, calls: Sequence[Call], now: int) -> list[TaskState | None]:
        return self.db.write(runs.take_over(run, self._function(function), calls))

    def ahead(self, run: Run, function: Function, after: int, most: int) -> list[tuple[str | bytes, TaskState]]:
        return self.db.ask(runs.ahead(run, self._function(function), after, most))

    def note_given(self, run: Run, given: Mapping[int, tuple[bytes, str | bytes]]) -> None:
        self.db.write(runs.note_given(run.id, [*given]))

    def _resumable_of(
        self, run: Run, path: str, likenesses: Collection[str | bytes]
    ) -> dict[str | bytes, list[Resumable]] | None:
        return self.db.ask(looking.resumable(run, path, likenesses))

    def adopt(self, run: Run, ids: Collection[int] | None, now: int, *, any_context: bool = False) -> int:
        queue = self._queue(run.queue)
        count, queues = self.db.write(runs.adopt(run.id, queue, ids, any_context))
        self._adopted_by(run.id, queue).update(queues - {queue})
        return int(count)

    def _adopted_by(self, run: int, queue: int) -> set[int]:
        """Return the other queues that a run has adopted tasks of; of one begun elsewhere, as they are now."""
        if run not in self._adopted:
            self._adopted[run] = self.db.ask(runs.queues_of(run)) - {queue}
        return self._adopted[run]

    def cancel_run(self, run: int, now: int) -> list[int]:
        return self.db.write(runs.cancel_run(run, now))

    # the work

    def add_claimed(self, owner: int, run: Run, number: int, function: Function, call: Call, now: int) -> None:
        queue, known = self._queues.get(run.queue), self._functions.get(function.digest)
        if queue is None or known is None:
            queue, known = self._queue(run.queue), self._function(function)
        statement = turns.add_claimed(owner, run.id, queue, known, number, call, now)
        with self.db.lock:
            self.note_claim(owner, number)
            if self.db.execute(statement).rowcount == 0:  # it is below the mark of the counts
                batch = Batch(number, 1, function, calls=[call], claimed=True)
                self.turn(owner, run, Turn(now, adds=[batch]))
                return
            self._after_turn(1, run.id, now)

    def turn(self, owner: int, run: Run, work: Turn) -> TurnResult:
        queue = self._queue(run.queue) if run is not NO_RUN else 0
        for batch in work.adds:
            self._function(batch.function)
            if batch.claimed:
                self.note_claim(owner, batch.first)
        with self.db.lock:
            try:
                turned = self._turn(owner, run, queue, work)
            except BaseException:
                self.note_claim(owner, 0)  # it may have been committed, with claims that nobody has been told of
                raise
            if turned.claimed:
                self.note_claim(owner, min(map(_id_of, turned.claimed)))
            self._after_turn(sum(batch.size for batch in work.adds), run.id, work.now)
        return turned

    def _after_turn(self, added: int, run: int = 0, now: int = 0) -> None:
        """Look now and then after the file, and after the counts of tasks."""
        steps, self._added = divmod(self._added + added, tally.STEP)
        for _ in range(steps):
            with contextlib.suppress(StoreError):  # they are right as they are, and a later turn moves the mark
                self.db.write(tally.move_on(run, now))
        self.db.count_turn()

    def _turn(self, owner: int, run: Run, queue: int, work: Turn) -> TurnResult:
        if len(self.db.peers) == 1:
            statement = turns.lone_end(owner, work)
            if statement is not None and self.db.execute(statement).rowcount == 1:
                return TurnResult()
        about = owner, run, queue, self._functions, work, self.db.peers
        adopted = self._adopted_by(run.id, queue) if work.of_run else ()
        try:
            turned = self.db.write(turns.turn(*about, adopted=adopted))
        except turns.Inexact:
            turned = self.db.write(turns.turn(*about, exact=True, adopted=adopted))
        turned.foreign, self.db.is_foreign = self.db.is_foreign, False
        return turned

    def claim(self, owner: int, number: int, now: int) -> Claimed | None:
        self.note_claim(owner, number)
        return self.db.write(turns.claim(owner, number, now))

    def cancel(self, ids: Sequence[int], now: int, running: bool = False) -> list[int]:
        return self.db.write(turns.cancel(ids, now, running))

    def retry(self, ids: Sequence[int], now: int) -> list[int]:
        return self.db.write(turns.retry(ids))

    def retry_for(self, run: Run, ids: Sequence[int], now: int) -> list[int]:
        return self.db.write(runs.retry_for(run.id, ids))

    # upkeep

    def _purge(self, before: int, statuses: Collection[Status], queue: str | None) -> int:
        return self.db.write(upkeep.purge(before, statuses, queue))

    def _remove(self, ids: Sequence[int]) -> dict[int, int]:
        return self.db.write(retention.remove(ids))

    def results_of(self, function: str, queue: str | None = None) -> tuple[list[int], list[int]]:
        return self.db.write(retention.results_of(function, queue))

    def _expire(self, now: int, owner: int) -> Iterator[tuple[int, dict[int, int]]]:
        going = expired(self.runs(), now)
        last, most = -1, _FIRST_LOOK
        used_runs, functions = set[int](), set[int]()
        while going.before:
            began = time.perf_counter()
            step = self.db.write(retention.expire(going, last, most))
            if step.last is None:
                if self.db.write(retention.end_expiry(going, last, used_runs, functions, owner)):
                    self._functions.clear()
                return
            last = step.last
            used_runs |= step.runs
            functions |= step.functions
            self.db.work_off_log()
            yield step.looked_at, step.removed
            took = time.perf_counter() - began
            most = max(most // 2, 1) if took > _STEP_S else min(most * 2, _MOST_LOOKED_AT)

    def usage(self) -> Usage:
        oldest, expiring = self.db.write(retention.expiring())
        return Usage(self._size(), oldest, expiring)

    def _size(self) -> int:
        endings = ("", "-wal", "-shm", "-owners", "-output", "-values", "-reserve")
        return sum(size_on_disk(Path(f"{self.path}{ending}")) for ending in endings)

    def compact(self, most_bytes: int | None = None) -> bool:
        self._check_open()
        return self.db.compact(most_bytes)

    def backup(self, destination: Path) -> int:
        self._check_open()
        with permissions.appearing(destination) as fresh, explained(destination):
            output = Output(Path(f"{fresh}-output"))
            large = ValueFiles(Path(f"{fresh}-values"), durable=False)
            output.take_in(self.output)
            large.take_in(self.values)
            ids = self._copy_to(fresh)
            output.take_in(self.output)  # again: neither what came meanwhile is without it now, nor what went
            large.take_in(self.values)
            output.remove_strays(lambda: ids)
            # Before the database, without which they are nobody's. Those of a backup that was killed here are replaced.
            output.move_to(Output(Path(f"{destination}-output")))
            large.move_to(ValueFiles(Path(f"{destination}-values"), durable=False))
        return len(ids)

    def _copy_to(self, fresh: Path) -> list[int]:
        with self.db.lock:
            permissions.make_file(fresh)
            with contextlib.closing(sqlite3.connect(fresh, isolation_level=None)) as copy:
                self.db.opened().backup(copy)  # in one step: in smaller ones it begins again whenever somebody writes
                copy.execute("PRAGMA synchronous = FULL")
                copy.execute("BEGIN IMMEDIATE")
                drive(copy, upkeep.abandon())
                copy.execute("COMMIT")
                return [id for (id,) in copy.execute("SELECT id FROM task")]

    def check(self) -> list[Problem]:
        self._check_open()
        problems: list[Problem] = []
        damage = self._damage()
        if damage:
            with contextlib.suppress(StoreError), self.db.lock:  # the next look tells what it could not do
                self.db.execute(("REINDEX", ()))
            left = self._damage()
            problems = [Problem(text, not left) for text in damage]
            if left:
                return problems  # the rest is left as it is, so that what can be saved still can
        owners = self.owners()
        problems += of_the_dead(owners, self.reap(now()) + self.db.write(runs.release_unowned()))
        problems += self._check_output() + self._check_values()
        for condition, what in tables.CHECKS:
            ((count, first),) = self.db.read(f"SELECT count(*), min(id) FROM {condition}")
            if count:
                problems.append(Problem(f"{count} tasks, {format_id(first)} for one, {what}", False))
        if self.db.write(tally.recount()):
            problems.append(Problem("the counts of tasks were not right", True))
        if self.db.write(waits.rewire()):
            problems.append(Problem("it was not as it should be which tasks wait for others", True))
        return problems

    def _damage(self) -> list[str]:
        """Return what SQLite finds wrong with its file."""
        try:
            return [text for (text,) in self.db.read("PRAGMA integrity_check") if text != "ok"]
        except StoreError as error:
            return [str(error)]

    def references(self, results: bool = False) -> Iterator[tuple[str, bytes]]:
        if not results:
            self.db.execute((tables.VALUED, ()))  # no store has it before there are files
        for path, data in self.db.read(tables.VALUED_FUNCTIONS):
            yield f"the function {path}", data
        for column in ("args", "result") if results else ("args",):
            for id, data in self.db.read(f"SELECT id, {column} FROM task WHERE {tables.refers(column)}"):
                yield f"{'the result' if column == 'result' else 'an argument'} of {format_id(id)}", data

    # moving to another store

    def ids(self) -> list[int]:
        return [id for (id,) in self.db.read("SELECT id FROM task ORDER BY id")]

    def stored(self, ids: Sequence[int]) -> list[TaskRow]:
        return self.db.ask(looking.stored(ids))

    def runs(self) -> list[RunRecord]:
        return self.db.ask(runs.all_runs())

    def begin_import(self, source: str) -> str | None:
        self.reap(now())
        return self.db.write(upkeep.begin_import(source))

    def put(
        self, tasks: Sequence[TaskRow] = (), runs: Sequence[RunRecord] = (), gone: Sequence[int] = (),
        taken: Sequence[Taken] = (),
    ) -> None:  # fmt: skip
        with self.db.lock:
            self.db.write(upkeep.put(tasks, runs, gone, taken))
            self._after_turn(len(tasks))

    def end_import(self) -> None:
        with self.db.lock, explained(self.path):
            self.db.opened().execute("PRAGMA synchronous = FULL")  # with this commit, all before it are synced
            self.db.write(upkeep.end_import())

    def _queue(self, name: str) -> int:
        if name not in self._queues:
            self._queues[name] = self.db.write(turns.ensure_queue(name))
        return self._queues[name]

    def _function(self, function: Function) -> int:
        number = self._functions.get(function.digest)
        if number is None:
            if len(self._functions) == _KNOWN_FUNCTIONS:
                self._functions.clear()
            number = self._functions[function.digest] = self.db.write(turns.ensure_function(function))
        return number

    # looking

    def taken(self) -> list[Taken]:
        return self.db.ask(looking.taken())

    def calls(self, runs: Collection[int]) -> list[PastCall]:
        return self.db.ask(looking.calls(runs))

    def function(self, digest: bytes) -> Function:
        rows = self.db.read("SELECT digest, path, pickle, parts FROM function WHERE digest = ?", (digest,))
        if not rows:
            raise FunctionLost(f"{self.path} holds no function {digest.hex()}: submit its calls again")
        return Function(*rows[0])

    def states(self, ids: Iterable[int]) -> list[TaskState]:
        return self.db.ask(looking.states(ids))

    def dependents(self, ids: Collection[int]) -> set[int]:
        return self.db.ask(looking.dependents(ids))

    def by_key(self, queue: str, key: str) -> TaskState | None:
        return self.db.ask(looking.by_key(self._queue(queue), key))

    def _glance(self, wanted: Wanted) -> Glance:
        return look(self.path, wanted)

    def counts(self) -> dict[str, dict[Status, int]]:
        return self.db.ask(looking.counts())

    def unfinished(self) -> dict[int, int]:
        return self.db.ask(looking.unfinished())

    def find(
        self,
        status: Status | None = None,
        queue: str | None = None,
        tags: Sequence[str] | None = None,
        limit: int | None = None,
        function: str | None = None,
        *,
        name: str | None = None,
        run: int | None = None,
        since: int | None = None,
    ) -> list[Task]:
        return self.db.ask(looking.find(status, queue, tags, limit, function, name, run, since))

    def failures(self, queue: str | None = None) -> Iterator[FailedCall]:
        last = -1
        while found := self.db.ask(looking.failures(last, queue)):
            yield from found
            last = found[-1].id
