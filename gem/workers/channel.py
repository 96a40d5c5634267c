"""Messages between a process and its worker."""

from __future__ import annotations

import socket
import struct
import time

_LENGTH = struct.Struct(">Q")


class Channel:
    """Messages to and from another process, over a socket. Each is whole within its time, however slowly it drips.

    Both methods raise ``TimeoutError``, and ``OSError`` or ``EOFError`` if the other side is gone or sends too much.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self.close = end.close

    def send(self, data: bytes, deadline: float | None = None) -> None:
        """Send a message; ``deadline`` is in ``time.monotonic()``'s seconds, None: none."""
        self._set_timeout(deadline)
        self._socket.sendall(_LENGTH.pack(len(data)) + data)

    def send_fd(self, fd: int) -> None:
        """Send a file descriptor, with a message of no bytes."""
        socket.send_fds(self._socket, [_LENGTH.pack(0)], [fd])

    def receive_with_fd(self) -> tuple[bytes, int | None]:
        """Receive a message, and the file descriptor that has come with it."""
        begin, fds, _, _ = socket.recv_fds(self._socket, _LENGTH.size, 1)
        if not begin:
            raise EOFError
        (length,) = _LENGTH.unpack(begin + self._take(_LENGTH.size - len(begin), None))
        return self._take(length, None), fds[0] if fds else None

    def receive(self, deadline: float | None = None, limit: float = float("inf")) -> bytes:
        """Receive a message of ``limit`` bytes at most."""
        (length,) = _LENGTH.unpack(self._take(_LENGTH.size, deadline))
        if length > limit:
            raise OSError(f"a message of {length} bytes, where {limit} are allowed")
        return self._take(length, deadline)

    def _take(self, length: int, deadline: float | None) -> bytes:
        data = bytearray()
        while len(data) < length:
            self._set_timeout(deadline)
            part = self._socket.recv(min(length - len(data), 1 << 20))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _set_timeout(self, deadline: float | None) -> None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
