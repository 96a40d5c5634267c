"""Two packages side by side: each in a process of its own, asked in turn."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
THEIRS = ROOT / ".venvs" / "gem-llm"


class Side:
    """One of the two, in a process of its own.

    Args:
        python: of its virtual environment.
        script: which calls :func:`serve` if its argument is ``--worker``.
        variables: added to the environment.
    """

    def __init__(self, python: str, script: str, variables: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [python, "-W", "ignore", str(Path(script).resolve()), "--worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PATH": f"{Path(python).parent}:{os.environ['PATH']}", **(variables or {})},
            text=True,
        )

    def ask(self, name: str, *arguments: Any) -> Any:
        """Return the answer to a request; ``{"error": ...}`` if it raised."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([name, arguments]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process that measures {name} {arguments} ended")
        return json.loads(line)

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Answer one request per line."""
    answers, sys.stdout = sys.stdout, sys.stderr  # what is printed is no answer
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = functions[name](*arguments)
        except Exception as error:  # noqa: BLE001 (what gem-llm cannot do is shown)
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def resident() -> int:
    """Return the bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def install_theirs() -> str:
    """Return the Python of gem-llm's virtual environment, which is made if it is not there."""
    python = THEIRS / "bin" / "python"
    if not python.exists():
        print(f"installing gem-llm 0.1.0 into {THEIRS}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(THEIRS)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", "gem-llm==0.1.0", "pandas"], check=True)
    return str(python)
