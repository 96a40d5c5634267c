"""Write the table of docs/sandbox.md: which attempts get out of which sandbox, found out by making them, here and now.

    python ci/escape_table.py [--check]

Exit codes: 0, the sandboxes stop every attempt but those that they are known not to; 1, they do not, or (with --check)
the page says something else.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from pathlib import Path

from gem.sandbox.attempt import Attempt
from gem.sandbox.escapes import ATTEMPTS, NOT_STOPPED
from gem.sandbox.targets import escaped, set_up_targets

PAGE = Path(__file__).parents[1] / "docs" / "sandbox.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
SANDBOXES, OPEN = ("bubblewrap", "landlock"), "plain"
OUT, STOPPED = "**gets out**", "stopped"


def outcomes(backend: str) -> list[str]:
    """Return what comes of each attempt."""
    with set_up_targets(backend) as targets:
        return [outcome(attempt, targets, backend) for attempt in ATTEMPTS]


def outcome(attempt: Attempt, targets: dict[str, object], backend: str) -> str:
    if backend == OPEN and not attempt.plain:
        return "not tried"
    known = attempt.name in NOT_STOPPED.get(backend, {})  # and counts as such where it was stopped by luck
    return OUT if escaped(attempt, targets, backend) or known else STOPPED


def unknown(columns: dict[str, list[str]]) -> list[str]:
    """Return which attempts got out that should not."""
    return [
        f"{attempt.name} gets out of {backend}"
        for backend in SANDBOXES
        for attempt, made in zip(ATTEMPTS, columns[backend], strict=True)
        if made == OUT and attempt.name not in NOT_STOPPED.get(backend, {})
    ]


def reasons() -> str:
    """Return why attempts are not stopped, in Markdown."""
    return "".join(
        f"* {backend} does not stop *{name}*: {why}.\n"
        for backend, known in NOT_STOPPED.items()
        for name, why in known.items()
    )


def table(columns: dict[str, list[str]]) -> str:
    """Return the table, in Markdown."""
    rows = zip((attempt.name for attempt in ATTEMPTS), *columns.values(), strict=True)
    lines = [("attempt", *columns), ("---",) * (1 + len(columns)), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def put_into(page: str, text: str) -> str:
    """Return a page with its table replaced."""
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}{text}{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing: compare what is stopped with the page")
    check = parser.parse_args().check
    warnings.filterwarnings("ignore", "backend='plain'")
    columns = {backend: outcomes(backend) for backend in (*SANDBOXES, OPEN)}
    stopped = ", ".join(f"{columns[backend].count(STOPPED)} by {backend}" for backend in SANDBOXES)
    system = f"Linux {platform.release().split('-')[0]}, {platform.machine()}"
    user = "root" if os.geteuid() == 0 else "a user without rights"
    head = f"Stopped of {len(ATTEMPTS)} attempts: {stopped} ({system}, started by {user}).\n\n"
    out = unknown(columns)
    print("\n".join([f"stopped of {len(ATTEMPTS)} attempts: {stopped}", *out]))
    page = PAGE.read_text(encoding="utf-8")
    if check:
        # What plain lets through is the machine's doing, and no promise.
        lines = page.partition(BEGIN)[2].splitlines()
        listed = [line.strip("| ").split(" | ")[:-1] for line in lines if line.startswith("| ")][2:]
        names = [attempt.name for attempt in ATTEMPTS]
        here = [list(row) for row in zip(names, *(columns[backend] for backend in SANDBOXES), strict=True)]
        same = listed == here
        print("the page holds" if same else f"{PAGE} does not hold: run python ci/escape_table.py")
        return 0 if same and not out else 1
    PAGE.write_text(put_into(page, f"{head}{reasons()}\n{table(columns)}"), encoding="utf-8")
    return 1 if out else 0


if __name__ == "__main__":
    sys.exit(main())
