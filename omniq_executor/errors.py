"""Every error that omniq_executor raises of itself.

    OmniqError
     +-- CallError                 what became of one call; other calls are not touched
     |    +-- WorkerCrashed        the process running it died     (also a BrokenProcessPool)
     |    +-- NotImportable        its function cannot be imported in the worker (also an ImportError)
     |    +-- FunctionLost         the store does not hold its function any more (also a StoreError)
     |    +-- ValueLost            a file of a large argument or result is missing or damaged (also a StoreError)
     |    +-- CodeChanged          the worker has imported another version of it
     |    +-- ContextChanged       it needs another initializer, and is not run here
     |    +-- TaskTimeout          it ran longer than its timeout  (also a TimeoutError)
     |    +-- RemoteError          it raised what cannot be rebuilt in this process
     |    +-- SerializationError   it, or its result, cannot be stored (also a PicklingError)
     |    +-- DependencyFailed     a call whose result it was to be given failed or was cancelled
     |    +-- InputError           an InputFile of it cannot be read  (also an OSError)
     |         +-- InputNotFound   there is no such file           (also a FileNotFoundError)
     |         +-- InputIsFolder   it is a folder                  (also an IsADirectoryError)
     +-- PoolBroken                no worker can be started        (also a BrokenProcessPool)
     +-- EngineError               the Executor that is to run the calls cannot; nothing was stored or claimed
     |    +-- EngineClosed         it was shut down, or is broken
     |    +-- EngineUnreachable    nobody answers there            (also a ConnectionError)
     |    +-- EngineMismatch       its workers are another Python, or have not this version of the package
     +-- StoreError                the store cannot do its work: disk, permissions, format
     |    +-- StoreVersionError    the store was written by a newer version
     |    +-- TooLarge             a value is larger than the store can hold
     +-- SettingsError             a setting has a value that it cannot have (also a ValueError)
     +-- KeyConflict               a key names another call already (also a ValueError)
     +-- FunctionChanged           an earlier run has the call, under other code of its function
     +-- TaskNotFound              no task of that id in the store (also a LookupError)
     +-- CannotDebug               a call cannot be made once more under the debugger

Each can be pickled, and each says in its message which thing it speaks of and what can be done.
"""

import pickle
from concurrent.futures.process import BrokenProcessPool


class OmniqError(Exception):
    """Root of all errors of this package."""


class CallError(OmniqError):
    """Something happened to one call; it says nothing about any other call."""


class WorkerCrashed(CallError, BrokenProcessPool):
    """The worker process died while it ran the call, more often than `crash_retries` allows."""


class NotImportable(CallError, ImportError):
    """The function of the call cannot be imported in the worker. It was never called, and is not tried again."""


class CodeChanged(CallError):
    """Also a fresh worker imports other code than that of the function submitted. It was not called, nor is again."""


class ContextChanged(CallError):
    """The call was submitted with another initializer, or other arguments of it, and is PENDING. It is not run here."""


class TaskTimeout(CallError, TimeoutError):
    """The call ran longer than its timeout and was ended."""


class RemoteError(CallError):
    """The call raised an exception that cannot be rebuilt here; the message quotes its text."""


class SerializationError(CallError, pickle.PicklingError):
    """A function, an argument or a result can be neither written as JSON nor pickled."""


class DependencyFailed(CallError):
    """The call was to be given the result of another, which failed, was cancelled or is gone; it was not run."""


class InputError(CallError, OSError):
    """A file cannot be read whose content is part of what identifies the call. The call was not stored."""


class InputNotFound(InputError, FileNotFoundError):
    """There is no file at the path of an InputFile, or nothing at a path in `depends`. The call was not stored."""


class InputIsFolder(InputError, IsADirectoryError):
    """The path of an InputFile is a folder. The call was not stored."""


class PoolBroken(OmniqError, BrokenProcessPool):
    """Workers cannot be started (a failing initializer, say); the calls stay PENDING in the store."""


class EngineError(OmniqError):
    """The Executor that is to run the calls cannot. It is told before anything is stored or claimed."""


class EngineClosed(EngineError):
    """The Executor was shut down before, or is broken."""


class EngineUnreachable(EngineError, ConnectionError):
    """Nobody listens at the address, or no worker has answered."""


class EngineMismatch(EngineError):
    """Workers are another version of Python than this process, or lack this version of omniq_executor."""


class StoreError(OmniqError):
    """The store cannot be opened, read or written."""


class StoreVersionError(StoreError):
    """The store's schema is newer than this version of omniq_executor can read."""


class FunctionLost(CallError, StoreError):
    """The store holds the call, and not its function any more. It was not called; whoever submits it restores both."""


class ValueLost(CallError, StoreError):
    """A file that holds a large argument, result or global is missing or damaged; the message names it."""


class TooLarge(StoreError):
    """A call's arguments, its result or its error are larger than the store can hold."""


class SettingsError(OmniqError, ValueError):
    """A setting, or the variable of the environment that gives it, has a value that it cannot have."""


class KeyConflict(OmniqError, ValueError):
    """A call was submitted with a key that its queue has for another function, or other arguments."""


class FunctionChanged(OmniqError):
    """An earlier run has an equal call, under other code of the function, and `on_change="raise"`. Nothing is added."""


class TaskNotFound(OmniqError, LookupError):
    """The store holds no task of the given id."""


class CannotDebug(OmniqError):
    """A call cannot be made once more under the debugger: it has not failed, say, or there is no terminal."""
