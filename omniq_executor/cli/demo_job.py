"""The work of the demo: what a Python file is made of.

A module of its own, so that the workers, which import it by name, load nothing of the terminal.
"""

import ast
import heapq
import warnings
from pathlib import Path
from typing import TypedDict

MOST = 10  # how many functions of a file are reported

_FORKS = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.Assert, ast.match_case)


class Function(TypedDict):
    """A function, and McCabe's number for it: one, and one more wherever its flow can fork."""

    name: str
    line: int
    complexity: int


class Analysis(TypedDict):
    """What `analyse` returns: plain data, of a size that does not grow with the file."""

    lines: int
    functions: int
    branches: int
    most_complex: list[Function]


def analyse(path: str) -> Analysis:
    """Count lines, functions and branches of a Python file, and find its most complex functions.

    A function inside another counts for itself alone. Raise whatever reading or parsing raises.
    """
    source = Path(path).read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the file's own, such as for an invalid escape in a string
        tree = ast.parse(source, path)
    branches = 0
    functions: list[Function] = []
    todo: list[tuple[ast.AST, str, Function | None]] = [(tree, "", None)]  # no recursion: a tree can be deep
    while todo:
        node, prefix, function = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = Function(name=prefix + node.name, line=node.lineno, complexity=1)
            functions.append(function)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            prefix += node.name + "."
        forks = _forks(node)
        branches += forks
        if function is not None:
            function["complexity"] += forks
        todo.extend((child, prefix, function) for child in ast.iter_child_nodes(node))
    return Analysis(
        lines=len(source.splitlines()),
        functions=len(functions),
        branches=branches,
        most_complex=heapq.nlargest(MOST, functions, key=lambda found: (found["complexity"], -found["line"])),
    )


def _forks(node: ast.AST) -> int:
    """Return in how many places the flow can fork at this very node."""
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return int(isinstance(node, _FORKS))
