"""What stands for byte code, as far as it says what is done."""

import functools
import itertools
from types import CodeType
from typing import Any

from ..hashes import hash_of
from .modules import begins_with_docstring, is_hash_of_attrs

_SAYS_WHAT_IS_DONE = 0xFFFF  # flags: not those of `from __future__`, which IPython's autoreload adds
_FIRST_LINE = "__firstlineno__"
# What a class has though nobody wrote it there, or as annotations; an enum also what grows as flags are put together.
MADE = frozenset(
    f"__{name}__"
    for name in (
        *("module", "qualname", "doc", "dict", "weakref", "firstlineno", "static_attributes", "slotnames"),
        *("annotations", "annotations_cache", "annotate", "annotate_func", "parameters", "type_params", "orig_bases"),
        *("abstractmethods", "dataclass_fields", "dataclass_params", "attrs_attrs", "attrs_props"),
    )
) | {"_value2member_map_"}


@functools.lru_cache(maxsize=1 << 16)
def code_digest(code: CodeType) -> bytes:
    """Return what stands for byte code, whatever its lines, file and docstring are."""
    constants = list(code.co_consts)
    if begins_with_docstring(code):
        constants[0] = None
    steps = code.co_code
    if _FIRST_LINE in code.co_names:
        steps = _without_first_line(code, constants)
    if is_hash_of_attrs(code):
        constants = [each for each in constants if type(each) is not int]
    parts = (
        code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _SAYS_WHAT_IS_DONE,
        steps, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_exceptiontable,
        [_constant(each) for each in constants],
    )  # fmt: skip
    return hash_of(repr(parts).encode("utf-8", "surrogatepass"))


def _without_first_line(code: CodeType, constants: list[Any]) -> bytes:
    """Return the steps of the body of a class without its line number, which it stores since 3.13."""
    import dis  # 3 ms, as in digest.py

    steps = [*dis.get_instructions(code)]
    loads = [step.arg for step in steps if step.opcode in dis.hasconst]
    for load, store in itertools.pairwise(steps):
        if store.opname == "STORE_NAME" and store.argval == _FIRST_LINE:
            if load.opname == "LOAD_SMALL_INT":  # since 3.14
                return code.co_code[: load.offset + 1] + b"\0" + code.co_code[load.offset + 2 :]
            if load.arg is not None and loads.count(load.arg) == 1:  # else it is a constant of the user's, too
                constants[load.arg] = None
    return code.co_code


def _constant(value: Any) -> str:
    if type(value) is CodeType:
        return code_digest(value).hex()
    if type(value) is frozenset:
        return f"frozenset {sorted(map(_constant, value))}"
    if type(value) is tuple:
        return f"({', '.join(map(_constant, value))})"
    return f"{type(value).__name__} {value!r}"
