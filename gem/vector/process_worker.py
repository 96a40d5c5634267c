"""What runs in the other processes of a :class:`~gem.vector.process_vector_env.ProcessVectorEnv`.

The *fork server* is a fresh interpreter that imports what the environments need, once, and then forks a *worker*
whenever it is asked to, which takes milliseconds. It has no threads and runs no environment, so that forking is safe.
It also waits for the workers, kills those that hang, and kills all of them when the process that started it is gone.

A worker has environments, and does the jobs that it is sent one after another. It writes what it is doing into memory
that it shares with its parent (its *heartbeat*), so the parent can find out which environment was at fault when the
worker dies, and how long a step has been running.

An environment can also break its worker: close all file descriptors, or replace what the worker needs. So a job has not
ended until its reply is packed and the socket is found unharmed, and whatever goes wrong between two jobs is the fault
of the environment that was stepped last.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from os import _exit, fstat  # by name, like the next ones: an environment may replace the attributes of these modules
from pickle import dumps, loads
from signal import ITIMER_REAL, setitimer
from time import monotonic
from typing import Any, NoReturn

from gem import faults
from gem.core import Env
from gem.faults import end_forked_child, error_text
from gem.vector.outcome import Kind, StepOutcome, refused
from gem.vector.process_messages import KILL, NOT_SAVED, ORDER, Heartbeat, Job, fingerprint, messages, packed
from gem.vector.slot import AutoresetMode, Slot

FLUSH_SECONDS = 0.001
"""How long a worker keeps results while it goes on with other jobs."""
REPLAY_SHARE = 50.0
"""A state is saved when replaying the steps since the last saved one takes so many times as long as saving."""
REPLAY_LENGTH = 1000
"""... or when it takes so many calls."""
_LOOK_SECONDS = 1.0
_PARENT_DEATH_SIGNAL = 1  # of prctl

is_starter = False
"""Whether this process was started to start workers."""


# The fork server


def serve(fd: int) -> NoReturn:
    """Be the fork server: load what ``stdin`` holds, and take orders from a socket until its other side is gone."""
    global is_starter
    is_starter = True
    parent = os.getppid()
    control = socket.socket(fileno=fd)
    try:
        builds, mode, memory_limit = _loaded()
    except BaseException as error:  # noqa: BLE001 (the parent is told)
        control.sendall(error_text(error).encode())
        os._exit(1)
    control.sendall(b"\0")
    wake = _wake_when_children_end()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(wake, select.POLLIN)
    orders, fds, pids = bytearray(), list[int](), dict[int, int]()
    while os.getppid() == parent:  # the socket alone does not tell, if a fork of the parent has it too
        ready = dict(poll.poll(_LOOK_SECONDS * 1000))
        if control.fileno() in ready:
            data, received, _, _ = socket.recv_fds(control, 4096, 64)
            if not data:
                break
            orders += data
            fds += received
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
            channel, heartbeat = fds.pop(0), fds.pop(0)
            fork_server = os.getpid()
            pid = os.fork()
            if pid == 0:
                if prctl is not None:
                    prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
                    if os.getppid() != fork_server:
                        os._exit(1)
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                control.close()
                for other in (wake, *fds):
                    os.close(other)
                if memory_limit is not None:
                    _limit_memory(memory_limit)
                _Worker(socket.socket(fileno=channel), heartbeat, builds, mode).run()
            pids[number] = pid
            os.close(channel)
            os.close(heartbeat)
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    os._exit(0)


def _loaded() -> tuple[Sequence[Callable[[], Env]], AutoresetMode, int | None]:
    main, data = loads(sys.stdin.buffer.read())
    if main:
        from multiprocessing import spawn

        spawn.prepare(main)
    return loads(data)


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
        self._reason = reason

    def step(self, action: Any) -> NoReturn:
        raise RuntimeError(self._reason)

    def reset(self, seed: int | None = None) -> NoReturn:
        raise RuntimeError(self._reason)

    def close(self) -> None:
        return None


class _WorkerSlot(Slot):
    """A slot that measures how long it takes to replay the steps since its last saved state."""

    _playing = 0.0
    _calls = 0
    _saving = 0.0005

    def passes_on(self, error: BaseException) -> bool:
        """Return False: nobody presses Ctrl-C here."""
        return False

    def do(self, method: str, arguments: tuple[Any, ...]) -> tuple[StepOutcome, bytes | None]:
        """Call a method; return its outcome, and the state after it if it is to be saved."""
        begin = time.perf_counter()
        outcome: StepOutcome = getattr(self, method)(*arguments)
        self._playing += time.perf_counter() - begin
        self._calls += 1
        if method == "reset" and arguments[0] is not None and outcome.error is None:
            self._playing, self._calls = 0.0, 1  # this seed and what follows bring the state back
            return outcome, None
        if method in ("first", "assign_pickled"):  # as the building does
            self._playing, self._calls = 0.0, 0
            return outcome, None
        needed = outcome.error is not None or method == "call" or method == "reset" or self._calls > REPLAY_LENGTH
        if not needed and self._playing < REPLAY_SHARE * self._saving:
            return outcome, None
        begin = time.perf_counter()
        try:
            saved = dumps(self.get_state())
        except BaseException:  # noqa: BLE001 (whatever get_state raises: a contract that some do not keep)
            self._saving = float("inf")
            return outcome, NOT_SAVED if needed else None
        self._saving = time.perf_counter() - begin
        self._playing, self._calls = 0.0, 0
        return outcome, saved

    def first(self, name: str) -> StepOutcome:
        """Build the first environment, which the error refers to by ``name``."""
        outcome = self.assign(self._build)
        if outcome.error is not None:
            return refused(RuntimeError(f"{name} cannot be built: {error_text(outcome.error)}"))
        return outcome

    def assign_pickled(self, build: bytes) -> StepOutcome:
        """Put another environment into this slot; see :meth:`assign`."""
        try:
            function = loads(build)
        except BaseException as error:  # noqa: BLE001 (whatever an import raises)
            if not isinstance(error, Exception):
                error = RuntimeError(error_text(error))
            return refused(error)
        return self.assign(function)

    def reset(self, seed: int | None = None) -> StepOutcome:
        """Begin an episode, also where the environment was lost: nobody asks for the old one."""
        if isinstance(self.env, _Lost) and seed is not None:
            self.env = None
        return super().reset(seed)

    def take_over(self, build: bytes | None, seed: int | None, faults: int) -> None:
        """Go on in the place of a slot whose process has ended."""
        if build is not None:
            self._build = loads(build)
        self.inherit(seed, faults)

    def restore(self, saved: bytes | None, calls: list[tuple[str, tuple[Any, ...], int]]) -> None:
        """Bring the environment back to where it was, after its process was ended by another environment.

        Args:
            saved: the state that was saved last; None to begin with a new environment.
            calls: since then: methods, their arguments, and the :func:`fingerprint` of what each returned.
        """
        try:
            self.build()
            if saved == NOT_SAVED:
                raise RuntimeError("its state cannot be saved")
            if saved is not None:
                self.set_state(loads(saved))
            for method, arguments, expected in calls:
                if self.allow is not None:
                    self.allow(0.0)
                if fingerprint(getattr(self, method)(*arguments)) != expected:
                    raise RuntimeError("it does not do the same again")
        except BaseException as error:  # noqa: BLE001 (its next step says so)
            self.lose(f"another environment ended its process, and it cannot be brought back: {error_text(error)}")

    def lose(self, reason: str) -> None:
        """Have the next step fail, since the environment cannot be brought back."""
        self.env = _Lost(reason)


def _limit_memory(size: int) -> None:
    import resource  # which not every system has

    resource.setrlimit(resource.RLIMIT_AS, (size, size))


class _Worker:
    """Environments, and the socket through which they are stepped.

    Args:
        channel: the socket.
        file descriptor: of the file for a :class:`Heartbeat`.
        builds: functions that build environments, of which this worker needs some.
        mode: of the slots.
    """

    def __init__(
        self, channel: socket.socket, fd: int, builds: Sequence[Callable[[], Env]], mode: AutoresetMode
    ) -> None:
        self._descriptor, self._builds, self._mode = channel.fileno(), builds, mode
        self._send, self._receive = channel.sendall, channel.recv
        self._heartbeat = Heartbeat(fd)
        os.close(fd)
        self._fork_depth = faults.forks
        self._identity = _identity(self._descriptor)
        self._slots: dict[int, _WorkerSlot] = {}
        self._replies = bytearray()
        self._flushed = 0.0

    def run(self) -> NoReturn:
        """Do jobs until the other side of the socket is gone, or sends that it closes."""
        try:
            buffer = bytearray()
            while data := self._receive(1 << 16):
                buffer += data
                for message in messages(buffer):
                    self._do_jobs(loads(message.data))
        except BaseException as error:  # noqa: BLE001 (the environment that was stepped last has broken something)
            end_forked_child(self._fork_depth)
            self._heartbeat.blame(_BROKEN)  # at first: what is broken may be needed to describe the error
            self._heartbeat.blame(f"{_BROKEN}: {error_text(error)}")
        finally:
            _exit(os.EX_SOFTWARE)

    def _do_jobs(self, jobs: list[Job]) -> None:
        self._flushed = monotonic()
        for index, method, arguments in jobs:
            if method == "close":
                for slot in self._slots.values():
                    slot.close()
                _exit(0)
            if monotonic() - self._flushed > FLUSH_SECONDS:
                self._flush()
            if index not in self._slots:
                self._slots[index] = _WorkerSlot(self._builds[index], self._mode)
                self._slots[index].allow = self._heartbeat.allow
            self._heartbeat.begin(index)
            self._do(index, self._slots[index], method, arguments)
            self._check()
            self._heartbeat.end()
        self._flush()

    def _do(self, index: int, slot: _WorkerSlot, method: str, arguments: tuple[Any, ...]) -> None:
        if method in ("take_over", "restore", "lose"):
            getattr(slot, method)(*arguments)
            return
        outcome, saved = slot.do(method, arguments)
        try:
            self._replies += packed(outcome, index, saved)
        except BaseException as error:  # noqa: BLE001 (an object's own __reduce__ may raise anything)
            outcome, saved = _unsendable(slot, method, saved, error_text(error))
            self._replies += packed(outcome, index, saved)
        if outcome.kind is Kind.FAILURE and "MemoryError" in outcome.error:
            self._heartbeat.end()
            self._flush()
            _exit(os.EX_SOFTWARE)  # what took the memory may have kept it: the others go on in a new process

    def _check(self) -> None:
        """Find what an environment has left behind that would harm the others."""
        end_forked_child(self._fork_depth)
        setitimer(ITIMER_REAL, 0.0)  # whose signal would interrupt or end the step of another
        if _identity(self._descriptor) != self._identity:
            self._give_up("it closed the file descriptors of its process")
        if _builtins() != _BUILTINS:
            self._give_up("it replaced a builtin function in its process")

    def _flush(self) -> None:
        if self._replies:
            self._send(self._replies)
            self._replies.clear()
        self._flushed = monotonic()

    def _give_up(self, reason: str) -> NoReturn:
        """End this process by the fault of the environment that was stepped last."""
        try:
            self._heartbeat.blame(reason)
        finally:
            _exit(os.EX_SOFTWARE)


def _builtins() -> tuple[object, ...]:
    """Return the builtin functions that the next environment's step cannot do without."""
    return callable, dict, float, getattr, hasattr, isinstance, len, list, repr, str, super, tuple, type, vars


_BUILTINS = _builtins()
_BROKEN = "it broke its process"


def _identity(descriptor: int) -> tuple[int, ...] | None:
    """Return what tells a socket from another file that has got its file descriptor; None if it is closed."""
    try:
        return fstat(descriptor)[1:3]  # the numbers of the inode and of the device
    except OSError:
        return None


def _unsendable(slot: _WorkerSlot, method: str, saved: bytes | None, error: str) -> tuple[StepOutcome, bytes | None]:
    """Return what to answer in the place of an outcome that cannot be pickled, and the state."""
    error = f"what it returned cannot be sent: {error}"
    if method in ("call", "assign_pickled"):
        return refused(RuntimeError(error)), saved
    return slot.do("replace", (error, None, method == "reset"))
