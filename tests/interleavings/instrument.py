"""The modules of the package that are searched, with a point between any two of their statements.

The source is parsed, calls of `__point__()` are put in, and the result is compiled. Threads can change at each: before
each statement, before each operand of `and` and `or` but the first, between the reading and the writing of
`self.x += 1`, and at the end of a function.

A signal is delivered only where the interpreter looks for one, at `__signals__()`: when a function begins, after each
call, and where a loop begins anew. It is another thing whether that is within a `try` or `with` block or before it. A
`with` statement, for one, enters its block between two looks, and so does `finally`.

Before it is parsed the source may be changed, to put a fault there: see put_back.py. An edit is written as in a diff:
lines that begin with "-" or " " are looked for, less comments, and those with "+" or " " take their place.
"""

import ast
import functools
import importlib
import sys
from collections.abc import Mapping
from types import CodeType, ModuleType
from typing import Any

PACKAGE = "omniq_executor"
MODULES = (  # each after those of which it takes something when it is imported
    "model.ids",
    "pipes",
    "interrupts",
    "dispatch.driving",
    "dispatch.waiters",
    "dispatch.results",
    "dispatch.turn",
    "dispatch.queue",
    "dispatch.claims",
    "dispatch.committing",
    "dispatch.dropped",
    "dispatch.peers",
    "dispatch.ahead",
    "dispatch.resumption",
    "dispatch.loop",
    "dispatch.dispatcher",
    "dispatch.maps",
    "lean_future",
    "future",
    "items",
    "map_iterator",
)

Edit = str  # as the module's docstring has it


class Copy:
    """A copy of the modules, apart from the package's own."""

    def __init__(self, modules: dict[str, ModuleType]) -> None:
        self.modules = modules

    def __getitem__(self, name: str) -> Any:
        return self.modules[name]


def load(edits: Mapping[str, tuple[Edit, ...]] | None = None) -> Copy:
    """Return a new copy, changed as the edits say by module."""
    edits = edits or {}
    names = [f"{PACKAGE}.{name}" for name in MODULES]
    before = {name: importlib.import_module(name) for name in names}
    modules: dict[str, ModuleType] = {}
    try:
        for short, name in zip(MODULES, names, strict=True):
            module = ModuleType(name)
            module.__dict__.update(__file__=before[name].__file__, __package__=name.rpartition(".")[0])
            module.__dict__.update(__point__=lambda: None, __signals__=lambda: None)
            sys.modules[name] = modules[short] = module
            exec(_code(name, str(before[name].__file__), edits.get(short, ())), module.__dict__)
    finally:
        sys.modules.update(before)
    unknown = edits.keys() - modules.keys()
    assert not unknown, f"{unknown} are no modules that are searched"
    return Copy(modules)


@functools.cache
def _code(name: str, path: str, edits: tuple[Edit, ...]) -> CodeType:
    with open(path) as file:
        source = file.read()
    for edit in edits:
        source = _edited(source, edit)
    return compile(ast.fix_missing_locations(_Points().visit(ast.parse(source))), path, "exec")


def _edited(source: str, edit: Edit) -> str:
    changes = edit.strip("\n").splitlines()
    old = [line[1:] for line in changes if line[0] in "- "]
    new = [line[1:] for line in changes if line[0] in "+ "]
    lines = [line.partition("  # ")[0] for line in source.splitlines()]
    places = [place for place in range(len(lines)) if lines[place : place + len(old)] == old]
    assert len(places) == 1, f"{len(places)} places have\n{edit}"
    lines[places[0] : places[0] + len(old)] = new
    return "\n".join(lines) + "\n"


class _Points(ast.NodeTransformer):
    """Puts the points into functions."""

    def __init__(self) -> None:
        self._names = 0

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.body = [_signals(), *self._block(node.body)]
        if not isinstance(node.body[-1], ast.Return | ast.Raise):
            node.body.append(_point())
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.AST:
        self.generic_visit(node)
        # A point returns None, so what comes after it is the value.
        node.values[1:] = [ast.BoolOp(ast.Or(), [_point().value, value]) for value in node.values[1:]]
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        return node

    def _block(self, block: list[ast.stmt]) -> list[ast.stmt]:
        found: list[ast.stmt] = []
        for statement in block:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring
            parts = self._statement(statement)
            if not (found and _is_call_of(found[-1], "__signals__")):  # which is a point too
                parts = [_point(), *parts]
            for part in parts:
                for node in ast.walk(part):
                    if isinstance(node, ast.expr | ast.stmt) and not hasattr(node, "lineno"):
                        ast.copy_location(node, statement)
            found += parts
        return found

    def _statement(self, statement: ast.stmt) -> list[ast.stmt]:
        """The statement with points within, and with what follows it."""
        match statement:
            case ast.FunctionDef():
                return [self.visit(statement)]
            case ast.If():
                test = self.visit(statement.test)
                looks = [_signals()] if _calls(test) else []
                statement.test = test
                statement.body = looks + self._block(statement.body)
                statement.orelse = looks + self._block(statement.orelse)
                return [statement]
            case ast.While() | ast.For():
                if isinstance(statement, ast.While):
                    test = self.visit(statement.test)
                    statement.test = ast.BoolOp(ast.Or(), [_signals().value, test])
                    looks = [_signals()] if _calls(test) else []
                else:
                    statement.iter = self.visit(statement.iter)
                    looks = [_signals()]
                statement.body = looks + self._block(statement.body)
                statement.orelse = self._block(statement.orelse)
                return [statement]
            case ast.With():
                for item in statement.items:
                    item.context_expr = self.visit(item.context_expr)
                statement.body = self._block(statement.body)
                return [statement, _signals()]  # its end is a call
            case ast.Try():
                statement.body = self._block(statement.body)
                for handler in statement.handlers:
                    handler.body = self._block(handler.body)
                statement.orelse = self._block(statement.orelse)
                statement.finalbody = self._block(statement.finalbody)
                return [statement]
            case ast.Return() if statement.value is not None and _calls(statement.value):
                name = self._name()
                kept = ast.Assign([ast.Name(name, ast.Store())], self.visit(statement.value))
                return [kept, _signals(), ast.Return(ast.Name(name, ast.Load()))]
            case ast.AugAssign(target=ast.Attribute() as target):
                name = self._name()
                read = ast.Attribute(target.value, target.attr, ast.Load())
                changed = ast.AugAssign(ast.Name(name, ast.Store()), statement.op, self.visit(statement.value))
                parts = [ast.Assign([ast.Name(name, ast.Store())], read), _point(), changed]
                return [*parts, ast.Assign([target], ast.Name(name, ast.Load()))]
            case _:
                made = self.generic_visit(statement)
                assert isinstance(made, ast.stmt)
                return [made, _signals()] if _calls(made) else [made]

    def _name(self) -> str:
        self._names += 1
        return f"__kept{self._names}__"


def _calls(node: ast.AST) -> bool:
    """Whether something is called in it, or looped over: points apart."""
    if isinstance(node, ast.Lambda):
        return False
    if isinstance(node, ast.Call) and not (isinstance(node.func, ast.Name) and node.func.id.startswith("__")):
        return True
    return isinstance(node, ast.comprehension) or any(map(_calls, ast.iter_child_nodes(node)))


def _is_call_of(node: ast.stmt, name: str) -> bool:
    call = node.value if isinstance(node, ast.Expr) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == name


def _point() -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name("__point__", ast.Load()), [], []))


def _signals() -> ast.Expr:
    return ast.Expr(ast.Call(ast.Name("__signals__", ast.Load()), [], []))
