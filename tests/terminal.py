"""A command in a terminal of its own: what it shows there, and what is typed."""

import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WAIT_S = 60.0
_STEERING = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|\r")


class Terminal:
    """Runs a command. What it has shown so far is in `text`, without what steers the terminal."""

    def __init__(
        self, command: Sequence[str], cwd: Path, columns: int = 120, lines: int = 40, env: dict[str, str] | None = None
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self.process = subprocess.Popen(
            command, cwd=cwd, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**kept, "TERM": "xterm", **(env or {})},
        )  # fmt: skip
        os.close(theirs)
        self.raw = b""

    @property
    def text(self) -> str:
        """What is to be read there."""
        return _STEERING.sub("", self.raw.decode(errors="replace"))

    def wait_for(self, text: str, after: int = 0) -> int:
        """Wait until it shows a text, behind so much; returns how much it has shown by its end."""
        deadline = time.monotonic() + WAIT_S
        while (at := self.text.find(text, after)) < 0:
            assert self._read(deadline), f"no {text!r} in {self.text[after:]!r}"
        return at + len(text)

    def type(self, text: str) -> None:
        """Type a line."""
        os.write(self._ours, f"{text}\n".encode())

    def wait(self) -> int:
        """Wait for its end; returns the exit status."""
        deadline = time.monotonic() + WAIT_S
        while self._read(deadline):
            pass
        return self.process.wait(WAIT_S)

    def _read(self, deadline: float) -> bytes:
        """Take in what comes next; nothing if it has ended."""
        ready, _, _ = select.select([self._ours], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"waited too long after {self.text!r}"
        data = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other side open
            data = os.read(self._ours, 65536)
        self.raw += data
        return data

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: Any) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(WAIT_S)
        os.close(self._ours)
