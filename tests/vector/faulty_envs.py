"""Environments that break the contract in the ways that their argument names; processes import them from here."""

import asyncio
import builtins
import ctypes
import os
import pickle
import signal
import socket
import sys
import threading

from vector_envs import AsyncTold, Told

import gem


class Unspeakable(Exception):
    """An exception whose text cannot be had."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __str__


class UnspeakableReset(gem.ResetNeeded):
    def __init__(self, a, b):  # so that a pickle of it cannot be loaded
        super().__init__()

    __str__ = __bool__ = Unspeakable.__str__


class Unreadable(dict):
    """An info that cannot be looked at."""

    def __iter__(self):
        raise RuntimeError("no keys")

    keys = items = values = __iter__


class Text(str):
    """An observation that only looks like text."""

    def __str__(self):
        raise RuntimeError("no text")

    __repr__ = __len__ = encode = __str__


class CannotBeLoaded:
    def __reduce__(self):
        return sys.exit, (3,)


def _raise(error):
    raise error


def _deep():
    info = {}
    for _ in range(100_000):
        info = {"a": info}
    return info


def _step(observation="x", reward=0.0, terminated=False, truncated=False, info=None):
    return observation, reward, terminated, truncated, {} if info is None else info


RAISES = {
    "unspeakable": (lambda: _raise(Unspeakable()), "Unspeakable: (its __str__ raised RuntimeError)"),
    "unspeakable reset": (lambda: _raise(UnspeakableReset(1, 2)), "UnspeakableReset: (its __str__"),
    "reset needed": (lambda: _raise(gem.ResetNeeded()), "ResetNeeded: the episode has ended"),
    "long": (lambda: _raise(ValueError("x" * 50_000_000)), "ValueError: xxx"),
    "not encodable": (lambda: _raise(ValueError("\ud800")), "ValueError: ?"),
    "generator exit": (lambda: _raise(GeneratorExit()), "GeneratorExit: "),
    "cancelled": (lambda: _raise(asyncio.CancelledError()), "CancelledError: "),
    "own": (lambda: _raise(type("Own", (BaseException,), {})()), "Own: "),
}
"""By name, what to do in a step, and how the error that is delivered begins."""

RETURNS = {
    "four": (
        lambda: ("x", 0.0, False, {}),
        "TypeError: Faulty.step returned ('x', 0.0, False, {}), not (observation, ",
    ),
    "six": (lambda: (*_step(), 1), "TypeError: Faulty.step returned ('x', 0.0, False, False, {}, 1), not"),
    "nothing": (lambda: None, "TypeError: Faulty.step returned None, not (observation, "),
    "text": (lambda: "abcde", "TypeError: Faulty.step returned 'abcde', not (observation, "),
    "no text": (lambda: _step(5), "TypeError: Faulty.step returned 5, a int, as observation, not a str"),
    "nan": (lambda: _step(reward=float("nan")), "ValueError: Faulty.step returned the reward nan"),
    "infinite": (lambda: _step(reward=float("-inf")), "ValueError: Faulty.step returned the reward -inf"),
    "reward in text": (
        lambda: _step(reward="1"),
        "TypeError: Faulty.step returned '1', a str, as reward, not a finite",
    ),
    "terminated": (lambda: _step(terminated="False"), "TypeError: Faulty.step returned 'False', a str, as terminated"),
    "truncated": (lambda: _step(truncated=None), "TypeError: Faulty.step returned None, a NoneType, as truncated"),
    "info": (lambda: _step(info=[]), "TypeError: Faulty.step returned [], a list, as info, not a dict"),
    "unreadable info": (lambda: _step(info=Unreadable(a=1)), "RuntimeError: no keys"),
    "unreadable end": (lambda: _step(terminated=True, info=Unreadable(a=1)), "RuntimeError: no keys"),
}

UNSENDABLE = {
    "lock": (lambda: _step(info={"lock": threading.Lock()}), "what it returned cannot be sent: TypeError: "),
    "deep": (lambda: _step(info=_deep()), "what it returned cannot be sent: RecursionError: "),
    "load": (lambda: _step(info={"x": CannotBeLoaded()}), "what it returned cannot be read: SystemExit: 3"),
}


def _fork(how):
    """Fork, and let the child end in a way that its caller notices."""
    pid = os.fork()
    if pid == 0:
        return how()
    os.waitpid(pid, 0)
    return _step("forked")


def _fork_and_end():
    if os.fork():
        os._exit(0)
    return _step()


def _replace(module, name):
    setattr(module, name, None)
    return _step("replaced")


def _reuse_descriptors():
    os.closerange(3, 1 << 16)
    for _ in range(99):
        os.open(os.devnull, os.O_WRONLY)
    return _step()


def _alarm():
    signal.signal(signal.SIGALRM, lambda *_: _raise(RuntimeError("alarm")))
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    return _step("alarm")


def _hold_the_interpreter():
    threading.Thread(target=ctypes.PyDLL(None).usleep, args=(20_000_000,), daemon=True).start()
    return _step()


HARMLESS = {
    "text": (lambda: _step(Text("text")), "text"),
    "fork": (lambda: _fork(_step), "forked"),
    "fork that raises": (lambda: _fork(lambda: _raise(ValueError())), "forked"),
    "fork that exits": (lambda: _fork(sys.exit), "forked"),
}
"""What does no harm to others, and the observation."""

HARMLESS_IN_A_PROCESS = {
    "dumps": (lambda: _replace(pickle, "dumps"), "replaced"),
    "loads": (lambda: _replace(pickle, "loads"), "replaced"),
    "socket": (lambda: _replace(socket.socket, "sendall"), "replaced"),
    "exit": (lambda: _replace(os, "_exit"), "replaced"),
    "alarm": (_alarm, "alarm"),
}

BREAK_THEIR_PROCESS = {
    "close": (lambda: os.closerange(3, 1 << 16) or _step(), "it closed the file descriptors of its process"),
    "reuse": (_reuse_descriptors, "it closed the file descriptors of its process"),
    "getattr": (lambda: _replace(builtins, "getattr"), "it replaced a builtin function in its process"),
    "len": (lambda: _replace(builtins, "len"), "it broke its process"),
    "fork": (_fork_and_end, "its process ended with code 0"),
    "stop": (lambda: os.kill(os.getpid(), signal.SIGSTOP), "no answer within"),
    "hold": (_hold_the_interpreter, "no answer within"),
}

FAULTS = {**RAISES, **RETURNS}
_ALL = {"unsendable": UNSENDABLE, "harmless": HARMLESS, "patch": HARMLESS_IN_A_PROCESS, "break": BREAK_THEIR_PROCESS}


class Faulty(Told):
    """Does in each step what a table has under a name."""

    def __init__(self, name, table="faults"):
        super().__init__()
        self._name, self._table = name, table

    def step(self, action):
        table = FAULTS if self._table == "faults" else _ALL[self._table]
        return table[self._name][0]()


class ComputesFaulty(Faulty):
    cpu_bound = True


class AsyncFaulty(Faulty, AsyncTold):
    async def step_async(self, action):
        await asyncio.sleep(0)
        return self.step(action)


AsyncFaulty.__name__ = "Faulty"  # for the errors


class NotAsync(AsyncTold):
    """Its coroutines are none."""

    def step_async(self, action):
        if action == "raise":
            raise SystemExit(3)
        return self.step(action)


class _Yields:
    def __await__(self):
        yield 5


class AwaitsNonsense(AsyncTold):
    async def step_async(self, action):
        await (_Yields() if action == "yield" else asyncio.new_event_loop().create_future())
