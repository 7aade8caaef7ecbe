"""The modules of a process: which are the user's own, what the script is, what they held when it was forked."""

import functools
import os
import sys
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
