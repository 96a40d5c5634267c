"""What runs in the other processes of a :class:`~gem.vector.process_vector_env.ProcessVectorEnv`.

The *starter* is a fresh interpreter that imports what the environments need, once, and then forks a *worker* whenever
it is asked to, which takes milliseconds. It has no threads and runs no environment, so that forking is safe. It also
waits for the workers, kills those that hang, and kills all of them when the process that started it is gone.

A worker holds environments, and does the jobs that it is sent one after another. What it is doing stands in memory that
it shares with its parent, who can thus tell whose fault it was when it dies, and how long a step has been running.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from gem.core import Env
from gem.vector.slot import AutoresetMode, Row, Slot, describe

FLUSH_SECONDS = 0.001
"""How long a worker keeps results while it goes on with other jobs."""
REPLAY_SHARE = 50.0
"""An environment's state is saved when playing on from the last saved one takes so many times as long as saving."""
REPLAY_LENGTH = 1000
"""... or when it takes so many calls."""
NOT_SAVED = b""
"""In the place of a state that cannot be saved."""
FORK, KILL = 0, 1
"""Orders to the starter."""
ORDER = struct.Struct("qq")
"""An order and the number of a worker; or, from the starter, the number and the status of a worker that has ended."""

_HEADER = struct.Struct("!Q")
_LOOK_SECONDS = 1.0
_PARENT_DEATH_SIGNAL = 1  # of prctl

is_starter = False
"""Whether this process was started to start workers."""


class Job(NamedTuple):
    """A call of a slot's method, for the environment of a number."""

    env: int
    method: str
    arguments: tuple[Any, ...]


class Reply(NamedTuple):
    """What a job returned, and the state after it: None if it was not saved."""

    env: int
    row: Row
    saved: bytes | None


class Board:
    """A line of shared memory: which environment a worker is busy with, and since when.

    Args:
        handle: of a file.
    """

    SIZE = 16
    _line = struct.Struct("qd")

    def __init__(self, handle: int) -> None:
        self._memory = mmap.mmap(handle, self.SIZE)
        self._index = -1

    def write(self, index: int) -> None:
        """Say that the worker is busy with environment ``index`` from now on; -1: with none."""
        self._index = index
        self.allow(0.0)

    def allow(self, seconds: float) -> None:
        """Let the time of the running call begin again, so many seconds from now."""
        self._line.pack_into(self._memory, 0, self._index, time.monotonic() + seconds)

    def read(self) -> tuple[int, float]:
        """Return which environment the worker is busy with, and since when on the monotonic clock."""
        index, since = self._line.unpack_from(self._memory, 0)
        return index, since

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()


def packed(message: Any) -> bytes:
    """Return a message as it goes through a socket."""
    data = pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)
    return _HEADER.pack(len(data)) + data


def unpacked(buffer: bytearray) -> list[Any]:
    """Take the messages out of a buffer that are there as a whole."""
    messages, begin = [], 0
    while len(buffer) >= begin + _HEADER.size:
        end = begin + _HEADER.size + _HEADER.unpack_from(buffer, begin)[0]
        if len(buffer) < end:
            break
        messages.append(pickle.loads(buffer[begin + _HEADER.size : end]))
        begin = end
    del buffer[:begin]
    return messages


def fingerprint(row: Row) -> int:
    """Return a number that another row is unlikely to have."""
    return zlib.crc32(repr(row[:4]).encode())


# The starter


def serve(handle: int) -> NoReturn:
    """Be the starter: load what ``stdin`` holds, and take orders from a socket until its other side is gone."""
    global is_starter
    is_starter = True
    parent = os.getppid()
    control = socket.socket(fileno=handle)
    try:
        builds, mode, memory_limit = _loaded()
    except BaseException as error:  # noqa: BLE001 (the parent is told)
        control.sendall(describe(error).encode())
        os._exit(1)
    control.sendall(b"\0")
    wake = _wake_when_children_end()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    orders, handles, pids = bytearray(), list[int](), dict[int, int]()
    while os.getppid() == parent:  # the socket alone does not tell, if a fork of the parent has it too
        ready = dict(poll.poll(_LOOK_SECONDS * 1000))
        if control.fileno() in ready:
            data, received, _, _ = socket.recv_fds(control, 4096, 64)
            if not data:
                break
            orders += data
            handles += received
        if wake in ready:
            os.read(wake, 4096)
            for number, pid in list(pids.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del pids[number]
                    control.sendall(ORDER.pack(number, status))
        while len(orders) >= ORDER.size:
            order, number = ORDER.unpack_from(orders)
            del orders[: ORDER.size]
            if order == KILL:
                if number in pids:  # and so nobody has waited for it, and its number is its own
                    os.kill(pids[number], signal.SIGKILL)
                continue
            channel, board = handles.pop(0), handles.pop(0)
            starter = os.getpid()
            pid = os.fork()
            if pid == 0:
                if prctl is not None:
                    prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
                    if os.getppid() != starter:
                        os._exit(1)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                for other in (wake, *handles):
                    os.close(other)
                _run_worker(socket.socket(fileno=channel), board, builds, mode, memory_limit)
            pids[number] = pid
            os.close(channel)
            os.close(board)
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _loaded() -> tuple[Sequence[Callable[[], Env]], AutoresetMode, int | None]:
    main, data = pickle.loads(sys.stdin.buffer.read())
    if main:
        from multiprocessing import spawn

        spawn.prepare(main)
    return pickle.loads(data)


def _wake_when_children_end() -> int:
    wake, woken = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    return wake


# The worker


class _Lost:
    """In the place of an environment that cannot be brought back: its next step says so."""

    def __init__(self, reason: str) -> None:
        self._reason = f"another environment ended its process, and it cannot be brought back: {reason}"

    def step(self, action: Any) -> NoReturn:
        raise RuntimeError(self._reason)

    def reset(self, seed: int | None = None) -> NoReturn:
        raise RuntimeError(self._reason)

    def close(self) -> None:
        return None


class _WorkerSlot(Slot):
    """A slot that knows how long it takes to play on from the last saved state."""

    _playing = 0.0
    _calls = 0
    _saving = 0.0005

    def do(self, method: str, arguments: tuple[Any, ...]) -> tuple[Row, bytes | None]:
        """Call a method; return its row, and the state after it if it is to be saved."""
        begin = time.perf_counter()
        row: Row = getattr(self, method)(*arguments)
        self._playing += time.perf_counter() - begin
        self._calls += 1
        if method == "reset" and arguments[0] is not None and not row[5]:
            self._playing, self._calls = 0.0, 1  # this seed and what follows bring the state back
            return row, None
        if method in ("first", "assign_pickled"):  # as the building does
            self._playing, self._calls = 0.0, 0
            return row, None
        needed = bool(row[5]) or method == "call" or method == "reset" or self._calls > REPLAY_LENGTH
        if not needed and self._playing < REPLAY_SHARE * self._saving:
            return row, None
        begin = time.perf_counter()
        try:
            saved = pickle.dumps(self.get_state())
        except Exception:  # noqa: BLE001 (whatever get_state raises: a contract that some do not keep)
            self._saving = float("inf")
            return row, NOT_SAVED if needed else None
        self._saving = time.perf_counter() - begin
        self._playing, self._calls = 0.0, 0
        return row, saved

    def first(self, ignored: Any) -> Row:
        """Build the first environment."""
        row = self.assign(self._build)
        if row[5]:
            return *row[:5], RuntimeError(f"an environment cannot be built: {describe(row[5])}")
        return row

    def assign_pickled(self, build: bytes) -> Row:
        """Put another environment into this slot; see :meth:`assign`."""
        try:
            function = pickle.loads(build)
        except Exception as error:  # noqa: BLE001 (whatever an import raises)
            return "", 0.0, False, False, {}, error
        return self.assign(function)

    def reset(self, seed: int | None = None) -> Row:
        """Begin an episode, also where the environment was lost: nobody asks for the old one."""
        if isinstance(self.env, _Lost) and seed is not None:
            self.env = None
            self.build()
        return super().reset(seed)

    def take_over(self, build: bytes | None, seed: int | None, faults: int) -> None:
        """Go on in the place of a slot whose process has ended."""
        if build is not None:
            self._build = pickle.loads(build)
        self.inherit(seed, faults)

    def restore(self, saved: bytes | None, calls: list[tuple[str, tuple[Any, ...], int]]) -> None:
        """Bring an environment back: from a saved state or from the beginning, and by the calls after it."""
        try:
            self.build()
            if saved == NOT_SAVED:
                raise RuntimeError("its state cannot be saved")
            if saved is not None:
                self.set_state(pickle.loads(saved))
            for method, arguments, expected in calls:
                if self.allow is not None:
                    self.allow(0.0)
                if fingerprint(getattr(self, method)(*arguments)) != expected:
                    raise RuntimeError("it does not do the same again")
        except Exception as error:  # noqa: BLE001 (its next step says so)
            self.env = _Lost(describe(error))


def _run_worker(
    channel: socket.socket,
    handle: int,
    builds: Sequence[Callable[[], Env]],
    mode: AutoresetMode,
    memory_limit: int | None,
) -> NoReturn:
    """Do jobs until the other side of the socket is gone, or says so."""
    if memory_limit is not None:
        import resource  # which not every system has

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))
    board = Board(handle)
    os.close(handle)
    slots: dict[int, _WorkerSlot] = {}
    buffer = bytearray()
    while True:
        data = channel.recv(1 << 16)
        if not data:
            os._exit(0)
        buffer += data
        for jobs in unpacked(buffer):
            _do_jobs(jobs, slots, board, channel, builds, mode)


def _do_jobs(
    jobs: list[Job],
    slots: dict[int, _WorkerSlot],
    board: Board,
    channel: socket.socket,
    builds: Sequence[Callable[[], Env]],
    mode: AutoresetMode,
) -> None:
    replies: list[Reply] = []
    flushed = time.monotonic()
    for index, method, arguments in jobs:
        if method == "close":
            for each in slots.values():
                each.close()
            os._exit(0)
        if replies and time.monotonic() - flushed > FLUSH_SECONDS:
            _flush(replies, slots, channel)
            flushed = time.monotonic()
        if index not in slots:
            slots[index] = _WorkerSlot(builds[index], mode)
            slots[index].allow = board.allow
        board.write(index)
        if method in ("take_over", "restore"):
            getattr(slots[index], method)(*arguments)
        else:
            row, saved = slots[index].do(method, arguments)
            replies.append(Reply(index, row, saved))
        board.write(-1)
        if replies and str(replies[-1].row[5]).startswith("MemoryError"):
            _flush(replies, slots, channel)
            os._exit(os.EX_SOFTWARE)  # what took the memory may have kept it: the others go on in a new process
    _flush(replies, slots, channel)


def _flush(replies: list[Reply], slots: dict[int, _WorkerSlot], channel: socket.socket) -> None:
    if not replies:
        return
    try:
        message = packed(replies)
    except Exception:  # noqa: BLE001 (an object's own __reduce__ may raise anything)
        message = packed([_sendable(reply, slots[reply.env]) for reply in replies])
    channel.sendall(message)
    replies.clear()


def _sendable(reply: Reply, slot: _WorkerSlot) -> Reply:
    try:
        pickle.dumps(reply)
    except Exception as error:  # noqa: BLE001
        row, saved = slot.do("replace", (f"what it returned cannot be sent: {describe(error)}",))
        return Reply(reply.env, row, saved)
    return reply
