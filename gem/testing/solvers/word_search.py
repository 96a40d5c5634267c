"""WordSearch by reading every row and column."""

from __future__ import annotations

import re
from collections.abc import Generator


def solve(observation: str) -> Generator[str, str, None]:
    """Give the ends of each word of the list."""
    rows = ["".join(re.findall("[A-Z]", line)) for line in re.findall(r"(?m)^ ?\d+ [ \[][A-Z].*$", observation)]
    listed = re.search(r"^Words to find: (.+)$", observation, re.MULTILINE)
    assert listed, "the words are listed"
    cols = ["".join(col) for col in zip(*rows, strict=True)]
    for word in listed[1].split(", "):
        for down, lines in ((False, rows), (True, cols)):
            for at, line in enumerate(lines):
                start = line.find(word)
                if start >= 0:
                    end = start + len(word) - 1
                    ends = (start, at, end, at) if down else (at, start, at, end)
                    yield "\\boxed{" + " ".join(map(str, ends)) + "}"
