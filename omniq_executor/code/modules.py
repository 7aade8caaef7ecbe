"""The modules of a process: which are the user's own, what the script is, what they held when it was forked."""

import functools
import io
import os
import sys
from types import CodeType
from typing import Any

MAIN = "__main__"
MAINS = (MAIN, "__mp_main__")  # the second is its name in a process that multiprocessing spawned
CACHED: Any = type(functools.lru_cache(lambda: None))


class Reduced:
    """Is pickled as the given call."""

    def __init__(self, *call: Any) -> None:
        self._call = call

    def __reduce__(self) -> Any:
        return self._call


def is_main(value: Any) -> bool:
    """Return whether a function or class is the script's."""
    return getattr(value, "__module__", None) in MAINS


def find(place: Any, qualname: str) -> Any:
    """Return what a module, or a class, has under a qualified name; None where it has nothing."""
    for name in qualname.split("."):
        place = getattr(place, name, None)
    return place


def wrapped(value: Any) -> list[Any] | None:
    """Return what a property, a class method or the like calls; None for anything else."""
    if isinstance(value, property):
        return [part for part in (value.fget, value.fset, value.fdel) if part is not None]
    if isinstance(value, staticmethod | classmethod):
        return [value.__func__]
    if isinstance(value, functools.cached_property):
        return [value.func]
    return [value.__wrapped__] if type(value) is CACHED else None


@functools.cache
def _library_folders() -> tuple[str, ...]:
    return (os.path.realpath(os.path.dirname(os.__file__)) + os.sep,)  # sysconfig takes 20 ms to say as much


_known: dict[str, tuple[Any, bool]] = {}


def is_own(name: str) -> bool:
    """Return whether a module is neither the standard library's nor installed; of the latter nobody edits the code."""
    module = sys.modules.get(name)
    known = _known.get(name)
    if known is not None and known[0] is module:
        return known[1]
    file = getattr(module, "__file__", None)
    own = module is not None and name.partition(".")[0] not in sys.stdlib_module_names
    if own and isinstance(file, str):
        path = os.path.realpath(file)
        own = not path.startswith(_library_folders()) and not {"site-packages", "dist-packages"} & {*path.split(os.sep)}
    _known[name] = module, own
    return own


def script() -> tuple[str, str] | None:
    """Return how the main module can be imported, as multiprocessing knows it; None for a session or a notebook."""
    from multiprocessing import spawn

    data = spawn.get_preparation_data("")
    for how in ("path", "name"):
        if f"init_main_from_{how}" in data:
            return how, data[f"init_main_from_{how}"]
    return None


def code_of_script(how: str, what: str) -> tuple[CodeType, dict[str, Any]]:
    """Return the code of a main module, and the names that a module has by itself."""
    import importlib.util
    import pkgutil

    if how == "name":
        spec = importlib.util.find_spec(what)
        found, name = getattr(spec, "loader", None), what
    elif os.path.isfile(what) and pkgutil.get_importer(what) is None:
        with io.open_code(what) as file:
            return compile(file.read(), what, "exec"), {"__file__": what}
    else:  # a folder or an archive, with a __main__.py
        sys.path.insert(0, what)
        importer = pkgutil.get_importer(what)
        spec, name = importer.find_spec(MAIN) if importer is not None else None, MAIN
        found = getattr(spec, "loader", None)
    if found is None or spec is None:
        raise ImportError(f"there is no script {what}")
    return found.get_code(name), {"__file__": spec.origin, "__spec__": spec, "__package__": spec.parent}


class Snapshot:
    """What the modules of the user hold at a moment, by reference."""

    def __init__(self) -> None:
        own = [(name, module) for name, module in list(sys.modules.items()) if name == MAIN or is_own(name)]
        self._names = {name: dict(vars(module)) for name, module in own}
        self._classes = {
            kind: dict(vars(kind)) for kind in self._names[MAIN].values() if isinstance(kind, type) and is_main(kind)
        }

    def holds(self, key: tuple[str, str], value: Any) -> bool:
        """Return whether a name stands for the same object now as then."""
        return self._names.get(key[0], {}).get(key[1], self) is value

    def attributes(self, kind: type) -> dict[str, Any] | None:
        """Return the attributes of a class as they were; None where it was not there under its name."""
        return self._classes.get(kind) if self.holds((MAIN, kind.__qualname__), kind) else None
