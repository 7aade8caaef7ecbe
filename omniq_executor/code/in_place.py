"""Modules that are changed as they are, without being loaded anew, as IPython's autoreload does.

It puts new code into functions and new constants under names. What was changed so is what the file of the module says
by then. That tells it from a counter, say, which the program itself has changed, and which workers have not.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from .modules import Stamp, file_stamp, forget_text, text_stamp


class _Constant(NamedTuple):
    module: str
    names: Mapping[str, Any]  # of the module, or of a class
    name: str  # there
    path: str  # from the module
    value: Any


class Constants:
    """The data that was read of modules, to be compared with what stands there later."""

    def __init__(self) -> None:
        self._known: list[_Constant] = []
        self._stamps: dict[str, Stamp] = {}  # of the files, by module, as they were then
        self._is_patched = False

    def note(self, module: str, names: Mapping[str, Any], name: str, path: str, value: Any) -> None:
        """Take note of what stands under a name."""
        self._known.append(_Constant(module, names, name, path, value))
        if module not in self._stamps:
            self._stamps[module] = text_stamp(module)

    def are_same(self) -> bool:
        """Return whether each name stands for what it did."""
        return not self._is_patched and all(names.get(name) is value for _, names, name, _, value in self._known)

    def are_patched(self) -> bool:
        """Return whether some are by now, or were, what an edit of their file says; its text counts as that of now."""
        changed = {it.module for it in self._known if it.names.get(it.name) is not it.value}
        patched = [module for module in changed if self._is_edited(module) and self._are_as_in_file(module)]
        for module in patched:
            forget_text(module)
        self._known = [it._replace(value=it.names.get(it.name)) for it in self._known]  # a counter is told once
        self._is_patched = self._is_patched or bool(patched)
        return self._is_patched

    def _is_edited(self, module: str) -> bool:
        stamp = file_stamp(module)
        return stamp is not None and stamp != self._stamps[module]

    def _are_as_in_file(self, module: str) -> bool:
        literals = _literals_of(module)
        return all(
            it.names.get(it.name) == literals[it.path] and type(it.names.get(it.name)) is type(literals[it.path])
            for it in self._known
            if it.module == module and it.path in literals
        )


def look_at_functions(functions: Sequence[FunctionType], codes: Sequence[CodeType]) -> None:
    """Have the texts count as those of now that functions, which had these codes, have new ones from."""
    for function, code in zip(functions, codes, strict=True):
        module = function.__module__
        if function.__code__ is not code and file_stamp(module) not in (None, text_stamp(module)):
            forget_text(module)


_literals: dict[str, tuple[Stamp, dict[str, Any]]] = {}


def _literals_of(name: str) -> dict[str, Any]:
    """Return the literals in the file of a module, by the names that it, and its classes, give them."""
    import ast

    stamp, known = file_stamp(name), _literals.get(name)
    if known is not None and known[0] == stamp:
        return known[1]
    found: dict[str, Any] = {}
    with contextlib.suppress(OSError, SyntaxError, ValueError):
        with open(getattr(sys.modules.get(name), "__file__", None) or "", "rb") as opened:
            bodies: list[tuple[str, list[ast.stmt]]] = [("", ast.parse(opened.read()).body)]
        while bodies:
            prefix, body = bodies.pop()
            for statement in body:
                if isinstance(statement, ast.ClassDef):
                    bodies.append((f"{prefix}{statement.name}.", statement.body))
                elif isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                    with contextlib.suppress(ValueError):
                        value = ast.literal_eval(statement.value)
                        found |= {prefix + each.id: value for each in targets if isinstance(each, ast.Name)}
    _literals[name] = stamp, found
    return found
