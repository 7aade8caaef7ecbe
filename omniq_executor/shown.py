"""What is shown of an executor: from memory alone, so that neither a store nor a turn can hold it up."""

from typing import NamedTuple

from .dispatch.standing import Standing
from .display import words
from .display.card import Card
from .stores.base import Run


class Facts(NamedTuple):
    """What is known of an executor."""

    kind: str
    address: str
    run: Run
    standing: Standing | None  # None while a turn takes so long that nobody can tell
    workers: int
    most_workers: int
    method: str  # how they are started, or "external"
    failure: str


def executor_line(facts: Facts) -> str:
    """Return it in a line."""
    state = "" if _state(facts) == "open" else f" {_state(facts)},"
    ending = f": {words.shortened(facts.failure, 120)}" if facts.failure else ""
    said = [
        f"store {words.printable(facts.address)}", f"queue {facts.run.queue!r}", _run(facts.run), _workers(facts),
        _calls(facts.standing),
    ]  # fmt: skip
    return f"<{facts.kind}{state} {', '.join(filter(None, said))}{ending}>"


def executor_card(facts: Facts) -> Card:
    """Return it for a notebook."""
    run = facts.run
    done = f", with {run.done:,} of {words.counted(run.total, 'call')} done"
    fields = [
        ("store", facts.address),
        ("run", f"{_run(run).removeprefix('run ')}{done if run.continues else ''}"),
        ("workers", _workers(facts)),
        ("calls", _calls(facts.standing)),
    ]
    return Card(facts.kind, run.queue, _state(facts), fields, note=facts.failure, is_bad=bool(facts.failure))


def _run(run: Run) -> str:
    before = ", ".join(str(it) for it in run.continues if it != run.id)  # itself, when a cell of it has failed
    return f"run {run.id}{f', which continues {before}' if before else ''}"


def _state(facts: Facts) -> str:
    return "busy" if facts.standing is None else facts.standing.state


def _workers(facts: Facts) -> str:
    if _state(facts) in ("closed", "broken"):
        return ""
    if not facts.most_workers:
        return "workers of others"
    return f"{facts.workers} of {words.counted(facts.most_workers, 'worker')} ({facts.method})"


def _calls(standing: Standing | None) -> str:
    if standing is None:
        return "a turn takes long just now"
    total = standing.open + standing.done
    if not total:
        return "no calls yet"
    # No call is counted twice, so they add up: what was cancelled and is submitted again is two calls.
    ended = {"resumed": standing.resumed, "failed": standing.failed, "cancelled": standing.cancelled}
    counts = {"completed": max(standing.done - sum(ended.values()), 0), **ended}
    said = [f"{count:,} {what}" for what, count in counts.items() if count]
    said += [f"{standing.open:,} open"] if standing.open else []
    return f"{words.counted(total, 'call')}: {', '.join(said)}"
