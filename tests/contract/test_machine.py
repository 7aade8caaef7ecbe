"""A store beside a model of it: whatever is done in whatever order, both hold the same tasks.

The model holds Task objects that only model.apply() changes. Besides, each task's history as it is seen
from outside is held against the table of transitions.

A counterexample is printed as the shortest program that was found, and with a blob:
@reproduce_failure() with that blob, put on `machine` at the end of this file, runs it again. Every run
tries other programs, also in CI. There are 120, and 10,000 where the environment has OMNIQ_PROOF=1.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from backends import CUBE, ERROR, PROOF, SQUARE, Backend, Client, Model, RunsModel, call, rows
from hypothesis import HealthCheck, Phase, settings, strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from omniq_executor.errors import StoreError, TaskNotFound
from omniq_executor.model.codec import encode
from omniq_executor.model.task import (
    ENDS_CLAIM,
    LAST_TIER,
    TRANSITIONS,
    Call,
    Claim,
    Event,
    Function,
    Options,
    Status,
    Task,
    is_waiting,
)
from omniq_executor.stores.base import (
    Batch,
    Leftover,
    Outcome,
    ResultBatch,
    Resume,
    RunRecord,
    TaskState,
    Turn,
    TurnResult,
)
from omniq_executor.stores.sqlite.store import SQLiteStore

pytestmark = pytest.mark.models

EXAMPLES = 10_000 if PROOF else 120
STEPS = 30

CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
SETTINGS = settings(
    max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, suppress_health_check=CHECKS,
    derandomize=False, print_blob=True,
    phases=[phase for phase in Phase if phase is not Phase.explain],  # which traces every line: twice the time
)  # fmt: skip

# What a task may be after one call of the store; if that ended a claim and took the task again, RUNNING as before.
NEXT = {status: {status} | {to for (of, _), to in TRANSITIONS.items() if of is status} for status in Status}

functions = st.sampled_from([SQUARE, CUBE])
events = st.sampled_from(sorted(ENDS_CLAIM, key=lambda event: event.value))
values = st.integers(0, 3) | st.floats(0, 1) | st.text(max_size=2)
results = values | st.binary(max_size=2)  # those are stored as pickles
keys = st.sampled_from(["monday", "tuesday"])
places = st.lists(st.integers(0, 9), max_size=4, unique=True)
resumes: st.SearchStrategy[Resume] = st.sampled_from(["crashed", "crashed", "always", "failed", "never"])
tiers = st.sampled_from([0, *range(LAST_TIER + 1)])


class GivenClaim:
    """A claim as it was given to a client, who may try to end it at any time."""

    def __init__(self, client: Client, id: int, attempt: int) -> None:
        self.client, self.id, self.attempt = client, id, attempt

    def __repr__(self) -> str:
        return f"<task {self.id}, attempt {self.attempt} by {self.client.owner}>"


class StoreMachine(RuleBasedStateMachine):
    """What may happen to a store. Everything goes through the store first, then through the model."""

    clients = Bundle("clients")  # living owners, each with a handle of its own
    claims = Bundle("claims")  # all that were ever given, those that are lost or ended too
    sessions = Bundle("sessions")  # that go on

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self.backend = backend
        self.folder = tempfile.TemporaryDirectory()
        self.address = backend.address(Path(self.folder.name))
        self.observer = backend.open(self.address)  # of no owner
        self.made: list[Client] = []
        self.dead: list[Client] = []  # and not reaped yet
        self.model = Model()
        self.past = RunsModel(self.model)
        self.begun: dict[int, Any] = {}  # by session: the owners' files of the handle that began it
        self.dead_sessions: set[int] = set()  # and not reaped yet
        self.now = 10**15
        self.next_id = 1
        self.given: set[tuple[int, int]] = set()  # (id, attempt)
        self.ended: set[tuple[int, int]] = set()
        self.completed: set[int] = set()  # as the store said
        self.seen: dict[int, Task] = {}  # the store's tasks when it was looked at last
        self.left: dict[int, list[Task]] = {}  # by run, what it may still take over
        self.news: dict[Client, set[int]] = {}  # by living client: what others finished since it last asked

    def teardown(self) -> None:
        for client in self.news:
            client.die()  # else its lock is kept open as long as this process lives
        for session in self.begun.keys() - self.dead_sessions:
            self.begun[session].let_go(session)
        for client in self.made:
            client.close()
        self.observer.close()
        self.folder.cleanup()

    # who is there

    @initialize(target=clients)
    def first_enters(self) -> Client:
        return self.enter("work")

    @precondition(lambda self: len(self.made) < 8)
    @rule(
        target=clients, queue=st.sampled_from(["work", "play"]), resume=resumes, session=sessions | st.just(0),
        context=st.sampled_from(["", "", "warm", "cold.init"]), again=st.lists(values, max_size=3),
    )  # fmt: skip
    def enters(self, queue: str, resume: Resume, session: int, context: str, again: list[Any]) -> Client:
        return self.enter(queue, resume, session if session in self.begun else 0, context, again)

    def enter(
        self, queue: str, resume: Resume = "never", session: int = 0, context: str = "", again: Sequence[Any] = ()
    ) -> Client:
        client = Client(self.backend, self.address, queue, resume, session=session, context=context)
        self.reap_dead()  # a client reaps as it enters
        self.past.owners.add(client.owner)
        left = self.past.begin(client.run, client.owner, resume, session, context)
        self.made.append(client)
        self.news[client] = set()
        self.left[client.run.id] = left
        self.take_over(client, again)
        return client

    @rule(client=clients, again=st.lists(values, max_size=3))
    def takes_over_later(self, client: Client, again: list[Any]) -> None:
        self.take_over(client, again)

    def left_for(self, client: Client) -> list[Task]:
        """What a client can take over: not what other runs of its session have taken over by now."""
        left, theirs = self.left[client.run.id], self.past.taken_by(client.run.beside)
        left[:] = [task for task in left if task.id not in theirs]
        return left

    def take_over(self, client: Client, again: Sequence[Any]) -> None:
        """Submit calls again of which earlier runs may have left tasks."""
        if client.run.id not in self.left:
            return
        calls, left = [call(value) for value in again], self.left_for(client)
        expected: list[TaskState | None] = []
        self.now += 1
        for each in calls:
            equal = [task for task in left if (task.func_path, task.args, task.kwargs) == (SQUARE.path, *each[:2])]
            if not equal:
                expected.append(None)
                continue
            left.remove(equal[0])
            id = equal[0].id
            if not self.past.can_take(client.run, id):
                expected.append(None)
                continue
            self.past.note_taken(client.run.id, id)
            had_failed = self.model.tasks[id].status is Status.FAILED
            self.model.happen(id, Event.MANUAL_RETRY, self.now)
            if self.model.tasks[id].status is Status.PENDING:
                self.model.tasks[id] = self.model.tasks[id]._replace(run=client.run.id)
            expected.append(found_of(self.model.tasks[id])._replace(had_failed=had_failed))
        self.model.with_wait()
        assert client.store.take_over(client.run, SQUARE, calls, self.now) == expected

    @precondition(lambda self: any(client.run.continues for client in self.made))
    @rule(client=clients, after=st.integers(0, 3), most=st.integers(1, 3))
    def is_given_what_was_read_ahead(self, client: Client, after: int, most: int) -> None:
        if client.run.id not in self.left or not client.run.continues:
            return
        left = self.left_for(client)
        firsts: dict[tuple[Any, Any], TaskState] = {}
        for task in left:
            if task.func_path == SQUARE.path:
                firsts.setdefault((task.args, task.kwargs), found_of(self.model.tasks.get(task.id, task)))
        there = [
            it.id
            for it in firsts.values()
            if it.status is Status.COMPLETED and it.id in self.model.tasks and self.past.can_take(client.run, it.id)
        ]
        last = left[after].id if after < len(left) else 0
        seen = client.store.ahead(client.run, SQUARE, last, 1000)
        assert [state for _, state in seen] == [found_of(self.model.tasks[id]) for id in there if id > last]
        given = {state.id: (SQUARE.digest, likeness) for likeness, state in seen[:most]}
        client.store.note_given(client.run, given)
        for id in given:
            self.past.note_taken(client.run.id, id)
        left[:] = [task for task in left if task.id not in given]

    @rule(client=consumes(clients))
    def leaves(self, client: Client) -> None:
        client.store.leave(client.owner)
        self.news.pop(client, None)
        self.past.owners.remove(client.owner)
        self.model.release_all(client.owner, self.now)

    @rule(client=consumes(clients), clean=st.booleans())
    def stops(self, client: Client, clean: bool) -> None:
        compare_left(client.store.end_run(client.run, clean, self.now), self.past.end(client.run.id, clean))
        self.leaves(client)

    @precondition(lambda self: len(self.begun) < 4)
    @rule(target=sessions, client=clients)
    def begins_a_session(self, client: Client) -> int:
        session = client.store.begin_session(self.now)
        assert session not in self.begun
        self.begun[session] = client.store._owners  # type: ignore[attr-defined]
        self.past.sessions.add(session)
        return session

    @rule(session=consumes(sessions), clean=st.booleans(), keep_broken=st.booleans())
    def ends_a_session(self, session: int, clean: bool, keep_broken: bool) -> None:
        left = self.observer.end_session(session, clean, self.now, keep_broken=keep_broken)
        compare_left(left, self.past.end_session(session, clean, keep_broken))
        del self.begun[session]

    @rule(session=consumes(sessions))
    def a_session_dies(self, session: int) -> None:
        self.begun.pop(session)._held.pop(session).release()
        self.dead_sessions.add(session)

    @rule(client=consumes(clients))
    def dies(self, client: Client) -> None:
        client.die()
        self.news.pop(client, None)
        self.dead.append(client)

    @rule(target=clients, client=consumes(clients))
    def dies_and_starts_again(self, client: Client) -> Client:
        self.dies(client)
        client.store.close()
        client.store = self.observer  # what still comes in its name comes through this
        return self.enter(client.run.queue)

    @rule(
        target=clients, client=consumes(clients), clean=st.booleans(), ended=st.booleans(), resume=resumes,
        again=st.lists(values, max_size=3),
    )  # fmt: skip
    def stops_and_starts_again(
        self, client: Client, clean: bool, ended: bool, resume: Resume, again: list[Any]
    ) -> Client:
        if ended:
            self.stops(client, clean)
        else:
            self.leaves(client)
        client.store.close()
        client.store = self.observer
        run = self.past.runs[client.run.id]
        return self.enter(run.queue, resume, run.session if run.session in self.begun else 0, run.context, again)

    @precondition(lambda self: len(self.made) < 8)
    @rule(client=clients, which=places, times=st.integers(1, 3), is_forgiven=st.booleans())
    def owners_die_over_some_tasks(self, client: Client, which: list[int], times: int, is_forgiven: bool) -> None:
        for _ in range(times):
            victim = self.enter(client.run.queue)
            self.claim_by_id(victim, which)
            self.loses_and_invents_nothing_and_changes_by_the_table()
            self.dies(victim)
        if is_forgiven:
            self.reaps(client)
            self.cancels(which, running=False)
            self.loses_and_invents_nothing_and_changes_by_the_table()
            self.retries_by_hand(which)

    @rule(client=consumes(clients), other=clients, waits=st.booleans(), is_claimed=st.booleans())
    def leaves_its_last_task_to_another(self, client: Client, other: Client, waits: bool, is_claimed: bool) -> None:
        if waits:
            self.adds_what_comes_after_others(client, 0, [0])
        self.leaves(client)
        ids = [task.id for task in self.model.all(run=client.run.id)][-1:]
        if is_claimed and ids:
            self.claim_by_id(other, [self.next_id - 1 - ids[0]])
        assert other.store.adopt(other.run, ids, self.now) == self.past.adopt(other.run, ids)

    @rule(client=clients)
    def opens_its_handle_again(self, client: Client) -> None:
        client.reopen()
        self.news.pop(client, None)  # which is for the handle with which it entered
        self.left.pop(client.run.id, None)  # likewise

    @rule()
    def is_opened_again(self) -> None:
        closed, self.observer = self.observer, self.backend.open(self.address)
        closed.close()
        for client in self.made:
            if client.store is closed:
                client.store = self.observer

    @rule(client=clients)
    def reaps(self, client: Client) -> None:
        assert client.store.reap(self.now) == self.reap_dead()

    def reap_dead(self) -> int:
        orphaned = sum(self.model.orphan_all(client.owner, self.now) for client in self.dead)
        self.past.owners -= {client.owner for client in self.dead}
        self.past.sessions -= self.dead_sessions
        self.dead.clear()
        self.dead_sessions.clear()
        return orphaned

    @rule(seconds=st.integers(-100_000, 100_000))
    def clock_is_set(self, seconds: int) -> None:
        self.now += seconds * 1_000_000

    # the work

    def turn(self, client: Client, **work: Any) -> TurnResult:
        self.now += 1
        return client.store.turn(client.owner, client.run, Turn(self.now, **work))

    @rule(
        target=claims, client=clients, function=functions, arguments=st.lists(values, min_size=1, max_size=4),
        as_text=st.booleans(), claimed=st.booleans(), most=st.integers(0, 2),
    )  # fmt: skip
    def adds(
        self, client: Client, function: Function, arguments: list[Any], as_text: bool, claimed: bool, most: int
    ) -> Any:
        form: dict[str, Any] = {"text": rows(arguments)} if as_text else {}
        batch = self.batch(function, [call(argument) for argument in arguments], claimed=claimed, **form)
        turned = self.turn(client, adds=[batch], claim=most)
        return multiple(*self.add(client, batch), *self.give_claimed(client, turned, most))

    def batch(self, function: Function, calls: list[Call], **how: Any) -> Batch:
        first, self.next_id = self.next_id, self.next_id + len(calls)
        return Batch(first, len(calls), function, calls=calls, **how)

    def add(self, client: Client, batch: Batch) -> list[GivenClaim]:
        for id, added in enumerate(batch.calls or (), batch.first):
            run, function = client.run, batch.function
            self.model.add(run.queue, run.id, function, id, added, self.now, batch.key, batch.options)
        return [self.give(client, id) for id in range(batch.first, self.next_id) if batch.claimed]

    @rule(target=claims, client=clients, pickled=st.binary(max_size=3), claimed=st.booleans())
    def adds_a_pickled_call(self, client: Client, pickled: bytes, claimed: bool) -> Any:
        batch = self.batch(SQUARE, [Call(pickled, identity=b"identity")], claimed=claimed)
        self.turn(client, adds=[batch])
        return multiple(*self.add(client, batch))

    @rule(target=claims, client=clients, key=keys, argument=values, claimed=st.booleans(), end=claims | st.none())
    def adds_with_a_key(self, client: Client, key: str, argument: Any, claimed: bool, end: GivenClaim | None) -> Any:
        """Adds it unless the queue has that key. If it has, a turn that adds it all the same does nothing."""
        batch = self.batch(SQUARE, [call(argument)], claimed=claimed, key=key)
        found = client.store.by_key(client.run.queue, key)
        there = self.model.all(queue=client.run.queue, key=key)
        assert found == (found_of(there[0]) if there else None)
        if not there:
            self.turn(client, adds=[batch])
            return multiple(*self.add(client, batch))
        ends = [Outcome(end.id, end.attempt, Event.COMPLETE, "0")] if end else []
        with pytest.raises(StoreError):
            self.turn(client, adds=[batch], outcomes=ends, claim=1)
        return multiple()

    @rule(client=clients, argument=values, which=places)
    def adds_what_comes_after_others(self, client: Client, argument: Any, which: list[int]) -> None:
        after = tuple(self.pick(which))
        batch = self.batch(SQUARE, [call(argument)], options=Options(after=after))
        if self.model.tasks.keys() >= set(after):
            self.turn(client, adds=[batch])
            self.add(client, batch)
        else:
            with pytest.raises(TaskNotFound):
                self.turn(client, adds=[batch])

    @rule(target=claims, client=clients, function=functions, argument=values)
    def adds_one_claimed(self, client: Client, function: Function, argument: Any) -> GivenClaim:
        id, added = self.next_id, call(argument)
        self.next_id += 1
        self.now += 1
        client.store.add_claimed(client.owner, client.run, id, function, added, self.now)
        self.model.add(client.run.queue, client.run.id, function, id, added, self.now)
        return self.give(client, id)

    @rule(target=claims, client=clients, most=st.integers(1, 4), tier=tiers, of_run=st.booleans())
    def claims_some(self, client: Client, most: int, tier: int, of_run: bool) -> Any:
        turned = self.turn(client, claim=most, tier=tier, of_run=of_run)
        return multiple(*self.give_claimed(client, turned, most, tier, of_run))

    @rule(target=claims, client=clients, which=places)
    def claims_one_by_its_id(self, client: Client, which: list[int]) -> Any:
        return multiple(*self.claim_by_id(client, which))

    def claim_by_id(self, client: Client, which: list[int]) -> list[GivenClaim]:
        given = []
        for id in self.pick(which):
            self.now += 1
            claimed = client.store.claim(client.owner, id, self.now)
            task = self.model.tasks.get(id)
            is_free = task is not None and task.status is Status.PENDING and not is_waiting(task)
            assert (claimed is not None) == is_free
            if claimed is not None:
                given.append(self.give(client, id))
                assert claimed.attempt == given[-1].attempt
        return given

    def give_claimed(
        self, client: Client, turned: TurnResult, most: int, tier: int = 0, of_run: bool = False
    ) -> list[GivenClaim]:
        of: dict[str, Any] = {"run": client.run.id} if of_run else {"queue": client.run.queue}
        ids = [claimed.id for claimed in turned.claimed]
        if of_run:
            self.check_shares(ids, most, self.model.claimable(self.now, tier, **of))
        else:
            assert ids == self.past.for_any_worker(self.model.claimable(self.now, tier, **of))[:most]
        given = [self.give(client, id) for id in ids]
        later = []
        for other in range(tier + 1, LAST_TIER + 1):
            left = [task.id for task in self.model.pending(other, **of)]
            if left if of_run else self.past.for_any_worker(left):
                later.append(other)
        assert turned.next_tier == (later[0] if later and len(ids) < most else None)
        for claimed in turned.claimed:
            task = self.model.tasks[claimed.id]
            digest = CUBE.digest if task.func_path == CUBE.path else SQUARE.digest
            expected = task.attempts, task.crashes, task.run, digest, task.args, task.kwargs, task.eta, task.options
            assert claimed[1:] == (*expected, task.owner_deaths)
        return given

    def check_shares(self, ids: list[int], most: int, claimable: list[int]) -> None:
        """A run may have adopted tasks of other queues: each gives its share, and all of it in its order."""
        assert len(ids) == min(most, len(claimable))
        of_queues = [[id for id in claimable if self.model.tasks[id].queue == queue] for queue in ("work", "play")]
        queues = [queue for queue in of_queues if queue]
        counts = Counter(self.model.tasks[id].queue for id in ids)
        for queue in queues:
            name = self.model.tasks[queue[0]].queue
            assert [id for id in ids if id in queue] == queue[: counts[name]]
            assert counts[name] >= min(len(queue), most // len(queues))

    @rule(client=clients, which=places | st.none(), any_context=st.booleans())
    def adopts(self, client: Client, which: list[int] | None, any_context: bool) -> None:
        ids = None if which is None else self.pick(which)
        adopted = client.store.adopt(client.run, ids, self.now, any_context=any_context)
        assert adopted == self.past.adopt(client.run, ids, any_context)

    @rule(which=st.integers(0, 9))
    def cancels_a_run(self, which: int) -> None:
        run = max(max(self.past.runs) - which, 0)
        ids = [task.id for task in self.model.all(status=Status.PENDING, run=run)]
        for id in ids:
            assert self.model.happen(id, Event.CANCEL, self.now)
            self.publish(id)
        assert sorted(self.observer.cancel_run(run, self.now)) == ids

    def give(self, client: Client, id: int) -> GivenClaim:
        attempt = self.model.claim(id, client.owner, self.now)
        assert (id, attempt) not in self.given, "one attempt was claimed twice"
        self.given.add((id, attempt))
        return GivenClaim(client, id, attempt)

    @rule(
        target=claims, client=clients, arguments=st.lists(values, min_size=1, max_size=2), claimed=st.booleans(),
        ends=st.lists(st.tuples(claims, events, results), max_size=2), most=st.integers(0, 4),
    )  # fmt: skip
    def adds_ends_and_claims(
        self, client: Client, arguments: list[Any], claimed: bool, ends: list[tuple[GivenClaim, Event, Any]], most: int
    ) -> Any:
        batch = self.batch(CUBE, [call(argument) for argument in arguments], claimed=claimed)
        outcomes = self.outcomes(ends)
        turned = self.turn(client, adds=[batch], outcomes=outcomes, claim=most)
        added = self.add(client, batch)
        self.compare_refused(client, turned, outcomes)
        return multiple(*added, *self.give_claimed(client, turned, most))

    @rule(ends=st.lists(st.tuples(claims, events, results), min_size=1, max_size=3))
    def ends_claims(self, ends: list[tuple[GivenClaim, Event, Any]]) -> None:
        self.end(ends[0][0].client, ends)

    @rule(claim=claims, event=events, value=results)
    def ends_one_claim_and_all_listen(self, claim: GivenClaim, event: Event, value: Any) -> None:
        self.end(claim.client, [(claim, event, value)])
        self.all_listen()

    @rule(client=clients, claim=claims, event=events, value=results)
    def ends_a_claim_of_whomever(self, client: Client, claim: GivenClaim, event: Event, value: Any) -> None:
        self.end(client, [(claim, event, value)])

    def end(self, client: Client, ends: list[tuple[GivenClaim, Event, Any]]) -> None:
        outcomes = self.outcomes(ends)
        self.compare_refused(client, self.turn(client, outcomes=outcomes), outcomes)

    def outcomes(self, ends: list[tuple[GivenClaim, Event, Any]]) -> list[Outcome]:
        """One for each task, in the order of events in which a turn ends claims."""
        outcomes = {}
        for claim, event, value in ends:
            result = encode(value) if event is Event.COMPLETE else None
            error = ERROR if event in (Event.FAIL, Event.RETRY) else None
            outcomes[claim.id] = Outcome(claim.id, claim.attempt, event, result, error)
        return [*outcomes.values()]

    @rule(claim=claims, returned=st.lists(values, min_size=1, max_size=4))
    def completes_a_block(self, claim: GivenClaim, returned: list[Any]) -> None:
        """Completes the claim's task and those that follow it, whoever has them."""
        block = ResultBatch(claim.id, len(returned), claim.attempt, rows(returned))
        turned = self.turn(claim.client, blocks=[block])
        texts = [encode(value) for value in returned]
        ends = [Outcome(id, claim.attempt, Event.COMPLETE, text) for id, text in enumerate(texts, claim.id)]
        self.compare_refused(claim.client, turned, ends)

    def compare_refused(self, client: Client, turned: TurnResult, ends: Sequence[Outcome]) -> None:
        refused = set()
        for id, attempt, event, result, error, *_ in ends:
            claim = Claim(client.owner, attempt)
            if event is Event.COMPLETE and id not in turned.refused:
                assert id not in self.completed, "two outcomes of one task were accepted"
                self.completed.add(id)
            if not self.model.happen(id, event, self.now, claim=claim, result=result, error=error):
                refused.add(id)
                continue
            assert (id, attempt) not in self.ended, "one claim was ended twice"
            self.ended.add((id, attempt))
            if event in (Event.COMPLETE, Event.FAIL):
                self.publish(id, by=client.owner)
        assert turned.refused == refused
        assert turned.freed == self.model.with_wait()

    @rule(which=places, running=st.booleans())
    def cancels(self, which: list[int], running: bool) -> None:
        ids = self.pick(which)
        events = (Event.CANCEL, Event.ABORT) if running else (Event.CANCEL,)
        cancelled = [id for id in ids if any(self.model.happen(id, event, self.now) for event in events)]
        assert sorted(self.observer.cancel(ids, self.now, running)) == sorted(cancelled)
        for id in cancelled:
            self.publish(id)

    @rule(which=places)
    def retries_by_hand(self, which: list[int]) -> None:
        ids = self.pick(which)
        retried = [id for id in ids if self.model.happen(id, Event.MANUAL_RETRY, self.now)]
        assert sorted(self.observer.retry(ids, self.now)) == sorted(retried)

    def pick(self, which: list[int]) -> list[int]:
        return [self.next_id - 1 - place for place in which]  # rather the newest; some may not be there

    # who hears of it

    def publish(self, id: int, by: int | None = None) -> None:
        for client, news in self.news.items():
            if client.owner != by:
                news.add(id)

    @rule()
    def all_listen(self) -> None:
        for client, news in self.news.items():
            assert set(client.store.read_changes(client.owner)) == news
            news.clear()

    # what must hold

    @invariant()
    def holds_the_same_tasks(self) -> None:
        assert self.observer.find() == self.model.all()

    @invariant()
    def loses_and_invents_nothing_and_changes_by_the_table(self) -> None:
        now = {task.id: task for task in self.observer.find()}
        assert self.seen.keys() <= now.keys() <= self.model.tasks.keys()
        for id, was in self.seen.items():
            task = now[id]
            assert task.status in NEXT[was.status]
            assert task.attempts - was.attempts in (0, 1)
            assert was.status is not Status.COMPLETED or task == was
        assert self.completed == {task.id for task in now.values() if task.status is Status.COMPLETED}
        self.seen = now

    @invariant()
    def holds_the_same_runs(self) -> None:
        assert [comparable(run) for run in self.observer.runs()] == [*map(comparable, self.past.runs.values())]

    @invariant()
    def counts_the_same_states(self) -> None:
        counts: dict[str, dict[Status, int]] = {}
        for task in self.model.all():
            states = counts.setdefault(task.queue, {})
            states[task.status] = states.get(task.status, 0) + 1
        assert self.observer.counts() == counts

    @invariant()
    def keeps_the_counts_of_what_is_below_the_mark(self) -> None:
        if isinstance(self.observer, SQLiteStore):
            assert self.observer.db.read(KEPT) == self.observer.db.read(COUNTED)

    @invariant()
    def has_one_living_or_unreaped_owner_for_each_running_task(self) -> None:
        owners = {owner.id: owner.alive for owner in self.observer.owners()}
        assert {client.owner for client in self.dead} == {owner for owner, alive in owners.items() if not alive}
        for task in self.observer.find(Status.RUNNING):
            assert task.owner in owners
            assert (task.id, task.attempts) in self.given - self.ended


KEPT = "SELECT queue, run, status, tasks FROM tally WHERE tasks <> 0 ORDER BY 1, 2, 3"
COUNTED = (
    "SELECT queue, run, status, count(*) FROM task WHERE id < (SELECT below FROM counted)"
    " GROUP BY queue, run, status ORDER BY 1, 2, 3"
)


def compare_left(left: list[Leftover], expected: list[Leftover]) -> None:
    assert [it._replace(started_at=0) for it in left] == expected


def comparable(run: RunRecord) -> RunRecord:
    """A run without its times, which are not all the machine's."""
    return run._replace(started_at=0, ended_at=None if run.ended_at is None else 0)


def found_of(task: Task) -> TaskState:
    return TaskState(task.id, task.status, task.owner, task.result, task.error)


def look(machine: StoreMachine) -> None:
    """Compare the store and the model, as hypothesis does after each step."""
    machine.holds_the_same_tasks()
    machine.holds_the_same_runs()
    machine.loses_and_invents_nothing_and_changes_by_the_table()
    machine.counts_the_same_states()
    machine.keeps_the_counts_of_what_is_below_the_mark()


def adds_some(machine: StoreMachine, client: Client, count: int, claimed: bool = False) -> list[GivenClaim]:
    batch = machine.batch(SQUARE, [call(0)] * count, claimed=claimed)
    machine.turn(client, adds=[batch])
    return machine.add(client, batch)


def tell_of_late_and_foreign(machine: StoreMachine) -> None:
    """Do what is refused: ends that are late or foreign, changes of what runs or is over, claims of another queue."""
    first, other, second = machine.first_enters(), machine.enter("play"), machine.enter("work")
    adds_some(machine, first, 3)
    assert machine.give_claimed(other, machine.turn(other, claim=2), 2) == []
    (claim,) = machine.give_claimed(first, machine.turn(first, claim=1), 1)
    look(machine)
    place = [machine.next_id - 1 - claim.id]
    machine.cancels(place, False)
    machine.claim_by_id(second, place)
    machine.end(second, [(claim, Event.COMPLETE, 1)])
    machine.end(first, [(claim, Event.RELEASE, None)])
    look(machine)
    (again,) = machine.claim_by_id(first, place)
    machine.end(first, [(claim, Event.COMPLETE, 1)])
    machine.end(first, [(again, Event.CRASH, None)])
    look(machine)
    (last,) = machine.claim_by_id(first, place)
    look(machine)
    for value in 1, 2:
        machine.end(first, [(last, Event.COMPLETE, value)])
    machine.retries_by_hand(place)
    machine.cancels(place, True)
    look(machine)
    # Who leaves gives back what it had, and nobody is charged; what another runs by then is not adopted.
    machine.claim_by_id(second, [0])
    machine.leaves(second)
    look(machine)
    gone = machine.enter("work")
    adds_some(machine, gone, 1)
    machine.leaves_its_last_task_to_another(gone, first, False, True)
    look(machine)
    # What is of another run counts for that one, whoever has run it.
    other, worker = machine.enter("play"), machine.enter("play")
    adds_some(machine, other, 2)
    claims = machine.give_claimed(worker, machine.turn(worker, claim=2), 2)
    machine.end(worker, [(claim, Event.COMPLETE, 1) for claim in claims])
    look(machine)
    # Neither a run of a session that goes on is continued from without, nor one of another context.
    session = machine.begins_a_session(first)
    for how in (session, ""), (0, "warm"):
        gone = machine.enter("play", "crashed", *how)
        adds_some(machine, gone, 1)
        machine.leaves(gone)
        machine.enter("play", "crashed")
    look(machine)


def tell_of_deaths_and_sessions(machine: StoreMachine) -> None:
    """Do what chance does seldom: deaths one after the other, adoption, and sessions with several runs."""

    def enters(queue: str = "work", session: int = 0) -> Client:
        return machine.enter(queue, "crashed", session)

    first, second, other = machine.first_enters(), enters(), enters("play")
    # Owners die over a task once, and over others until nobody would try again.
    adds_some(machine, first, 3)
    machine.owners_die_over_some_tasks(first, [0], 3, False)
    machine.owners_die_over_some_tasks(first, [1], 2, False)
    machine.owners_die_over_some_tasks(first, [2], 1, True)
    look(machine)
    for tier in range(LAST_TIER + 1):
        machine.claims_some(second, 4, tier, False)
    # One that waits is in a later tier.
    (needed,) = adds_some(machine, first, 1, claimed=True)
    machine.end(first, [(needed, Event.FAIL, None)])
    machine.adds_what_comes_after_others(first, 0, [0])
    victim = enters("play")
    machine.claim_by_id(victim, [0])
    machine.retries_by_hand([1])
    machine.dies(victim)
    machine.reaps(first)
    machine.claims_some(first, 4, 0, True)
    look(machine)
    # The runs of a queue are claimed together; what is of the living is not adopted, and what was left is.
    for client in (second, first, second):
        adds_some(machine, client, 2)
    machine.adopts(first, None, False)
    look(machine)
    machine.claims_some(first, 5, 0, False)
    adds_some(machine, other, 2)
    machine.adds_what_comes_after_others(other, 0, [0])
    machine.leaves(other)
    machine.adopts(first, [0], False)
    look(machine)
    machine.claims_some(first, 4, 0, True)
    # Of a session, one run breaks, and one never ends.
    session = machine.begins_a_session(first)
    machine.stops(enters(session=session), False)
    machine.leaves(enters(session=session))
    fine = enters(session=session)
    adds_some(machine, fine, 1)
    machine.stops(fine, True)
    machine.ends_a_session(session, True, True)
    look(machine)
    machine.stops(enters(), True)
    look(machine)


def tell_of_what_is_read_ahead(machine: StoreMachine) -> None:
    """Have several equal calls be taken over ahead, of which one is not finished, or was in another context.

    Before anybody dies, the counts are right that are kept of what has finished.
    """
    first, fine = machine.first_enters(), machine.enter("play")
    claims = adds_some(machine, fine, 2, claimed=True)
    machine.end(fine, [(claim, event, 7) for claim, event in zip(claims, [Event.COMPLETE, Event.FAIL], strict=True)])
    look(machine)
    machine.retries_by_hand([0])
    look(machine)
    machine.stops(fine, True)
    look(machine)
    for claim in adds_some(machine, first, 3, claimed=True):
        machine.end(first, [(claim, Event.COMPLETE, 7)])
    machine.dies(first)
    second = machine.enter("work", "crashed")
    for _ in range(4):
        machine.is_given_what_was_read_ahead(second, 9, 1)
    begun, *others = adds_some(machine, second, 3, claimed=True)
    for claim in others:
        machine.end(second, [(claim, Event.COMPLETE, 7)])
    machine.end(second, [(begun, Event.RELEASE, None)])
    machine.stops(second, False)
    machine.is_given_what_was_read_ahead(machine.enter("work", "crashed"), 9, 3)
    look(machine)
    gone = machine.enter("play", "never", 0, "warm")
    adds_some(machine, gone, 1)
    machine.leaves(gone)
    other, third = machine.enter("play"), machine.enter("play", "crashed", 0, "warm")
    machine.adopts(other, [0], False)
    for claim in machine.give_claimed(other, machine.turn(other, claim=1, of_run=True), 1, 0, True):
        machine.end(other, [(claim, Event.COMPLETE, 7)])
    machine.is_given_what_was_read_ahead(third, 9, 3)
    look(machine)


def tell_of_old_tasks(machine: StoreMachine) -> None:
    """Have tasks end, and be claimed, given back, retried and cancelled, long after others were added."""
    first = machine.first_enters()
    claims = adds_some(machine, first, 5, claimed=True)
    for _ in range(4):
        adds_some(machine, first, 3)
    machine.end(first, [(claims[0], Event.COMPLETE, 1)])
    look(machine)
    machine.end(first, [(claims[1], Event.FAIL, None), (claims[2], Event.RELEASE, None)])
    machine.completes_a_block(claims[3], [1])
    look(machine)
    machine.claims_some(first, 2, 0, False)
    look(machine)
    failed, running = (machine.next_id - 1 - claims[place].id for place in (1, 4))
    machine.retries_by_hand([failed])
    look(machine)
    machine.cancels([failed, running], True)
    look(machine)
    for ends in machine.leaves, machine.dies:
        second = machine.enter("work")
        machine.claims_some(second, 1, 0, False)
        ends(second)
        machine.reaps(first)
        look(machine)


TOLD = [tell_of_late_and_foreign, tell_of_deaths_and_sessions, tell_of_what_is_read_ahead, tell_of_old_tasks]


def play(program: Callable[[StoreMachine], None], backend: Backend) -> None:
    machine = StoreMachine(backend)
    try:
        program(machine)
    finally:
        machine.teardown()


@pytest.mark.parametrize("program", TOLD)
def test_a_told_program_does_what_the_model_does(program: Callable[[StoreMachine], None], backend: Backend) -> None:
    play(program, backend)


@pytest.mark.timeout(120 + EXAMPLES // 2)
def test_a_store_does_what_its_model_does(backend: Backend) -> None:
    def machine() -> StoreMachine:
        return StoreMachine(backend)

    run_state_machine_as_test(machine, settings=SETTINGS)
