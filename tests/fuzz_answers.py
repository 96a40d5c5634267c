"""Answers made at random, where a library evaluates them: does anything run that is not arithmetic?

    python tests/fuzz_answers.py --seconds 600      # tests/envs/test_fuzzed_answers.py is a short form

Each answer goes to a scorer that evaluates, in a worker process with the guard on. Witnesses are in that process: an
audit hook, which Python tells of files, programs and sockets; a canary file and a canary variable, which answers name;
and ``os.system`` and ``socket.socket``, which are replaced.
"""

from __future__ import annotations

import argparse
import builtins
import os
import random
import socket
import sys
import time
from pathlib import Path

from hostile_answers import CODE

from gem.workers import CallFailed, Worker

SCORERS = (
    "n_queens",
    "spiral_matrix",
    "binary_matrix",
    "string_insertion",
    "countdown",
    "puzzle24",
    "simple_integration",
    "intermediate_integration",
    "polynomial_multiplication",
    "maths",
)

NAMES = (
    "open os sys eval exec __import__ getattr globals locals builtins print Symbol Integer Function Lambda sympify S "
    "__class__ __subclasses__ __builtins__ __globals__ mro system path canary lambda for in if else is or and not "
    "await yield x y sin log exp 1 2 24 0x 1e9 1j f' b' rb'"
)
SIGNS = "( ) () [ ] [0] { } . , ; : = == := ' \" @ ! !! # ** ^ * + - / // % | & ~ << > $ $$ _ \\ ''"
LATEX = r"\frac \text \operatorname \sqrt \left \right \cdot \pi \begin \end"
ODD = ("\\\n", "\n", "\t", "\f", "\x00", " ", "\u2028", "\ufeff", "\u00a0", "\uff3f", "\uff08", "\uff09", "\u2024")
PARTS = (*NAMES.split(), *SIGNS.split(), *LATEX.split(), *ODD)


def answer(draw: random.Random) -> str:
    """Return a text: known code, changed; or parts in a row."""
    if draw.random() < 0.5:
        text = draw.choice(CODE).replace("{path}", "CANARY")
        for _ in range(draw.randrange(4)):
            at = draw.randrange(len(text) + 1)
            text = text[:at] + draw.choice(PARTS) + text[at + draw.randrange(3) :]
        return text
    return "".join(draw.choice(PARTS) for _ in range(draw.randrange(1, 25)))


_seen: list[str] = []
_quiet = True
_EVENTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.", "shutil.", "ctypes.")


def watch() -> None:
    """Load the scorers, put the guard on, and let the witnesses watch."""
    from gem.envs import reasoning_gym_worker
    from gem.utils import math_equality

    reasoning_gym_worker.load()
    math_equality.load()

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if _quiet:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if event.startswith(_EVENTS) or writes:
            _seen.append(f"{event} {arguments!r:.100}")

    sys.addaudithook(hook)

    def witness(name: str):
        def called(*arguments: object, **named: object) -> None:
            _seen.append(f"{name} {arguments!r:.100}")
            raise PermissionError(name)

        return called

    os.system = witness("os.system")
    socket.socket = witness("socket.socket")  # type: ignore[assignment,misc]
    builtins.canary = [0]  # type: ignore[attr-defined]


def try_out(scorer: str, text: str) -> list[str]:
    """Have a scorer evaluate a text; return what the witnesses saw."""
    global _quiet

    from gem.envs import reasoning_gym_worker as worker

    if scorer == "maths":
        from gem.utils.math_equality import is_same

        def grade() -> object:
            return is_same(text, ["42"])
    else:
        entry = worker.make_entry(scorer, "{}", 1)

        def grade() -> object:
            return worker.score(scorer, "{}", text, entry["pickled"], True)

    canary = Path("/tmp") / f"gem-canary-{os.getpid()}"
    text = text.replace("CANARY", str(canary))
    before = repr(builtins.canary)  # type: ignore[attr-defined]
    _seen.clear()
    _quiet = False
    try:
        grade()
    except BaseException as error:  # noqa: BLE001 (scorers raise what they like)
        if isinstance(error, PermissionError):
            _seen.append("a witness was called")
    finally:
        _quiet = True
    if canary.exists():
        canary.unlink()
        _seen.append("the canary file was made")
    if repr(builtins.canary) != before:  # type: ignore[attr-defined]
        _seen.append("the canary variable was changed")
    return list(_seen)


def fuzz(seed: int, seconds: float, answers: int | None = None) -> tuple[int, int, list[tuple[str, str, list[str]]]]:
    """Try answers out for so long, or so many; return how many, how many ran out of time, and what was found."""
    draw = random.Random(seed)
    worker = Worker(prepare=watch, variables={"PYTHONHASHSEED": "0"})
    end, tried, late, found = time.monotonic() + seconds, 0, 0, []
    try:
        while time.monotonic() < end and (answers is None or tried < answers):
            scorer, text = draw.choice(SCORERS), answer(draw)
            tried += 1
            try:
                seen = worker.call(try_out, scorer, text, timeout=5.0)
            except CallFailed:
                late += 1
                continue
            if seen:
                found.append((scorer, text, seen))
    finally:
        worker.stop()
    return tried, late, found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from fuzz_answers import fuzz  # so that workers can import what they are to call

    number, late_ones, findings = fuzz(options.seed, options.seconds)
    for one in findings:
        print(*map(repr, one))
    print(f"{number} answers, {late_ones} took too long or raised outside, {len(findings)} ran something")
    sys.exit(bool(findings))
