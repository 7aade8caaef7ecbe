"""What the identity of a function is made of, as a short text, by which two versions of it are told apart in words.

The text is JSON: by module its file, the digests of its code and those of its data, each by name. Digests are cut
to 32 bits: they only tell whether a part has changed, never whether a call is the same.
"""

import functools
import json
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from ..hashes import hash_of
from .digest import Piece
from .modules import MAIN

_PYTHON = ""  # has as its file the version of Python, where others are modules
_DIGITS = 8
_MOST = 4000  # pieces that are kept by name; of a function that reaches more, only what stands for each module
_SAID = 3  # changes that are named

_Parts = dict[str, dict[str, Any]]


def parts_of(pieces: Iterable[Piece]) -> str:
    """Return the text that says what these pieces are."""
    found: _Parts = {_PYTHON: {"file": sys.implementation.cache_tag}}
    pieces = list(pieces)
    by_name = len(pieces) <= _MOST
    for module, name, is_code, digest in pieces:
        about = found.get(module)
        if about is None:
            about = found[module] = {"file": _file(module), "code": {}, "data": {}}
        names, short = about["code" if is_code else "data"], digest.hex()[:_DIGITS]
        if not by_name:
            names.setdefault("", []).append(digest)
        elif name not in names:
            names[name] = short
        else:  # several have the name, as where a decorator makes another one of it
            names[name] = "+".join(sorted([*names[name].split("+"), short]))
    for about in found.values() if not by_name else ():
        for kind in about.keys() - {"file"}:
            about[kind] = {name: hash_of(b"".join(sorted(all_))).hex()[:_DIGITS] for name, all_ in about[kind].items()}
    return json.dumps(found, separators=(",", ":"))


@functools.lru_cache(maxsize=256)  # it is asked for with each submit
def with_depends(text: str, depends: tuple[tuple[str, str], ...]) -> str:
    """Return the parts of a function, and with them what was said that its calls depend on: a version as "", names."""
    if not text:
        return text
    found = json.loads(text)
    found[_PYTHON]["depends"] = dict(depends)
    return json.dumps(found, separators=(",", ":"))


def _file(module: str) -> str:
    return os.path.basename(getattr(sys.modules.get(module), "__file__", None) or "")


def changes(path: str, before: str, after: str) -> str:
    """Return in words what differs between two versions of the function with a path, each given by its parts."""
    if not before or not after:
        return "its code changed, in what is not known any more"
    old, new = json.loads(before), json.loads(after)
    before_all, now_all = old.pop(_PYTHON), new.pop(_PYTHON)
    if before_all["file"] != now_all["file"]:
        return f"Python changed from {before_all['file']} to {now_all['file']}"
    said = [*_changed(path, old, new)] or [*_reached(old, new)]
    said += _depended_on(before_all.get("depends", {}), now_all.get("depends", {}))
    said = said or ["what it is bound to changed"]
    more = f" and {len(said) - _SAID} more" if len(said) > _SAID else ""
    return ", ".join(said[:_SAID]) + more


def _changed(path: str, old: _Parts, new: _Parts) -> Iterator[str]:
    """Say which parts are others; the function itself comes first."""
    differing = [
        (f"{module}.{name}" != path, kind, module, name)
        for module in old.keys() & new.keys()
        for kind in ("code", "data")
        for name in old[module][kind].keys() & new[module][kind].keys()
        if old[module][kind][name] != new[module][kind][name]
    ]
    for is_other, kind, module, name in sorted(differing):
        if not is_other:
            yield "its own code changed"
        elif kind == "code":
            yield f"{_shown(module, name, new)} changed"
        elif not name.endswith("()"):
            yield f"the constant {_shown(module, name, new)} changed"
        elif f"{module}.{name[:-2]}" == path:
            yield "its defaults or closure changed"
        else:
            yield f"defaults or closure of {_shown(module, name[:-2], new)} changed"


def _depended_on(old: dict[str, str], new: dict[str, str]) -> Iterator[str]:
    """Say what is other of what calls were said to depend on."""
    for name in sorted(old.keys() | new.keys()):
        if old.get(name) != new.get(name):
            yield f"{name} changed, on which it depends" if name else "its version changed"


def _reached(old: _Parts, new: _Parts) -> Iterator[str]:
    """Say what is reached now, or not any more."""
    before, after = (
        {(module, name) for module in of for kind in ("code", "data") for name in of[module][kind]} for of in (old, new)
    )
    yield from (f"it reaches {_shown(*each, new)} now" for each in sorted(after - before))
    yield from (f"it does not reach {_shown(*each, old)} any more" for each in sorted(before - after))


def _shown(module: str, name: str, parts: _Parts) -> str:
    whole = name if module == MAIN and name else ".".join(filter(None, (module, name)))
    file = parts[module]["file"]
    return f"{whole} ({file})" if file else whole
