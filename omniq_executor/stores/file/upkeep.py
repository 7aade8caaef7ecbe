"""Upkeep of a file store: purges, backups, repairs and migrations. See store.py."""

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from ...errors import FunctionLost
from ...model.task import Function, Status, format_id
from .. import permissions
from ..base import Problem, RunRecord, Taken, TaskRow, now, of_the_dead
from ..output import Output
from ..values import ValueFiles
from .counts import Counts, count_in, differences
from .folders import VALUED, refers
from .functions import FUNCTION_FIELDS
from .mark import MARK, ORDER
from .ready_index import Noted, lane_of, place_of
from .records import Record
from .runs import OWNER_FIELDS, RUN_FIELDS, SESSION_FIELDS, TAKEN, Runs
from .tasks import Changes, is_claimable

_log = logging.getLogger("omniq_executor")


class Upkeep(Runs):
    """Removes, copies, repairs and moves what is stored."""

    def _purge(self, before: int, statuses: Collection[Status], queue: str | None) -> int:
        with self._tasks.locked():
            changes = Changes()
            needed = self._tasks.needed_by_unfinished()
            for record in self._tasks.all(*statuses) if statuses else ():
                task = record.task
                is_meant = (task.finished_at or 0) < before and (queue is None or task.queue == queue)
                if is_meant and task.id not in needed:
                    changes.change(record, record.removed())
            self._tasks.commit(0, changes)
            if changes.new:
                try:
                    self._drop_unused()
                except OSError as error:  # the tasks are removed; these go with a later purge
                    _log.warning(
                        "%s: functions and runs that no task needs stay: %s", self.path, permissions.explain(error)
                    )
        return len(changes.new)

    def _drop_unused(self) -> None:
        """Remove the functions and the runs that no task needs. See Store.purge()."""
        records = list(self._tasks.all())
        if not self._tasks.folders.numbers("owners"):
            used = {record.digest.hex() for record in records}
            for name in self._tasks.folders.json_names("functions"):
                if name not in used:
                    (self.path / "functions" / f"{name}.json").unlink()
            self._functions.forget()
        runs = {record.task.run for record in records}
        fields = self._read_runs()
        last = {run["queue"]: number for number, run in sorted(fields.items())}
        for number, run in fields.items():
            if run["settled"] and number not in runs and number != last[run["queue"]]:
                (self.path / "runs" / f"{number}.json").unlink()
                self._taken_path(number).unlink(missing_ok=True)

    def backup(self, destination: Path) -> int:
        self._check_open()
        with permissions.appearing(destination) as fresh:
            permissions.make_folder(fresh)
            permissions.make_folder(fresh / "tasks")
            # Most of the work without the lock, which others wait for: what changes meanwhile is copied again.
            copied: dict[str, _Seen] = {}
            output = Output(fresh / "output")
            large = ValueFiles(fresh / "values", durable=False)
            output.take_in(self.output)  # twice, as the tasks
            large.take_in(self.values)
            _copy_tasks(self.path / "tasks", fresh / "tasks", copied)
            with self._tasks.locked():
                output.take_in(self.output)
                large.take_in(self.values)
                _copy_tasks(self.path / "tasks", fresh / "tasks", copied)
                for name in (MARK, ORDER):
                    if (self.path / name).exists():
                        _copy_file(self.path / name, fresh / name)
                for folder in ("functions", "runs", "keys", VALUED):
                    permissions.make_folder(fresh / folder)
                    for entry in os.scandir(self.path / folder):
                        if entry.is_symlink():
                            os.symlink(os.readlink(entry.path), fresh / folder / entry.name)
                        elif entry.name.endswith((".json", TAKEN)) and entry.is_file():
                            _copy_file(entry.path, fresh / folder / entry.name)
            durability = "power" if self._tasks.durable else "process"
            made = type(self)(fresh, durability=durability)  # type: ignore[call-arg]  # it is a FileStore
            with contextlib.closing(made) as copy, copy._tasks.locked():
                copy._release_unowned()
                numbers = copy._tasks.folders.names("tasks")
                output.remove_strays(lambda: numbers)
                if self._tasks.durable:
                    copy._tasks.folders.sync(set(numbers))
        return len(numbers)

    def check(self) -> list[Problem]:
        with self._tasks.locked():
            repairs = self._tasks.folders.repairs
            self._tasks.forget()
            self._tasks.check_folders()
            counts: Counts = {}
            order: Noted = {}
            keys: dict[tuple[str, str], int] = {}
            digests: dict[bytes, int] = {}
            for record in self._tasks.all():
                task = record.task
                self._tasks.folders.check_link(record)
                count_in(counts, [record], [record.size])
                digests[record.digest] = digests.get(record.digest, 0) + 1
                if is_claimable(task):
                    order[task.id] = {(lane_of(task), place_of(task))}
                if task.key is not None and keys.setdefault((task.queue, task.key), task.id) != task.id:
                    first = format_id(keys[task.queue, task.key])
                    repairs.append(Problem(f"{task.task_id} has the key {task.key!r}, and so has {first}", False))
            self._check_counts(counts)
            self._tasks.ready_index.rewrite(order)
            self._tasks.forget()
            self._tasks.folders.check_keys(keys)
            self._check_functions(digests)
            self._check_waiting()
            self._tasks.folders.check_json("runs", RUN_FIELDS, "what that run left open is not continued")
            self._check_sessions()
            self._check_owners()
            repairs += self._check_output() + self._check_values()
            found, self._tasks.folders.repairs = repairs, []
            return found

    def _check_counts(self, counts: Counts) -> None:
        """Have the counts that are kept be as they were counted. They may be unknown, which is nothing wrong."""
        kept = self._tasks.counts.now()
        if kept == counts:
            return
        if kept is not None and (wrong := differences(kept, counts)):
            what = f"the counts that are kept were wrong: {'; '.join(wrong)}"
            self._tasks.folders.repairs.append(Problem(what, True))
        self._tasks.counts.note(counts)

    def _check_waiting(self) -> None:
        """Have those wait that should, and nobody else."""
        changes = Changes()
        for record in self._tasks.all(Status.PENDING):
            self._tasks.apply_wait(changes, record)
        self._tasks.commit(0, changes)
        if changes.new:
            what = f"{len(changes.new)} tasks waited for what is finished, or did not wait for what is not"
            self._tasks.folders.repairs.append(Problem(what, True))

    def _check_functions(self, digests: dict[bytes, int]) -> None:
        good = self._tasks.folders.check_json("functions", FUNCTION_FIELDS, "its tasks cannot run")
        for digest, count in digests.items():
            if digest.hex() not in good:
                what = f"functions/{digest.hex()}.json is missing; {count} tasks cannot run"
                self._tasks.folders.repairs.append(Problem(what, False))

    def _check_sessions(self) -> None:
        """Write again what is damaged of those whose process lives, and forget the others."""
        dead = self._dead_sessions()
        self._forget("sessions", dead)
        for session in self._tasks.folders.numbers("sessions"):
            if self._tasks.folders.read_json("sessions", f"{session}.json", SESSION_FIELDS) is None:
                fresh = {"host": self._owners.host, "pid": 0, "started_at": 0}
                self._tasks.folders.write_json("sessions", f"{session}.json", fresh)
                what = f"sessions/{session}.json was damaged, and is written again: its process lives"
                self._tasks.folders.repairs.append(Problem(what, True))
        for path in (self.path / "sessions").glob("*.new"):  # somebody died over it
            path.unlink()

    def _check_owners(self) -> None:
        repairs = self._tasks.folders.repairs
        registered = set(self._tasks.folders.numbers("owners"))
        good = set(
            map(int, self._tasks.folders.check_json("owners", OWNER_FIELDS, "whether it lives is seen from its lock"))
        )
        nameless = {owner for owner in registered - good if self._owners.is_alive(owner, self._owners.host)}
        owners = self._registered()
        dead = self._suspects(owner.id for owner in owners if not owner.alive)
        released = (self._unregister(dead) if dead else 0) + self._release_unowned(but=nameless)
        repairs += of_the_dead(owners, released)
        here = set(self._tasks.folders.json_names("owners"))
        for path in (self.path / "owners").glob("*.lock"):
            if path.stem not in here and not self._owners.is_alive(int(path.stem), self._owners.host):
                self._owners.forget(int(path.stem))

    def references(self, results: bool = False) -> Iterator[tuple[str, bytes]]:
        with self._tasks.locked():
            folders, found = self._tasks.folders, list[tuple[str, bytes]]()
            for name in folders.json_names("functions"):
                with contextlib.suppress(FunctionLost):  # it is damaged, and nobody will load what it refers to
                    function = self.function(bytes.fromhex(name))
                    found.append((f"the function {function.path}", function.pickle))
            for record in self._tasks.all() if results else self._tasks.records(folders.names(VALUED)):
                task = record.task
                if isinstance(task.args, bytes) and refers(task.args):
                    found.append((f"an argument of {task.task_id}", task.args))
                if results and isinstance(task.result, bytes) and refers(task.result):
                    found.append((f"the result of {task.task_id}", task.result))
        yield from found

    # moving to another store

    def ids(self) -> list[int]:
        with self._tasks.locked():
            return self._tasks.folders.names("tasks")

    def stored(self, ids: Sequence[int]) -> list[TaskRow]:
        with self._tasks.locked():
            records = self._tasks.records(ids)
            return [TaskRow(self._task(it), it.digest, it.identity, self.function(it.digest).parts) for it in records]

    def runs(self) -> list[RunRecord]:
        with self._tasks.locked():
            runs = self._read_runs()
        return [
            RunRecord(number, **{**run, "continues": tuple(run["continues"])}) for number, run in sorted(runs.items())
        ]

    def begin_import(self, source: str) -> str | None:
        self.reap(now())
        with self._tasks.locked():
            mark = self._tasks.folders.read_json("", MARK) or {}
            if "migrating" in mark:
                found: str = mark["migrating"]
                return found
            folders = self._tasks.folders
            if folders.names("tasks") or folders.numbers("runs") or folders.numbers("owners"):
                return None
            self._tasks.folders.write_json("", MARK, {**mark, "migrating": source})
            return source

    def put(
        self, tasks: Sequence[TaskRow] = (), runs: Sequence[RunRecord] = (), gone: Sequence[int] = (),
        taken: Sequence[Taken] = (),
    ) -> None:  # fmt: skip
        with self._tasks.locked():
            changes = Changes()
            for record in self._tasks.records(gone):
                changes.change(record, record.removed())
            self._tasks.commit(0, changes)
            for run in runs:
                fields = run._asdict()
                self._tasks.folders.write_json("runs", f"{fields.pop('id')}.json", fields)
                self._note_taken(run.id, [it for it in taken if it.run == run.id], anew=True)
            changes = Changes()
            for task, digest, identity, parts in tasks:
                self._functions.keep(Function(digest, task.func_path, task.func, parts))
                new = Record(task._replace(func=b""), digest, identity, version=1)
                old = self._tasks.load(task.id)
                if old is None:
                    changes.new[task.id] = new
                else:
                    changes.change(old, Record(new.task, digest, identity, old.version + 1, old.size))
            self._tasks.commit(0, changes)

    def end_import(self) -> None:
        with self._tasks.locked():
            os.sync()  # a file after the other would take minutes
            mark = self._tasks.folders.read_json("", MARK) or {}
            self._tasks.folders.write_json("", MARK, {name: mark[name] for name in mark if name != "migrating"})
            permissions.sync(self.path / MARK)
            permissions.sync(self.path)


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
    permissions.make_file(target)
    shutil.copyfile(source, target)
