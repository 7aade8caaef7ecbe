"""How tests hold values to what identifies them: the same in each process, and another one after each change.

A table has a line for each kind of value: a function that makes one, and others that make or change one so that each
has another identity than all the rest.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cloudpickle

import omniq_executor
from omniq_executor.model.functions import named, stored_call

FUNCTION = named("builtins.print")


class Line(NamedTuple):
    make: Callable[[], Any]
    others: Sequence[Callable[[], Any]] = ()
    """Each makes a value that differs."""
    changes: Sequence[Callable[[Any], object]] = ()
    """Each changes a value in place."""


Table = Mapping[str, Line]


def identity(value: object) -> str:
    """What a resumed run compares of a call with that argument."""
    call, _ = stored_call(FUNCTION, (value,), {}, store="none")
    if call.identity is None:
        assert isinstance(call.args, str)
        return call.args
    assert len(call.identity) == 16, f"{value!r} has no stable form"
    return call.identity.hex()


def check(line: Line) -> None:
    """Hold a line to what it says, within this process."""
    whole = identity(line.make())
    assert identity(line.make()) == whole, "another one each time"
    value = line.make()
    assert [identity(value), identity(value)] == [whole, whole], "another one after it was looked at"
    assert identity(pickle.loads(cloudpickle.dumps(line.make()))) == whole, "another one after it has travelled"
    found = [whole, *(identity(make()) for make in line.others)]
    for change in line.changes:
        value = line.make()
        identity(value)
        change(value)
        found.append(identity(value))
    assert [found.index(each) for each in found] == [*range(len(found))], "different values are taken for the same"


def check_processes(path: str) -> None:
    """Hold the TABLE of a file to one set of identities, whatever the hash seed is: as a module, and as a script."""
    folders = [Path(omniq_executor.__file__).parents[1], Path(__file__).parent, Path(path).parent]
    roots = [*map(str, folders), *sys.path]
    as_module = f"from {Path(path).stem} import TABLE"
    as_script = f"with open({path!r}) as file: code = compile(file.read(), {path!r}, 'exec')\nexec(code)"
    for program in (as_module, as_script):
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", f"{program}\nimport identity_table\nprint(identity_table.identities(TABLE))"],
                env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": os.pathsep.join(roots)},
                stdout=subprocess.PIPE, text=True,
            )
            for seed in (1, 2)
        ]  # fmt: skip
        printed = [process.communicate()[0] for process in processes]
        assert [process.returncode for process in processes] == [0, 0]
        found, again = [json.loads(text.splitlines()[-1]) for text in printed]
        assert {key for key in found if found[key] != again[key]} == set()


def identities(table: Table) -> str:
    """The identities of a table's values, as JSON."""
    return json.dumps({name: identity(line.make()) for name, line in table.items()})
