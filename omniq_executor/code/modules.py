"""The modules of a process: which are the user's own, what the script is, what they held when it was forked."""

import functools
import io
import os
import sys
from types import CodeType
from typing import Any

_MAIN = "__main__"


def is_main(value: Any) -> bool:
    """Whether a function or class is the script's."""
    return getattr(value, "__module__", None) in (_MAIN, "__mp_main__")


@functools.cache
def _library_folders() -> tuple[str, ...]:
    return (os.path.realpath(os.path.dirname(os.__file__)) + os.sep,)  # sysconfig takes 20 ms to say as much


_known: dict[str, tuple[Any, bool]] = {}


def is_own(name: str) -> bool:
    """Whether a module is neither the standard library's nor installed; of the latter nobody edits the code."""
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
    """How the main module can be imported, as multiprocessing knows it; None for a session or a notebook."""
    from multiprocessing import spawn

    data = spawn.get_preparation_data("")
    for how in ("path", "name"):
        if f"init_main_from_{how}" in data:
            return how, data[f"init_main_from_{how}"]
    return None


def code_of_script(how: str, what: str) -> tuple[CodeType, dict[str, Any]]:
    """The code of a main module, and the names that a module has by itself."""
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
        spec, name = importer.find_spec(_MAIN) if importer is not None else None, _MAIN
        found = getattr(spec, "loader", None)
    if found is None or spec is None:
        raise ImportError(f"there is no script {what}")
    return found.get_code(name), {"__file__": spec.origin, "__spec__": spec, "__package__": spec.parent}


class Snapshot:
    """What the modules of the user held at a moment, by reference."""

    def __init__(self) -> None:
        own = [(name, module) for name, module in list(sys.modules.items()) if name == _MAIN or is_own(name)]
        self._names = {name: dict(vars(module)) for name, module in own}
        self._classes = {
            kind: dict(vars(kind)) for kind in self._names[_MAIN].values() if isinstance(kind, type) and is_main(kind)
        }

    def holds(self, key: tuple[str, str], value: Any) -> bool:
        """Whether a name stands for the same object now as then."""
        return self._names.get(key[0], {}).get(key[1], self) is value

    def attributes(self, kind: type) -> dict[str, Any] | None:
        """The attributes of a class as they were; None where it was not there under its name."""
        return self._classes.get(kind) if self.holds((_MAIN, kind.__qualname__), kind) else None
