"""Write the table of docs/sandbox.md: which attempts get out of which sandbox, found out by making them, here and now.

    python ci/escape_table.py [--check]

Exit codes: 0, the sandbox stops every attempt; 1, it does not, or (with --check) the page says something else.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from pathlib import Path

from gem.sandbox.escapes import ATTEMPTS, Attempt, escaped, set_stage

PAGE = Path(__file__).parents[1] / "docs" / "sandbox.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
OPEN = "plain"


def outcomes(backend: str) -> list[str]:
    """Return what comes of each attempt."""
    with set_stage(backend) as stage:
        return [outcome(attempt, stage, backend) for attempt in ATTEMPTS]


def outcome(attempt: Attempt, stage: dict[str, object], backend: str) -> str:
    if backend == OPEN and not attempt.plain:
        return "not tried"
    return "**gets out**" if escaped(attempt, stage, backend) else "stopped"


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
    columns = {backend: outcomes(backend) for backend in ("bubblewrap", OPEN)}
    stopped = columns["bubblewrap"].count("stopped")
    system = f"Linux {platform.release().split('-')[0]}, {platform.machine()}"
    user = "root" if os.geteuid() == 0 else "a user without rights"
    head = f"{stopped} of {len(ATTEMPTS)} attempts are stopped by bubblewrap ({system}, started by {user}).\n\n"
    page = PAGE.read_text(encoding="utf-8")
    if check:
        # What plain lets through is the machine's doing, and no promise.
        lines = page.partition(BEGIN)[2].splitlines()
        listed = [line.split(" | ")[:2] for line in lines if line.startswith("| ")][2:]
        here = [[f"| {attempt.name}", made] for attempt, made in zip(ATTEMPTS, columns["bubblewrap"], strict=True)]
        same = listed == here
        print("the page holds" if same else f"{PAGE} does not hold: run python ci/escape_table.py")
        return 0 if same and stopped == len(ATTEMPTS) else 1
    PAGE.write_text(put_into(page, head + table(columns)), encoding="utf-8")
    print(f"{stopped} of {len(ATTEMPTS)} attempts are stopped")
    return 0 if stopped == len(ATTEMPTS) else 1


if __name__ == "__main__":
    sys.exit(main())
