"""Running Python code that a model wrote, by :mod:`gem.sandbox`."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from gem.sandbox import Limits, Result, Session, run
from gem.sandbox.pool import BACKENDS, find_pool
from gem.utils.constants import usual_imports

DEFAULT_TIMEOUT = 10
"""Seconds."""

MEMORY_LIMIT = 4 << 30
"""Bytes of address space."""

OUTPUT_LIMIT = 4 << 20
"""Bytes that a program may write to stdout, and to stderr."""

RESULT_LIMIT = 1 << 20
"""Bytes of what a function may return, as JSON."""

KEYS_LIMIT = 10_000
"""Elements of a set or dict that a function may return: a program can choose keys of the same hash."""

_PUBLISHED_NAMES = {"none": "plain", "bwrap": "bubblewrap"}

WITHOUT = "sandbox_type='none'"
"""How a user chooses to have no sandbox."""

SANDBOX_TYPES = ("auto", *BACKENDS, *_PUBLISHED_NAMES)

_UNDEFINED = re.compile(r"^NameError: name '(\w+)' is not defined", re.MULTILINE)
_USUAL_NAMES = frozenset(re.findall(r"\w+", usual_imports("np pd")))

_DEFINE = """
import ast, collections, decimal, fractions, json, os
calls = {name!r}, {code!r}, {imports!r}
results = os.fdopen(os.dup(1), "w")
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what the code prints is no result
function = error = None
try:
    names = {{"__name__": "solution"}}
    exec(calls[2], names)
    exec(compile(calls[1], "main.py", "exec"), names)
    function = names[calls[0]] if calls[0] in names else getattr(names["Solution"](), calls[0])
except BaseException as raised:
    error = repr(raised)
def as_data(value):
    if hasattr(value, "tolist"):  # of numpy
        value = value.tolist()
    if isinstance(value, (decimal.Decimal, fractions.Fraction)):
        value = float(value)
    if type(value) is int and abs(value) >= 10**4000:  # beyond what Python writes in decimal digits
        return {{"int": hex(value)}}
    if isinstance(value, (collections.deque, range, type({{}}.keys()), type({{}}.values()))):
        value = list(value)
    if isinstance(value, (set, frozenset)):
        return {{"frozenset" if isinstance(value, frozenset) else "set": [as_data(each) for each in value]}}
    if isinstance(value, tuple):
        return {{"tuple": [as_data(each) for each in value]}}
    if isinstance(value, dict):
        return {{"dict": [[as_data(key), as_data(each)] for key, each in value.items()]}}
    return [as_data(each) for each in value] if isinstance(value, list) else value
def call(arguments):
    answer = {{"error": error}}
    if function is not None:
        try:
            answer = {{"value": as_data(function(*ast.literal_eval(arguments)))}}
            json.dumps(answer)
        except BaseException as raised:
            answer = {{"error": repr(raised)}}
    print(json.dumps(answer), file=results, flush=True)
"""


def run_python(
    code: str, sandbox_type: str = "auto", stdin: str | None = None, timeout: float = DEFAULT_TIMEOUT
) -> tuple[bool, str, str]:
    r"""Run a program.

    One that misses a name of :func:`gem.utils.constants.usual_imports` is run once more with them; that counts if it
    ends well.

    >>> run_python("print(input()[::-1])", stdin="abc")  # doctest: +SKIP
    (True, 'cba\n', '')

    Args:
        code: the program.
        sandbox_type: what it runs in: ``"auto"``, whichever sandbox works here; ``"bubblewrap"`` (or ``"bwrap"``) or
            another by its name; ``"plain"`` (or ``"none"``): a process with limits that is **not isolated**.
        stdin: what it can read.
        timeout: seconds.

    Returns:
        Whether it ended by itself and without an error, what it wrote to stdout, and what to stderr.

    Raises:
        SandboxUnavailable: the sandbox does not work here.
        ValueError: there is no such kind of sandbox.
    """
    result = run(code, stdin or "", _limits(timeout), _backend(sandbox_type))
    undefined = _UNDEFINED.search(result.stderr) if result.exit_code else None
    if undefined and undefined[1] in _USUAL_NAMES:
        again = run(_with_usual_imports(code), stdin or "", _limits(timeout), _backend(sandbox_type))
        result = again if again.exit_code == 0 else result
    return result.exit_code == 0, result.stdout, result.stderr + _end(result, timeout)


_FUTURE = re.compile(r"\A(?:.*\n)*?(?:from __future__ import .*\n)+", re.MULTILINE)
"""What must stay at the beginning of a program."""


def _with_usual_imports(code: str) -> str:
    future = _FUTURE.match(code)
    place = future.end() if future else 0
    return f"{code[:place]}{usual_imports(code)}{code[place:]}"


_DANGEROUS_MODULES = ("subprocess", "multiprocessing", "threading", "socket", "psutil", "resource", "ctypes")
_DANGEROUS_CALLS = (
    *("os.system", "os.popen", "os.spawn", "os.fork", "os.exec", "os._exit", "os.kill"),
    "sys.exit",
)


def check_forbidden_imports(code: str) -> bool:
    """Return whether a text has one of some words, as gem-llm's Python tool refused to run without a sandbox.

    It protects from nothing, and nothing here depends on it: what a model writes runs in a sandbox.
    """
    imported = any(f"{word} {module}" in code for word in ("import", "from") for module in _DANGEROUS_MODULES)
    return imported or any(call in code for call in _DANGEROUS_CALLS)


def subprocess_run(
    code: str,
    cmd_list: Sequence[str],
    sandbox_type: str = "auto",
    stdin: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
) -> tuple[bool, str, str]:
    """Run a program once, without the usual imports; arguments and result as for :func:`run_python`.

    Args:
        code: the program.
        cmd_list: in gem-llm the command line of a sandbox; it must be empty, since ``sandbox_type`` says it all.
        sandbox_type: what it runs in.
        stdin: what it can read.
        timeout: seconds.

    Raises:
        ValueError: there is a command, or no such kind of sandbox.
    """
    if cmd_list:
        raise ValueError(f"cmd_list must be empty: sandbox_type says what the program runs in, got {cmd_list!r:.80}")
    result = run(code, stdin or "", _limits(timeout), _backend(sandbox_type))
    return result.exit_code == 0, result.stdout, result.stderr + _end(result, timeout)


def check_sandbox_type(sandbox_type: str) -> None:
    """Raise ValueError if there is no such kind of sandbox."""
    _named(sandbox_type)


def check_sandbox(sandbox_type: str, without: str = WITHOUT) -> None:
    """Raise what :func:`run_python` would raise for a kind of sandbox: the first one of a process is started.

    Args:
        sandbox_type: as for :func:`run_python`.
        without: how the caller's user chooses to have no sandbox; the error names it.
    """
    find_pool(_named(sandbox_type), without)


class FunctionProcess:
    """A process that defines functions and calls one of them.

    The code is not told what the function should return, so nothing that it does to its process can make a wrong
    result look right.

    Args:
        code: defines the function, or a class ``Solution`` with it as a method; the names of
            :func:`gem.utils.constants.usual_imports` are there.
        name: of the function.
        sandbox_type: as for :func:`run_python`.
        timeout: seconds for all calls together.
    """

    def __init__(self, code: str, name: str, sandbox_type: str = "auto", timeout: float = DEFAULT_TIMEOUT) -> None:
        self._deadline = time.monotonic() + timeout
        self._session = Session(_limits(timeout), _backend(sandbox_type))
        self._definition = _DEFINE.format(name=name, code=code, imports=usual_imports(code))
        self._ended = False

    def __enter__(self) -> FunctionProcess:
        """Return the process, to be ended with the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self._session.close()

    def call(self, *args: Any) -> Any:
        """Call the function and return its result.

        Args:
            *args: Python literals.

        Returns:
            JSON data, in which there may be tuples, sets, frozensets and keys of other types. Of numpy's values,
            deques, ranges and views, what is in them; of decimals and fractions, floats.

        Raises:
            RuntimeError: it is not defined, it raised or returned something else, or its process ended.
            TimeoutError: the time is up.
        """
        if self._ended:
            raise RuntimeError("the process ended")
        result = self._run(f"{self._definition}\ncall({as_literal(args)!r})")
        self._definition = ""
        if result.truncated:
            raise RuntimeError("the result is too long")
        try:
            answer = json.loads(result.stdout)
            if "value" in answer:
                return _from_data(answer["value"])
            error = str(answer["error"])
        except (ValueError, KeyError, TypeError, RecursionError, MemoryError):  # what the code wrote there instead
            self._ended = True
            raise RuntimeError("the process ended") from None
        raise RuntimeError(error)

    def _run(self, code: str) -> Result:
        left = self._deadline - time.monotonic()
        result = self._session.run(code, _limits(left, RESULT_LIMIT)) if left > 0 else None
        if result is None or result.timed_out:
            self._ended = True
            raise TimeoutError("the time is up")
        return result


def as_literal(value: Any) -> str:
    """Return a literal of Python's for JSON data and tuples, whatever the size of its integers."""
    if isinstance(value, (list, tuple)):
        inside = "".join(f"{as_literal(each)}, " for each in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_literal(key)}: {as_literal(each)}" for key, each in value.items()) + "}"
    if type(value) is int and abs(value) >= 10**4000:
        return hex(value)  # Python's own writing in decimal digits ends at 4,300
    return repr(value)


_KINDS: dict[str, Callable[[Any], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "dict": dict}


def _from_data(value: Any) -> Any:
    """Return what ``as_data`` in the sandbox was given."""
    if isinstance(value, list):
        return [_from_data(each) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, items),) = value.items()
    if kind == "int":
        return int(items, 16)
    if kind != "tuple" and len(items) > KEYS_LIMIT:
        raise ValueError(f"a {kind} of {len(items)} elements")
    return _KINDS[kind](_from_data(items))


def _backend(sandbox_type: str) -> str:
    """Return the backend, which works here."""
    check_sandbox(sandbox_type)
    return _named(sandbox_type)


def _named(sandbox_type: str) -> str:
    backend = _PUBLISHED_NAMES.get(sandbox_type, sandbox_type)
    if backend not in ("auto", *BACKENDS):
        raise ValueError(f"sandbox_type must be one of {', '.join(SANDBOX_TYPES)}, got {sandbox_type!r}")
    return backend


def _limits(timeout: float, output: int = OUTPUT_LIMIT) -> Limits:
    # A second more of processor time, so that it is the clock that ends a busy program.
    return Limits(timeout, timeout + 1, MEMORY_LIMIT, output_bytes=output)


def _end(result: Result, timeout: float) -> str:
    """Return what is to be added to stderr of a program that did not end by itself."""
    if result.timed_out:
        return f"\nExecution timed out after {timeout:g} seconds."
    if result.truncated:
        return "\nThe program was ended: it wrote too much."
    if result.exit_code is None:
        return "\nThe program was ended: it took too much memory."
    if result.exit_code < 0:
        names = {each.value: each.name for each in signal.Signals}
        return f"\nThe program was ended by {names.get(-result.exit_code, f'signal {-result.exit_code}')}."
    return ""
