"""Frames on a stream socket: eight bytes of length, then a pickled message.

The worker's side blocks. The parent's side never does: `Inbox` takes what has arrived and `Outbox`
sends what fits and keeps the rest, so a worker that is stopped, or busy with a call for an hour,
holds up nobody.
"""

import pickle
import socket
import struct
from collections import deque
from typing import Any

_LENGTH = struct.Struct("!Q")
_READ_BYTES = 1 << 16
_JOIN_BELOW = 1 << 16  # smaller messages go out in one piece with their length

Buffer = bytes | bytearray | memoryview


def frame(message: Any) -> list[Buffer]:
    """A message as the pieces to send, in order."""
    body = pickle.dumps(message, 5)
    length = _LENGTH.pack(len(body))
    return [length + body] if len(body) < _JOIN_BELOW else [length, body]


class Inbox:
    """The messages that arrive on a socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray(_READ_BYTES)
        self._partial = b""  # less than one frame, of a small one
        self._body: memoryview | None = None  # the body of a large frame under way ...
        self._filled = 0  # ... and how much of it is there

    def read(self) -> list[Any]:
        """The messages completed by one read of the socket, which blocks only if the socket does.

        Raises EOFError when the other side is gone, and BlockingIOError when nothing is there.
        """
        if self._body is not None:
            return self._read_body(self._body)
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise EOFError
        data = memoryview(self._buffer)[:count]
        if self._partial:
            data = memoryview(self._partial + data)
            self._partial = b""
        messages = []
        while len(data) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(data)[0]
            if end > len(data):
                break
            messages.append(pickle.loads(data[_LENGTH.size : end]))
            data = data[end:]
        if not data:
            return messages
        # The beginning of a frame is kept until there is more of it.
        length = _LENGTH.unpack_from(data)[0] if len(data) >= _LENGTH.size else 0
        if length >= _READ_BYTES:  # the rest of a large one is read straight into place
            self._body = memoryview(bytearray(length))
            self._filled = len(data) - _LENGTH.size
            self._body[: self._filled] = data[_LENGTH.size :]
        else:
            self._partial = bytes(data)
        return messages

    def _read_body(self, body: memoryview) -> list[Any]:
        count = self._socket.recv_into(body[self._filled :])
        if not count:
            raise EOFError
        self._filled += count
        if self._filled < len(body):
            return []
        self._body = None
        return [pickle.loads(body)]


class Outbox:
    """What is to be sent on a non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.waiting: deque[memoryview] = deque()
        """What did not fit yet."""

    def send(self, message: Any) -> None:
        """Send now what fits, and keep the rest for `flush()`. A closed socket swallows it: its reader tells."""
        self.waiting.extend(map(memoryview, frame(message)))
        self.flush()

    def flush(self) -> None:
        """Send more of what is waiting, as far as it fits."""
        while self.waiting:
            piece = self.waiting[0]
            try:
                sent = self._socket.send(piece)
            except BlockingIOError:
                return
            except (BrokenPipeError, ConnectionResetError):
                self.waiting.clear()
                return
            if sent == len(piece):
                self.waiting.popleft()
            else:
                self.waiting[0] = piece[sent:]
