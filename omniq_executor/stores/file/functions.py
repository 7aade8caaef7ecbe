"""The functions of a file store, each in a file of its own, and those that this process knows already."""

import base64
import contextlib

from ...errors import FunctionLost
from ...model.task import Function
from .folders import Folders

FUNCTION_FIELDS = {"path", "pickle"}
_KNOWN = 4096


class Functions:
    """See the module's docstring. Methods that may look at files are called under the store's lock."""

    def __init__(self, folders: Folders) -> None:
        self._folders = folders
        self.known: dict[bytes, Function] = {}  # those found without a look at a file

    def keep(self, function: Function) -> None:
        """Have a function on disk."""
        known = self.known.get(function.digest)
        if known is None or (function.parts and not known.parts):
            with contextlib.suppress(FunctionLost):
                self.known.pop(function.digest, None)
                known = self.read(function.digest)
            if known is None or (function.parts and not known.parts):
                pickled = base64.b64encode(function.pickle).decode()
                content = {"path": function.path, "pickle": pickled, "parts": function.parts}
                self._folders.write_json("functions", f"{function.digest.hex()}.json", content)
                self._remember(function)

    def read(self, digest: bytes) -> Function:
        """Return a function. Raises FunctionLost if there is none."""
        found = self.known.get(digest)
        if found is None:
            content = self._folders.read_json("functions", f"{digest.hex()}.json", FUNCTION_FIELDS)
            if content is None:
                raise FunctionLost(f"{self._folders.root} holds no function {digest.hex()}: submit its calls again")
            found = Function(digest, content["path"], base64.b64decode(content["pickle"]), content.get("parts", ""))
            self._remember(found)
        return found

    def forget(self) -> None:
        """Take no function for stored: some may have been purged."""
        self.known.clear()

    def _remember(self, function: Function) -> None:
        if len(self.known) == _KNOWN:
            self.known.clear()
        self.known[function.digest] = function
