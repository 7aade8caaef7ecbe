"""A process pool whose calls and results are kept on disk.

    from omniq_executor import PersistentExecutor

    with PersistentExecutor(store="runs/etl.db") as executor:
        for row in executor.map(parse, paths):
            ...

Names are loaded when they are first used: workers import this package too, and need few of them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .aio import AsyncOmniQ as AsyncOmniQ
    from .attached import Attached as Attached, attach as attach
    from .config import Settings as Settings
    from .errors import *  # noqa: F403
    from .executor import PersistentExecutor as PersistentExecutor
    from .future import DurableFuture as DurableFuture
    from .inputs import InputFile as InputFile
    from .model.failures import FailureGroup as FailureGroup, Failures as Failures
    from .model.reasons import Preview as Preview, Reason as Reason, Resumed as Resumed
    from .model.task import Status as Status, Task as Task
    from .stores import open_store as open_store
    from .stores.base import Store as Store

__version__ = "0.1.0"

_ERRORS = (
    "CallError CannotDebug CodeChanged ContextChanged DependencyFailed EngineClosed EngineError EngineMismatch"
    " EngineUnreachable FunctionChanged FunctionLost InputError InputIsFolder InputNotFound KeyConflict"
    " NotImportable OmniqError PoolBroken RemoteError SerializationError SettingsError StoreError"
    " StoreVersionError TaskNotFound TaskTimeout TooLarge ValueLost WorkerCrashed"
)
_HOMES = {
    "PersistentExecutor": "executor",
    "AsyncOmniQ": "aio",
    "Attached": "attached",
    "DurableFuture": "future",
    "FailureGroup": "model.failures",
    "Failures": "model.failures",
    "InputFile": "inputs",
    "Status": "model.task",
    "Task": "model.task",
    "Preview": "model.reasons",
    "Reason": "model.reasons",
    "Resumed": "model.reasons",
    "Settings": "config",
    "attach": "attached",
    "open_store": "stores",
    "Store": "stores.base",
    **dict.fromkeys(_ERRORS.split(), "errors"),
}

if not TYPE_CHECKING:  # to a type checker a module with __getattr__ has every name
    __all__ = [*_HOMES]

    def __getattr__(name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
