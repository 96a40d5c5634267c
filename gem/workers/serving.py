"""What runs in a worker's process."""

from __future__ import annotations

import gc
import json
import math
import os
import pickle
import queue
import signal
import socket
import sys
import threading
from collections.abc import Iterator

from gem.faults import call_unforked, error_message, error_text
from gem.workers.channel import Channel

MEMORY_LIMIT = 4 << 30
"""Bytes of address space that a worker may take."""


def serve(fd: int, fork: bool) -> None:
    """Answer calls, in the new process, until the other side is gone."""
    import resource  # which not every system has

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    channel = Channel(socket.socket(fileno=fd))
    if fork:
        _serve_by_forks(channel)
    else:
        _serve(channel)


def _serve(channel: Channel) -> None:
    for message in _received(channel):
        sys.path[:], job, seconds = pickle.loads(message)
        if seconds is not None:
            _limit_processor_time(seconds)
        channel.send(call_unforked(_answer, job))


def _serve_by_forks(channel: Channel) -> None:
    """Load what calls need; for each socket that comes, end the fork that there is, and make one that serves there."""
    fork = 0
    while True:
        try:
            message, fd = channel.receive_with_fd()
        except (EOFError, OSError):
            message, fd = b"", None
        if fork:
            os.kill(fork, signal.SIGKILL)
            os.waitpid(fork, 0)
            fork = 0
        if fd is not None:
            fork = _fork_to_serve(fd, channel)
            channel.send(b"")
        elif message:
            sys.path[:], job, _ = pickle.loads(message)
            channel.send(call_unforked(_answer, job))
        else:
            os._exit(0)


def _fork_to_serve(fd: int, channel: Channel) -> int:
    """Make a fork of this process that answers the calls from a file descriptor; return its number."""
    fork = os.fork()
    if fork == 0:
        try:
            channel.close()
            gc.freeze()  # a collection would touch, and so copy, all that there is
            _serve(Channel(socket.socket(fileno=fd)))
        finally:
            os._exit(0)
    os.close(fd)
    return fork


def _limit_processor_time(seconds: float) -> None:
    """End this process if it computes for so long from now on, for when there is nobody left to end it."""
    import resource

    usage = resource.getrusage(resource.RUSAGE_SELF)
    most = math.ceil(usage.ru_utime + usage.ru_stime + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))


def _answer(job: bytes) -> bytes:
    """Call a function, and return the answer as JSON."""
    try:
        function, args = pickle.loads(job)
    except (ImportError, AttributeError) as error:
        answer = json.dumps(("unloadable", error_message(error)))
    except BaseException as error:  # noqa: BLE001 (an argument's own __setstate__ may raise anything)
        answer = json.dumps(("unloadable", error_text(error)))
    else:
        try:
            answer = json.dumps(("returned", function(*args)))
        except BaseException as error:  # noqa: BLE001 (whatever it raises is the caller's to know)
            answer = json.dumps(("raised", error_text(error)))
    return answer.encode()


def _received(channel: Channel) -> Iterator[bytes]:
    """Yield the messages that come; end this process, whatever it computes, when the other side is gone."""
    messages: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def receive() -> None:
        while True:
            try:
                messages.put(channel.receive())
            except (EOFError, OSError):
                os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    while True:
        yield messages.get()
