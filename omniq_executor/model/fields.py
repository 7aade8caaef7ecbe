"""A task as plain data, under the names that people know."""

import base64
import json
from typing import Any

from .task import ErrorInfo, Options, Task, format_id, iso


def task_fields(task: Task) -> dict[str, Any]:
    """A task as plain data. What JSON could not keep is given as {"pickle": its bytes in base 64}."""
    error, options = task.error, task.options or Options()
    return {
        "id": task.task_id,
        "queue": task.queue,
        "run": task.run,
        "func_path": task.func_path,
        "args": _stored_json(task.args),
        "kwargs": _stored_json(task.kwargs) or ({} if isinstance(task.args, str) else None),
        "key": task.key,
        "priority": task.priority,
        "status": task.status.name,
        "attempts": task.attempts,
        "crashes": task.crashes,
        "owner_deaths": task.owner_deaths,
        "owner": task.owner,
        "max_retries": options.max_retries,
        "retries": options.retries,
        "timeout": options.timeout,
        "interval": None if options.interval is None else options.interval / 1_000_000,
        "series": None if options.series is None else format_id(options.series),
        "tags": list(options.tags),
        "after": [format_id(number) for number in options.after],
        "eta": iso((task.eta if options.due is None else options.due) or None),
        "enqueued_at": iso(task.enqueued_at),
        "started_at": iso(task.started_at),
        "completed_at": iso(task.completed_at),
        "failed_at": iso(task.failed_at),
        "result": _stored_json(task.result),
        "error": error and _error_fields(error),
    }


def _error_fields(error: ErrorInfo) -> dict[str, str]:
    fields = {"type": error.type, "message": error.message, "traceback": error.traceback}
    return {**fields, "call": error.call} if error.call else fields


def _stored_json(data: str | bytes | None) -> Any:
    if isinstance(data, bytes):
        return {"pickle": base64.b64encode(data).decode()}
    return None if data is None else json.loads(data)
