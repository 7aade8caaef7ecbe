"""What calls depend on that cannot be seen in their code, so that the user says it: a version, modules, files."""

import functools
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from types import ModuleType
from typing import NamedTuple

from ..errors import InputNotFound
from ..inputs import files_digest
from .digest import value_digest
from .modules import is_own_file
from .parts import with_depends

Dependency = ModuleType | str | os.PathLike[str]


class _Item(NamedTuple):
    name: str  # as it was given: a module's name, or a path
    version: str | None  # of what nobody edits
    paths: Sequence[str]  # of what may change


class Depends:
    """A version and things that count as part of the code of calls."""

    def __init__(self, version: str | int | None = None, depends: Iterable[Dependency] = ()) -> None:
        """Raise TypeError or ValueError that names what makes no sense, InputNotFound where a path leads nowhere."""
        if version is not None and (isinstance(version, bool) or not isinstance(version, str | int)):
            raise TypeError(f"version is a text or a whole number, not {version!r}")
        if isinstance(depends, str | os.PathLike | ModuleType) or not isinstance(depends, Iterable):
            raise TypeError(f"depends are several modules or paths, as in a list, not {depends!r}")
        self._version = version
        self._items = [_item(each) for each in depends]

    def __bool__(self) -> bool:
        return self._version is not None or bool(self._items)

    def joined_to(self, digest: bytes, parts: str) -> tuple[bytes, str]:
        """Return the digest of a function, and its parts, with all of it as it is now.

        Files are read again only if `stat` differs. Raise InputError where a file cannot be read.
        """
        items = [(item.name, item.version, [files_digest(path) for path in item.paths]) for item in self._items]
        said = [("", str(self._version))] if self._version is not None else []
        said += [(item[0], value_digest(item).hex()) for item in items]
        return value_digest((digest, self._version, items)), with_depends(parts, tuple(said))


def _item(given: Dependency) -> _Item:
    if isinstance(given, ModuleType):
        if (found := _module(given.__name__, given)) is None:
            raise ValueError(f"{given!r} in depends is made of no file, so nothing says whether it has changed")
        return found
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{given!r} in depends is neither a module nor the name of one nor a path")
    path = os.fspath(given)
    if not isinstance(path, str):
        raise TypeError(f"{given!r} in depends is a path, and no text")
    is_name = isinstance(given, str) and all(part.isidentifier() for part in path.split("."))
    if is_name and not os.path.isfile(path) and (found := _module(path)) is not None:
        return found
    if not os.path.exists(path):
        what = "neither a module that can be found nor a path" if is_name else "a path in depends, and nothing is there"
        raise InputNotFound(2, f"it is {what}, seen from {os.getcwd()}", path)
    return _Item(path, None, [os.path.abspath(path)])


def _module(name: str, module: ModuleType | None = None) -> _Item | None:
    """Return what stands for a module, if there is one of that name that is made of files or has a version."""
    module = module or sys.modules.get(name)
    if module is not None:
        file, folders = getattr(module, "__file__", None), getattr(module, "__path__", None)
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):  # a package above it is none, or is not there
            return None
        if spec is None or spec.origin is None:  # a folder without __init__.py is a path
            return None
        file, folders = spec.origin, spec.submodule_search_locations
    top = name.partition(".")[0]
    if top in sys.stdlib_module_names:
        return _Item(name, "{}.{}.{}".format(*sys.version_info), ())
    paths = [*folders] if folders is not None else [file] if isinstance(file, str) else []
    if not paths:
        return None
    if not any(is_own_file(path) for path in paths) and (installed := _distributions().get(top)):
        return _Item(name, " ".join(sorted(set(installed))), ())
    return _Item(name, None, [os.path.abspath(path) for path in paths])


@functools.cache
def _distributions() -> dict[str, list[str]]:
    """Return by the name of each package that can be imported what was installed for it, with the version."""
    from importlib import metadata  # 20 ms

    return {
        name: [f"{each} {metadata.version(each)}" for each in distributions]
        for name, distributions in metadata.packages_distributions().items()
    }
